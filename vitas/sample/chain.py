"""A search space as a chain of small decisions, each charged where the last choice that it depends on is made.

The prior and the cost of a subnet are products and sums of tables over a few choices. Making the choices in order, and
remembering only those that later tables need, turns the space into a chain of steps; what is remembered is a *row*. A
stage's depth is one decision a slot, "one more block?", so that a row says whether the present slot runs instead of how
many will. Global choices, blocks and stages need no names here: they appear by themselves.

Source: variable elimination on factor graphs (Dechter 1999, Bucket elimination); its use on search spaces is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitas.choice import Choice
from vitas.cost import Cost
from vitas.errors import VitasError
from vitas.space import SearchSpace

Ints = NDArray[np.int64]


Floats = NDArray[np.float64]


class _Variable(NamedTuple):
    """A decision: the value of entry `entry`, or (threshold > 0) whether its number is at least `threshold`."""

    entry: int
    threshold: int
    size: int


_Factor = tuple[tuple[_Variable, ...], NDArray[Any]]


@dataclass(frozen=True)
class Step:
    """One decision for every row.

    Attributes:
        entry: Which entry of the space it decides.
        added: Whether the value decided is added to the entry's number (a slot more) or is the number.
        weight: Prior (or count) of each value, (rows, values).
        cost: What each value adds to every measure, (measures, rows, values).
        target: The next row, (rows, values).
        rows: How many rows come after.
    """

    entry: int
    added: bool
    weight: Floats
    cost: Ints
    target: Ints
    rows: int


class TooManyRows(VitasError):
    """So many choices depend on one another that no chain of small decisions exists."""


class Chain:
    """The decisions of a space, with the costs of some measures.

    Args:
        space: The search space.
        costs: One expression a measure.
        counting: Whether every live value weighs 1, so that weights count subnets, or its prior.
        most: How many rows a step may have.

    Attributes:
        steps: The decisions in order.
        start: What every subnet costs, one number a measure.
        free: Entries on which neither a cost nor another entry depends; they are not among the steps.
        times: In how many ways (counting) the free entries that are always live can be chosen.

    Raises:
        TooManyRows: more rows than that.
    """

    def __init__(self, space: SearchSpace, costs: Sequence[Cost], *, counting: bool = False, most: int = 10**5) -> None:
        self.space = space
        self._entry_of = {choice: k for k, choice in enumerate(space.choices.values())}
        self._choices = list(space.choices.values())
        self._chained = _depth_like(space)
        self.start = np.zeros(len(costs), dtype=np.int64)
        amounts: list[dict[tuple[_Variable, ...], Ints]] = [{} for _ in costs]
        for measure, cost in enumerate(costs):
            totals: dict[tuple[Choice[Any], ...], Ints] = {}
            for (_, _, bases), table in cost.terms.items():
                totals[bases] = totals.get(bases, 0) + table
            for bases, table in totals.items():
                self._split(amounts[measure], *_without_constant_axes(bases, table))
            self.start[measure] = amounts[measure].pop((), np.zeros((), dtype=np.int64))
        deciding = {variable.entry for tables in amounts for variables in tables for variable in variables}
        gating = {k for condition in space.liveness.conditions for gates in condition for k, _ in gates}
        self.free = [k for k in range(len(space)) if k not in deciding and k not in gating]
        weights = [factor for k in range(len(space)) for factor in self._weights(k, counting)]
        self.times = math.prod(round(float(table)) for gates, table in weights if not gates)
        weights = [factor for factor in weights if factor[0]]
        priced = [list(tables.items()) for tables in amounts]
        order = self._order([*weights, *(factor for tables in priced for factor in tables)])
        self.steps = self._in_steps(order, weights, priced, most)

    def _variables(self, entry: int) -> list[_Variable]:
        size = len(self._choices[entry].values)
        if entry in self._chained:
            return [_Variable(entry, threshold, 2) for threshold in range(1, size)]
        return [_Variable(entry, 0, size)]

    def _split(self, amounts: dict[tuple[_Variable, ...], Ints], bases: Sequence[Choice[Any]], table: Ints) -> None:
        """Add a table over choices to the tables over decisions: along a depth, only its differences matter."""
        axes: list[list[tuple[tuple[_Variable, ...], Ints | int]]] = []
        for base in bases:
            if base not in self._entry_of:
                raise VitasError(f"the cost of this model depends on {base.label}, which is not in its search space")
            entry = self._entry_of[base]
            if entry in self._chained:
                axes.append([((), 0), *(((variable,), variable.threshold) for variable in self._variables(entry))])
            else:
                axes.append([((self._variables(entry)[0],), -1)])
        for parts in product(*axes):
            piece: Any = table
            for axis, (_, threshold) in enumerate(parts):
                if threshold == 0:
                    piece = piece.take([0], axis)
                elif threshold > 0:
                    difference = piece.take([threshold], axis) - piece.take([threshold - 1], axis)
                    piece = np.concatenate([np.zeros_like(difference), difference], axis)
            if piece.any():
                variables = tuple(variable for those, _ in parts for variable in those)
                kept = piece.reshape([variable.size for variable in variables])
                order = sorted(range(len(variables)), key=lambda axis: variables[axis])
                key = tuple(variables[axis] for axis in order)
                amounts[key] = amounts.get(key, 0) + kept.transpose(order)

    def _weights(self, entry: int, counting: bool) -> Iterable[_Factor]:
        """Yield the weights of an entry's decisions: where it is not live, its first value is the only one."""
        gates, live = self._live(entry)
        choice = self._choices[entry]
        p = np.ones(len(choice.values)) if counting else np.array(choice.p)
        for variable in self._variables(entry):
            if variable.threshold > 1:
                gates, live = (_Variable(entry, variable.threshold - 1, 2),), np.array([False, True])
            if variable.threshold:
                stop, tail = p[variable.threshold - 1], p[variable.threshold :].sum()
                weight = np.array([1.0, 1.0]) if counting else np.array([stop, tail]) / ((stop + tail) or 1.0)
            else:
                weight = p
            dead = np.eye(variable.size)[0]
            if entry in self.free:  # drawn apart; only how often it can be drawn matters here
                table = np.where(live, weight.sum(), 1.0)
                if not np.allclose(table, 1.0, rtol=0, atol=1e-12):
                    yield gates, table
            else:
                yield (*gates, variable), np.where(live[..., None], weight, dead)

    def _live(self, entry: int) -> tuple[tuple[_Variable, ...], NDArray[np.bool_]]:
        """Return the decisions on which it depends whether an entry is live, and for which of their values it is."""
        alternatives = self.space.liveness.conditions[entry]
        tests = []
        for conjunction in alternatives:
            test: list[tuple[_Variable, frozenset[int]]] = []
            for k, allowed in conjunction:
                if k not in self._chained:
                    test.append((self._variables(k)[0], allowed))
                elif min(allowed) > 0:
                    test.append((_Variable(k, min(allowed), 2), frozenset([1])))
            tests.append(test)
        gates = tuple(sorted({variable for test in tests for variable, _ in test}))
        live = np.zeros([gate.size for gate in gates], dtype=bool)
        for values in np.ndindex(*live.shape):
            value = dict(zip(gates, values, strict=True))
            live[values] = any(all(value[variable] in allowed for variable, allowed in test) for test in tests)
        return gates, live

    def _order(self, factors: Iterable[_Factor]) -> list[_Variable]:
        """Return an order of the decisions that leaves few rows to remember.

        Taking decisions away one by one, always one that meets the fewest combinations of others, makes a tree: a decision
        hangs below the first of its partners that is taken away after it. The order goes down that tree, the
        largest branch last, so that what only the smaller branches need is forgotten before.
        """
        near: dict[_Variable, set[_Variable]] = {
            variable: set() for k in range(len(self.space)) if k not in self.free for variable in self._variables(k)
        }
        for variables, _ in factors:
            for variable in variables:
                near[variable].update(variables)
        partners = {variable: others - {variable} for variable, others in near.items()}
        left = list(reversed(near))  # of equals the last is taken away first
        taken: dict[_Variable, set[_Variable]] = {}  # in that order, with the partners that each had left
        while left:
            lightest = min(left, key=lambda variable: math.prod(other.size for other in partners[variable]))
            left.remove(lightest)
            taken[lightest] = partners.pop(lightest)
            for other in taken[lightest]:
                partners[other] |= taken[lightest]
                partners[other] -= {lightest, other}
        number = {variable: n for n, variable in enumerate(taken)}
        branches: dict[_Variable | None, list[_Variable]] = {}
        size: dict[_Variable | None, int] = {None: 0, **dict.fromkeys(taken, 1)}
        for variable, rest in taken.items():
            parent = min(rest, key=number.__getitem__, default=None)
            branches.setdefault(parent, []).append(variable)
            size[parent] += size[variable]
        order: list[_Variable] = []
        stack: list[_Variable | None] = [None]
        while stack:
            here = stack.pop()
            if here is not None:
                order.append(here)
            stack += sorted(branches.get(here, []), key=lambda branch: (-size[branch], branch))  # the last comes next
        return order

    def _in_steps(self, order: list[_Variable], weights: list[_Factor], costs: list[list[_Factor]], most: int) -> list[Step]:
        place = {variable: t for t, variable in enumerate(order)}
        last = dict(place)  # where a decision is needed for the last time
        charged: list[list[tuple[int | None, _Factor]]] = [[] for _ in order]
        for measure, factors in enumerate([weights, *costs]):
            for factor in factors:
                at = max(place[variable] for variable in factor[0])
                charged[at].append((measure - 1 if measure else None, factor))
                for variable in factor[0]:
                    last[variable] = max(last[variable], at)
        steps = []
        before: list[_Variable] = []
        for t, variable in enumerate(order):
            here = [*before, variable]
            after = [kept for kept in here if last[kept] > t]
            shape = [kept.size for kept in here]
            rows = math.prod(shape[:-1])
            if rows > most:
                raise TooManyRows(f"more than {most:,} combinations of choices interact")
            axes = {kept: axis for axis, kept in enumerate(here)}
            weight: NDArray[Any] = np.ones(shape)
            cost = np.zeros([len(costs), *shape], dtype=np.int64)
            for priced, factor in charged[t]:
                if priced is None:
                    weight = weight * _spread(factor, axes)
                else:
                    cost[priced] += _spread(factor, axes)
            grid = np.indices(shape)
            target: Ints = np.zeros(shape, dtype=np.int64)
            for kept in after:
                target[...] = target * kept.size + grid[axes[kept]]
            steps.append(
                Step(
                    entry=variable.entry,
                    added=variable.threshold > 0,
                    weight=weight.reshape(rows, -1),
                    cost=cost.reshape(len(costs), rows, variable.size),
                    target=target.reshape(rows, -1),
                    rows=math.prod(kept.size for kept in after),
                )
            )
            before = after
        return steps


def _without_constant_axes(bases: Sequence[Choice[Any]], table: Ints) -> tuple[list[Choice[Any]], Ints]:
    """Drop the choices that make no difference: private copies, of which one runs, add up to such a table."""
    constant = [bool((table == table.take([0], axis)).all()) for axis in range(table.ndim)]
    kept = [base for base, same in zip(bases, constant, strict=True) if not same]
    return kept, table[tuple(0 if same else slice(None) for same in constant)]


def _spread(factor: _Factor, axes: Mapping[_Variable, int]) -> NDArray[Any]:
    """Return a table with one axis for each remembered decision."""
    variables, table = factor
    order = sorted(range(len(variables)), key=lambda axis: axes[variables[axis]])
    shape = [1] * len(axes)
    for variable in variables:
        shape[axes[variable]] = variable.size
    return table.transpose(order).reshape(shape)


def _depth_like(space: SearchSpace) -> frozenset[int]:
    """Return the entries that are decided slot by slot: all that depends on them lives from some value on."""
    allowed: dict[int, set[frozenset[int]]] = {}
    for condition in space.liveness.conditions:
        for conjunction in condition:
            for k, indices in conjunction:
                allowed.setdefault(k, set()).add(indices)
    sizes = [len(choice.values) for choice in space.choices.values()]
    return frozenset(
        k for k, sets in allowed.items() if all(indices == frozenset(range(min(indices), sizes[k])) for indices in sets)
    )

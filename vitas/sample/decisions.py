"""The decisions that a search space consists of, and tables over them: of the prior, of costs.

Most choices are one decision, among all their values. A depth is decided slot by slot, "one more block?", so that what
depends on a slot depends on one answer and not on the depth: a cost of 5, 8, 11 for depths 1, 2, 3 becomes
5 + 3 [at least 2] + 3 [at least 3], one table a slot. Which choices are depths is read off the space: all that depends on
them is live from some value on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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


class Decision(NamedTuple):
    """A question about one choice, with `size` answers.

    `threshold` 0 asks for the number of its value; above 0 it asks whether that number is at least `threshold`.
    """

    entry: int
    """Number of the choice in the space."""
    threshold: int
    size: int


Decided = tuple[Decision, ...]


class Table(NamedTuple):
    """Numbers for each combination of answers, an axis for each decision."""

    decisions: Decided
    numbers: NDArray[Any]


class Decisions:
    """All decisions of a space.

    Attributes:
        space: The search space.
        slotted: The choices that are decided slot by slot.
        gating: The choices on which it depends whether others are live.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._choices = list(space.choices.values())
        self._number = {choice: k for k, choice in enumerate(self._choices)}
        # for each choice the alternatives of which one makes it live, conjunctions of (choice, allowed numbers)
        self._alternatives = space.liveness.conditions
        allowed: dict[int, set[frozenset[int]]] = {}
        for alternatives in self._alternatives:
            for k, numbers in (gate for conjunction in alternatives for gate in conjunction):
                allowed.setdefault(k, set()).add(numbers)
        sizes = [len(choice.values) for choice in self._choices]
        self.gating = frozenset(allowed)
        self.slotted = frozenset(
            k for k, sets in allowed.items() if all(numbers == frozenset(range(min(numbers), sizes[k])) for numbers in sets)
        )

    def of(self, entry: int) -> list[Decision]:
        """Return the decisions that a choice consists of."""
        size = len(self._choices[entry].values)
        if entry in self.slotted:
            return [Decision(entry, threshold, 2) for threshold in range(1, size)]
        return [Decision(entry, 0, size)]

    # -- costs -------------------------------------------------------------------------------------------------------

    def costs(self, cost: Cost) -> dict[Decided, Ints]:
        """Return a cost as tables over decisions that add up to it; the one over no decision is what every subnet costs.

        Raises:
            VitasError: the cost depends on a choice that is not in the space.
        """
        totals: dict[tuple[Choice[Any], ...], Ints] = {}
        for (_, _, bases), table in cost.terms.items():
            totals[bases] = totals.get(bases, 0) + table
        amounts: dict[Decided, Ints] = {}
        for bases, table in totals.items():
            for decisions, piece in self._pieces(*_without_constant_axes(bases, table)):
                amounts[decisions] = amounts.get(decisions, 0) + piece
        return amounts

    def _pieces(self, bases: Sequence[Choice[Any]], table: Ints) -> Iterator[tuple[Decided, Ints]]:
        """Yield a table over choices as tables over decisions: along a depth, its start and its differences."""
        parts_of_axes: list[list[tuple[Decided, int | None]]] = []
        for base in bases:
            if base not in self._number:
                raise VitasError(f"the cost of this model depends on {base.label}, which is not in its search space")
            decisions = self.of(self._number[base])
            if self._number[base] in self.slotted:
                parts_of_axes.append([((), 0), *(((decision,), decision.threshold) for decision in decisions)])
            else:
                parts_of_axes.append([((decisions[0],), None)])
        for parts in product(*parts_of_axes):
            piece: Any = table
            for axis, (_, threshold) in enumerate(parts):
                if threshold == 0:
                    piece = piece.take([0], axis)
                elif threshold is not None:
                    difference = piece.take([threshold], axis) - piece.take([threshold - 1], axis)
                    piece = np.concatenate([np.zeros_like(difference), difference], axis)
            if piece.any():
                decisions = [decision for those, _ in parts for decision in those]
                kept = piece.reshape([decision.size for decision in decisions])
                order = sorted(range(len(decisions)), key=decisions.__getitem__)
                yield tuple(decisions[axis] for axis in order), kept.transpose(order)

    # -- prior -------------------------------------------------------------------------------------------------------

    def weights(self, entry: int, counting: bool) -> Iterator[Table]:
        """Yield the weights of a choice's answers, as `_prior`; where it is not live, of its first alone."""
        p, live = self._prior(entry, counting), self._live(entry)
        for decision in self.of(entry):
            t = decision.threshold
            if t > 1:  # a slot is asked for only where the one before runs
                live = Table((Decision(entry, t - 1, 2),), np.array([False, True]))
            if not t:
                weight = p
            elif counting:
                weight = np.array([p[t - 1], p[t:].max()])
            else:
                weight = np.array([p[t - 1], p[t:].sum()]) / ((p[t - 1] + p[t:].sum()) or 1.0)
            first = (np.arange(decision.size) == 0).astype(float)
            yield Table((*live.decisions, decision), np.where(live.numbers[..., None], weight, first))

    def ways(self, entry: int, counting: bool) -> Table:
        """Return the sum of a choice's weights where it is live, else 1: in how many ways a choice drawn apart is drawn."""
        live = self._live(entry)
        return Table(live.decisions, np.where(live.numbers, self._prior(entry, counting).sum(), 1.0))

    def _prior(self, entry: int, counting: bool) -> Floats:
        """Return the prior of a choice's values, or (counting) 1 for each one that is left and 0 for the others."""
        if not counting:
            return np.array(self.space.encoding.prior[entry])
        p = np.zeros(len(self._choices[entry].values))
        p[list(self.space.encoding.left[entry])] = 1.0
        return p

    def _live(self, entry: int) -> Table:
        """Return for which answers a choice is live, bools."""
        tests: list[list[tuple[Decision, frozenset[int]]]] = []
        for conjunction in self._alternatives[entry]:
            tests.append([])
            for k, allowed in conjunction:
                if k not in self.slotted:
                    tests[-1].append((self.of(k)[0], allowed))
                elif min(allowed) > 0:
                    tests[-1].append((Decision(k, min(allowed), 2), frozenset([1])))
        gates = tuple(sorted({decision for test in tests for decision, _ in test}))
        live = np.zeros([gate.size for gate in gates], dtype=bool)
        for answers in np.ndindex(*live.shape):
            given = dict(zip(gates, answers, strict=True))
            live[answers] = any(all(given[decision] in allowed for decision, allowed in test) for test in tests)
        return Table(gates, live)


def _without_constant_axes(bases: Sequence[Choice[Any]], table: Ints) -> tuple[list[Choice[Any]], Ints]:
    """Drop the choices that make no difference: private copies, of which one runs, add up to such a table."""
    constant = [bool((table == table.take([0], axis)).all()) for axis in range(table.ndim)]
    kept = [base for base, same in zip(bases, constant, strict=True) if not same]
    return kept, table[tuple(0 if same else slice(None) for same in constant)]


def in_good_order(decisions: Sequence[Decision], met: Sequence[Decided]) -> list[Decision]:
    """Return an order of the decisions in which few of them have to be remembered at any time.

    Taking decisions away one by one, always one that meets the fewest combinations of others, makes a tree: a decision
    hangs below the first of its partners that is taken away after it. The order goes down that tree, the
    largest branch last, so that what only the smaller branches need is forgotten before.

    Args:
        decisions: All of them; of equals the last is taken away first.
        met: Decisions that meet in one table, for each table.

    Source: the min-weight order of variable elimination (Dechter 1999, Bucket elimination).
    """
    partners: dict[Decision, set[Decision]] = {decision: set() for decision in decisions}
    for group in met:
        for decision in group:
            partners[decision].update(group)
    for decision, others in partners.items():
        others.discard(decision)
    left = list(reversed(decisions))
    taken: dict[Decision, set[Decision]] = {}  # in that order, with the partners that each had left
    while left:
        lightest = min(left, key=lambda decision: math.prod(other.size for other in partners[decision]))
        left.remove(lightest)
        taken[lightest] = partners.pop(lightest)
        for other in taken[lightest]:
            partners[other] |= taken[lightest]
            partners[other] -= {lightest, other}
    return _down_the_tree(taken)


def _down_the_tree(taken: dict[Decision, set[Decision]]) -> list[Decision]:
    number = {decision: n for n, decision in enumerate(taken)}
    branches: dict[Decision | None, list[Decision]] = {}
    size: dict[Decision | None, int] = {None: 0, **dict.fromkeys(taken, 1)}
    for decision, rest in taken.items():
        parent = min(rest, key=number.__getitem__, default=None)
        branches.setdefault(parent, []).append(decision)
        size[parent] += size[decision]
    order: list[Decision] = []
    stack: list[Decision | None] = [None]
    while stack:
        here = stack.pop()
        if here is not None:
            order.append(here)
        stack += sorted(branches.get(here, []), key=lambda branch: (-size[branch], branch))  # the last comes next
    return order

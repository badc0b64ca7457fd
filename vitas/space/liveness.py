"""Which choices are live: those that a module holds which runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vitas.space.walk import AnyChoice, Gate

Condition = tuple[tuple[tuple[int, frozenset[int]], ...], ...]
"""Alternatives, each a conjunction of (choice, numbers of its values); () alone is never true, ((),) always."""


class Liveness:
    """Which choices of a space are live, given the values of the others; choices and values are known by their numbers.

    A depth of 1 or 2, a width of the first block, and one of the second block, which lives at depth 2 (number 1):

    >>> always, at_depth_2 = ((),), (((0, frozenset({1})),),)
    >>> liveness = Liveness([2, 3, 3], [always, always, at_depth_2])
    >>> liveness.fill(lambda choice: 0), liveness.fill(lambda choice: 1)
    ([0, 0, -1], [1, 1, 1])
    >>> liveness.of(np.array([[0, 2, 2], [1, 2, 2]])).tolist()
    [[True, True, False], [True, True, True]]
    >>> liveness.count([range(2), range(3), range(3)])  # 3 of one block, 3 * 3 of two
    12

    Attributes:
        sizes: How many values each choice has.
        conditions: When each choice is live; the choices that this depends on come before it.
    """

    def __init__(self, sizes: Sequence[int], conditions: Sequence[Condition]) -> None:
        self.sizes, self.conditions = tuple(sizes), tuple(conditions)
        numbers: dict[Condition, int] = {}  # those of a block's choices are one
        self._condition_of = [numbers.setdefault(condition, len(numbers)) for condition in conditions]
        self._distinct = list(numbers)

    def fill(self, number_of: Callable[[int], int]) -> list[int]:
        """Return the number of each choice's value: of live ones, in order, what `number_of(choice)` says, else -1."""
        numbers = [-1] * len(self.sizes)
        known: list[bool | None] = [None] * len(self._distinct)
        for k, condition in enumerate(self._condition_of):
            lives = known[condition]
            if lives is None:
                lives = known[condition] = _is_true(self._distinct[condition], numbers)
            if lives:
                numbers[k] = number_of(k)
        return numbers

    def of(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which choices are live in each vector, (n, choices) ints -> (n, choices); other numbers may be anything."""
        live = np.ones(codes.shape, dtype=bool)
        known: dict[int, NDArray[np.bool_]] = {}
        for k, number in enumerate(self._condition_of):
            if self._distinct[number] == ((),):
                continue
            if number not in known:
                known[number] = np.zeros(len(codes), dtype=bool)
                for conjunction in self._distinct[number]:
                    holds = np.ones(len(codes), dtype=bool)
                    for gate, allowed in conjunction:
                        table = np.zeros(self.sizes[gate], dtype=bool)
                        table[list(allowed)] = True
                        holds &= live[:, gate] & table[codes[:, gate]]
                    known[number] |= holds
            live[:, k] = known[number]
        return live

    def count(self, left: Sequence[Sequence[int]]) -> int:
        """Return the exact number of distinct networks in which live choices have numbers that are left."""
        return self._count(range(len(self.sizes)), {}, left)

    def _count(self, choices: Sequence[int], given: dict[int, int], left: Sequence[Sequence[int]]) -> int:
        """Count the combinations of `choices`, the values numbered in `given` being settled."""
        gates: dict[int, set[int]] = {}
        for k in choices:
            alternatives = [
                {gate for gate, _ in conjunction if gate not in given}
                for conjunction in self.conditions[k]
                if all(given[gate] in allowed if gate in given else gate in gates for gate, allowed in conjunction)
            ]
            if alternatives:  # else it is dead
                gates[k] = set() if set() in alternatives else set().union(*alternatives)
        total = 1
        for group in _connected(gates):
            first = next((k for k in group if not gates[k] and any(k in gates[other] for other in group)), None)
            if first is None:
                total *= len(left[group[0]])
                continue
            rest = [k for k in group if k != first]
            total *= sum(self._count(rest, {**given, first: number}, left) for number in left[first])
        return total


def _is_true(condition: Condition, numbers: Sequence[int]) -> bool:
    for conjunction in condition:
        for k, allowed in conjunction:
            if numbers[k] not in allowed:
                break
        else:
            return True
    return False


def _connected(links: Mapping[int, set[int]]) -> list[list[int]]:
    """Return the groups of choices that depend on one another."""
    group_of = {k: [k] for k in links}
    for k, others in links.items():
        for other in others:
            if group_of[k] is not group_of[other]:
                joined = group_of[k] + group_of[other]
                for member in joined:
                    group_of[member] = joined
    return [sorted(group) for group in {id(group): group for group in group_of.values()}.values()]


def conditions_of(gates: Mapping[AnyChoice, Sequence[tuple[Gate, ...]]]) -> list[Condition]:
    """Return when each choice is live, the choices being known by their numbers in the order of `gates`."""
    number = {choice: k for k, choice in enumerate(gates)}
    conditions = []
    for alternatives in gates.values():
        conjunctions = (tuple((number[gate.choice], gate.indices) for gate in conjunction) for conjunction in alternatives)
        condition = tuple(dict.fromkeys(conjunctions))
        conditions.append(((),) if () in condition else condition)
    return conditions


def weakest(alternatives: Sequence[tuple[Gate, ...]]) -> list[tuple[Gate, ...]]:
    """Drop the alternatives that another one implies: a holder inside a private copy of its own choice adds nothing."""
    distinct = list(dict.fromkeys(alternatives))
    return [gates for gates in distinct if not any(set(other) < set(gates) for other in distinct)]


def gates_first(gates: Mapping[AnyChoice, Sequence[tuple[Gate, ...]]]) -> list[AnyChoice]:
    """Order choices as found, but each after the choices that decide whether it is live."""
    ordered: dict[AnyChoice, None] = {}

    def put(choice: AnyChoice) -> None:
        if () not in gates[choice]:
            for conjunction in gates[choice]:
                for gate in conjunction:
                    if gate.choice not in ordered:
                        put(gate.choice)
        ordered[choice] = None

    for choice in gates:
        if choice not in ordered:
            put(choice)
    return list(ordered)

"""Cost as an expression in Choices: a sum of integer tables, each over the few choices that it depends on.

A linear layer between two Dims costs tokens * in * out: one table over (patch size, in, out). Every elastic layer states
its cost that way and containers add them up; a table entry is then the cost of one subnet's layer, exactly, in Python
or numpy integers. The unit is multiply-adds (MACs), which the ViT literature and fvcore 0.1.5 call FLOPs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitas.choice import Choice
from vitas.errors import VitasError

Bases = tuple[Choice[Any], ...]


class Cost:
    """A sum of integer tables over Choices; supports +, * and sum().

    Args:
        amount: A number, a Choice or Dim (its value), or another Cost.
    """

    def __init__(self, amount: int | Choice[Any] | Cost = 0) -> None:
        self.terms: dict[tuple[str, str, Bases], NDArray[np.int64]] = {}
        if isinstance(amount, Cost):
            self.terms = dict(amount.terms)
        elif isinstance(amount, Choice):
            self._add("", "", amount.bases, amount.table())
        elif amount:
            self._add("", "", (), np.array(amount))

    @classmethod
    def table(cls, choice: Choice[Any], values: Iterable[int]) -> Cost:
        """Return a cost of one number for each value of `choice`, such as the tokens of each patch size."""
        amounts = dict(zip(choice.values, values, strict=True))
        cost = cls()
        cost._add("", "", choice.bases, np.vectorize(amounts.__getitem__, otypes=[np.int64])(choice.table()))
        return cost

    @classmethod
    def above(cls, choice: Choice[Any], threshold: int) -> Cost:
        """Return 1 where the value of `choice` is above `threshold`, else 0: "depth > i"."""
        return cls.table(choice, (int(value > threshold) for value in choice.values))

    def _add(self, path: str, operator: str, bases: Bases, table: NDArray[Any]) -> None:
        searchable = tuple(axis for axis, base in enumerate(bases) if not base.fixed)
        table = table.reshape([table.shape[axis] for axis in searchable]).astype(np.int64)
        bases = tuple(bases[axis] for axis in searchable)
        order = sorted(range(len(bases)), key=lambda axis: id(bases[axis]))
        key = (path, operator, tuple(bases[axis] for axis in order))
        table = table.transpose(order)
        self.terms[key] = self.terms[key] + table if key in self.terms else table

    def __add__(self, other: int | Choice[Any] | Cost) -> Cost:
        total = Cost(self)
        for (path, operator, bases), table in Cost(other).terms.items():
            total._add(path, operator, bases, table)
        return total

    __radd__ = __add__

    def __mul__(self, other: int | Choice[Any] | Cost) -> Cost:
        total = Cost()
        for (path, operator, bases), table in self.terms.items():
            for (path2, operator2, bases2), table2 in Cost(other).terms.items():
                union = (*bases, *(base for base in bases2 if base not in bases))
                letters = {base: axis for axis, base in enumerate(union)}
                merged = np.einsum(
                    table, [letters[b] for b in bases], table2, [letters[b] for b in bases2], list(range(len(union)))
                )
                total._add(path or path2, operator or operator2, union, merged)
        return total

    __rmul__ = __mul__

    def named(self, operator: str) -> Cost:
        """Return this cost with every part called `operator`: "linear", "conv" or "matmul", fvcore's words."""
        named = Cost()
        for (path, _, bases), table in self.terms.items():
            named._add(path, operator, bases, table)
        return named

    def under(self, path: str) -> Cost:
        """Return this cost with every part placed inside the module `path`."""
        placed = Cost()
        for (inner, operator, bases), table in self.terms.items():
            placed._add(f"{path}.{inner}" if inner else path, operator, bases, table)
        return placed

    def over(self, others: Mapping[Choice[Any], Choice[Any]]) -> Cost:
        """Return the same tables over other choices of the same values: those of a copy of the model."""
        moved = Cost()
        for (path, operator, bases), table in self.terms.items():
            moved._add(path, operator, tuple(others[base] for base in bases), table)
        return moved

    def merged(self) -> dict[Bases, NDArray[np.int64]]:
        """Return the same total as few tables: a table over some choices is added into one that has them all."""
        tables: dict[Bases, NDArray[np.int64]] = {}
        for (_, _, bases), table in sorted(self.terms.items(), key=lambda term: -len(term[0][2])):
            home = next((wide for wide in tables if set(bases) <= set(wide)), None)
            if home is None:
                tables[bases] = table
            else:  # both keep the one order of choices, so only axes of length 1 are missing
                tables[home] = tables[home] + table.reshape([len(b.values) if b in bases else 1 for b in home])
        return tables

    def extremes(
        self, most: int = 10**7, *, left: Mapping[Choice[Any], Sequence[int]] | None = None
    ) -> tuple[int, int] | None:
        """Return the smallest and the largest total; None if more than `most` combinations would have to be looked at.

        Choices that stand in one table only are settled there; all combinations of the others are looked at.

        Args:
            most: Of these combinations.
            left: Choice -> the numbers of the values that it may have; None: every value of every choice.
        """
        tables = self.merged()
        numbers = {base: range(len(base.values)) for bases in tables for base in bases} | dict(left or {})
        if left is not None:
            tables = {bases: table[np.ix_(*(numbers[base] for base in bases))] for bases, table in tables.items()}
        times = Counter(base for bases in tables for base in bases)
        shared = [base for base, n in times.items() if n > 1]
        if math.prod(len(numbers[base]) for base in shared) > most:
            return None
        found = []
        for best in (np.min, np.max):
            total: Any = np.zeros([1] * len(shared), dtype=np.int64)
            for bases, table in tables.items():
                own = tuple(axis for axis, base in enumerate(bases) if base not in shared)
                table = best(table, axis=own)
                kept = [base for base in bases if base in shared]
                order = sorted(range(len(kept)), key=lambda axis: shared.index(kept[axis]))
                shape = [len(numbers[base]) if base in kept else 1 for base in shared]
                total = total + table.transpose(order).reshape(shape)
            found.append(int(best(total)))
        return found[0], found[1]

    def parts(self, indices: Mapping[Choice[Any], int]) -> Iterable[tuple[str, str, int]]:
        """Yield (path, operator, amount) for the subnet whose choices have the value numbers `indices`."""
        for (path, operator, bases), table in self.terms.items():
            yield path, operator, int(table[tuple(indices[base] for base in bases)])

    def at(self, indices: Mapping[Choice[Any], int]) -> int:
        """Return the total for the subnet whose choices have the value numbers `indices`."""
        return sum(amount for _, _, amount in self.parts(indices))

    def differs(self, other: Cost) -> str | None:
        """Return the path of a module whose cost is another one in `other`; None where all are the same."""
        for key in [*self.terms, *other.terms]:
            mine, others = self.terms.get(key), other.terms.get(key)
            if mine is None or others is None or not np.array_equal(mine, others):
                return key[0]
        return None

    def active(self) -> int:
        """Return the total for the values that are active."""
        return self.at(ActiveIndices())


class Map(Cost):
    """The positions of a map, height * width, for layers whose cost depends on both.

    Args:
        height: Positions from top to bottom.
        width: Positions from left to right.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__(height * width)
        self.height, self.width = height, width


def as_map(tokens: Cost) -> Map:
    """Return `tokens` as the map that it has to be.

    Raises:
        VitasError: tokens of which only the number is known.
    """
    if not isinstance(tokens, Map):
        raise VitasError("a layer that works on maps states its cost for a map: give it vitas.cost.Map(height, width)")
    return tokens


class ActiveIndices(dict[Choice[Any], int]):
    """For every choice the number of its active value."""

    def __missing__(self, choice: Choice[Any]) -> int:
        return choice.index


def product_of(*counts: int | Choice[Any]) -> Cost:
    """Return the product of ints and Dims as a Cost: the parameters of a tensor of that shape."""
    return math.prod((Cost(count) for count in counts), start=Cost(1))

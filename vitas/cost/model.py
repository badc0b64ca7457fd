"""The costs of many subnets at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitas.choice import Choice
from vitas.cost.expression import Cost
from vitas.cost.stated import params_of, stated_cost
from vitas.errors import ChoiceError
from vitas.space import Number, SearchSpace, as_subnet, codes_of, search_space, unwrap

Codes = Mapping[str, Number] | NDArray[Any] | Sequence[Sequence[int]]


class CostModel:
    """Multiply-adds and parameters of subnets without touching the model, a million a second.

    Made by `cost_model(model)`; the tables are set up once.
    """

    def __init__(self, space: SearchSpace, flops: Cost, params: Cost) -> None:
        self.space = space
        place = {choice: k for k, choice in enumerate(space.choices.values())}
        self._smallest = space.encode(space.smallest())
        self._flops, self._params = _Tables(flops, place), _Tables(params, place)

    def flops(self, codes: Codes) -> Any:
        """Return the multiply-adds of encoded subnets, (n, choices) -> (n,) int64, or of one Subnet as an int.

        Args:
            codes: An array of vectors as `space.encode` makes them, or a subnet of the space.

        Raises:
            ChoiceError: not a subnet of the space; an array of another width, of no ints, or with numbers out of range.
        """
        return self._evaluate(self._flops, codes)

    def params(self, codes: Codes) -> Any:
        """Return the parameters of encoded subnets, (n, choices) -> (n,) int64, or of one Subnet as an int.

        Args:
            codes: An array of vectors as `space.encode` makes them, or a subnet of the space.

        Raises:
            ChoiceError: as `flops`.
        """
        return self._evaluate(self._params, codes)

    def _evaluate(self, tables: _Tables, codes: Codes) -> Any:
        if isinstance(codes, Mapping):
            return tables.one([max(number, 0) for number in self.space.encoding.code(as_subnet(codes))])
        codes = codes_of(codes, len(self.space), "codes")
        most = np.array([len(choice.values) for choice in self.space.choices.values()])
        least = np.minimum(self._smallest, 0)  # -1 for choices that are not live in some subnet
        if codes.size and ((codes.min(axis=0) < least).any() or (codes.max(axis=0) >= most).any()):
            raise ChoiceError("codes: numbers out of range; space.encode makes them")
        return tables.many(codes)


class _Tables:
    """A sum of tables, ready for one subnet (nested lists) and for many (flat arrays).

    Choices that many tables share come first in each, so that their part of the index is computed once.
    """

    def __init__(self, cost: Cost, place: Mapping[Choice[Any], int]) -> None:
        merged = cost.merged()
        shared = Counter(base for bases in merged for base in bases)
        groups: dict[tuple[int, ...], list[tuple[int, NDArray[np.int64]]]] = {}
        self._constant = 0
        self._flat: list[tuple[tuple[int, ...], tuple[int, ...], NDArray[np.int64]]] = []
        for bases, table in merged.items():
            order = sorted(range(len(bases)), key=lambda axis: (-shared[bases[axis]], place[bases[axis]]))
            places, table = tuple(place[bases[axis]] for axis in order), table.transpose(order)
            if places:
                groups.setdefault(places[:-1], []).append((places[-1], table))
            else:
                self._constant = int(table)
            self._flat.append((places, table.shape, np.ascontiguousarray(table).ravel()))
        # For each combination of the shared choices a row with the lists of all tables that go on from there.
        self._rows = []
        for prefix, group in groups.items():
            rows = np.empty(group[0][1].shape[:-1], dtype=object)
            for index in np.ndindex(rows.shape):
                rows[index] = [table[index].tolist() for _, table in group]
            self._rows.append((prefix, [last for last, _ in group], rows.tolist()))

    def one(self, numbers: Sequence[int]) -> int:
        total = self._constant
        for prefix, last, row in self._rows:
            for place in prefix:
                row = row[numbers[place]]
            for amounts, place in zip(row, last, strict=True):
                total += amounts[numbers[place]]
        return total

    def many(self, codes: NDArray[Any], chunk: int = 8192) -> NDArray[np.int64]:
        totals = np.zeros(len(codes), dtype=np.int64)
        for start in range(0, len(codes), chunk):
            columns = np.array(codes[start : start + chunk].T, dtype=np.int64, order="C")  # a copy of our own
            np.maximum(columns, 0, out=columns)  # not live: any number, its gate is 0
            total = totals[start : start + chunk]
            amounts = np.empty_like(total)
            prefixes: dict[tuple[int, ...], NDArray[np.int64]] = {(): np.zeros_like(total)}
            for places, shape, table in self._flat:
                for n in range(1, len(places) + 1):
                    if places[:n] not in prefixes:
                        prefixes[places[:n]] = prefixes[places[: n - 1]] * shape[n - 1] + columns[places[n - 1]]
                np.take(table, prefixes[places], out=amounts, mode="clip")
                total += amounts
        return totals


def cost_model(model: nn.Module, *, convention: str = "exact") -> CostModel:
    """Return the cost of every subnet of a model as a function of encoded subnets.

    Args:
        model: A model that states its cost, such as a superformer; possibly wrapped by DDP or torch.compile.
        convention: As in `count_flops`.

    Raises:
        ChoiceError: a model without choices, or another convention.
        VitasError: a model that states no cost.
    """
    return CostModel(search_space(model), stated_cost(unwrap(model), convention), params_of(model))

"""The costs of many subnets at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitas.cost.expression import Cost
from vitas.cost.stated import stated_cost, stated_params
from vitas.cost.watch import Stated, Watch
from vitas.errors import ChoiceError
from vitas.space import Number, SearchSpace, TableRow, codes_of, search_space, unwrap

Codes = Mapping[str, Number] | NDArray[Any] | Sequence[Sequence[int]]


class CostModel:
    """Multiply-adds and parameters of subnets without touching the model, a million a second.

    Made by `cost_model(model)`; the tables are set up once. They notice when the model no longer costs what it did.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> costs = vitas.cost_model(model)
        >>> costs.params(vitas.search_space(model).smallest())
        10426
    """

    def __init__(self, space: SearchSpace, flops: Cost, params: Cost, watch: Watch | None = None) -> None:
        self.space, self._watch = space, watch
        self._flops, self._params = TableSum(space, flops), TableSum(space, params)

    def flops(self, codes: Codes) -> Any:
        """Return the multiply-adds of encoded subnets, (n, choices) -> (n,) int64, or of one Subnet as an int.

        Args:
            codes: An array of vectors as `space.encode` makes them, or a subnet of the space.

        Raises:
            ChoiceError: not a subnet of the space; an array of another width, of no ints, or with numbers out of range.
            VitasError: the model has changed, and its costs with it.
        """
        return self._holding(self._flops).of(codes)

    def params(self, codes: Codes) -> Any:
        """Return the parameters of encoded subnets, (n, choices) -> (n,) int64, or of one Subnet as an int.

        Args:
            codes: An array of vectors as `space.encode` makes them, or a subnet of the space.

        Raises:
            ChoiceError: as `flops`.
            VitasError: likewise.
        """
        return self._holding(self._params).of(codes)

    def _holding(self, tables: TableSum) -> TableSum:
        if self._watch is not None:
            self._watch.check()
        return tables


class TableSum:
    """A sum of integer tables over the choices of a space, for one subnet or for many at once, whatever it counts.

    Two forms of the tables are kept: nested lists, quick for one subnet, and flat arrays, quick for many. Choices that many
    tables share come first in each, so that their part of the index is computed once.
    """

    def __init__(self, space: SearchSpace, cost: Cost) -> None:
        self.space = space
        # -1 stands for a choice that is not live, which some subnet has to leave out.
        self._least = np.array([0 if condition == ((),) else -1 for condition in space.liveness.conditions], dtype=np.int64)
        entry_of = {choice: k for k, choice in enumerate(space.choices.values())}
        merged = cost.merged()
        times = Counter(base for bases in merged for base in bases)
        groups: dict[tuple[int, ...], list[tuple[int, NDArray[np.int64]]]] = {}
        self._constant = 0
        self._flat: list[tuple[tuple[int, ...], tuple[int, ...], NDArray[np.int64]]] = []
        for bases, table in merged.items():
            order = sorted(range(len(bases)), key=lambda axis: (-times[bases[axis]], entry_of[bases[axis]]))
            entries, table = tuple(entry_of[bases[axis]] for axis in order), table.transpose(order)
            if entries:
                groups.setdefault(entries[:-1], []).append((entries[-1], table))
            else:
                self._constant = int(table)
            self._flat.append((entries, table.shape, np.ascontiguousarray(table).ravel()))
        # For each combination of the shared choices a list with what all tables that go on from there hold.
        self._nested = []
        for shared, group in groups.items():
            lists = np.empty(group[0][1].shape[:-1], dtype=object)
            for index in np.ndindex(lists.shape):
                lists[index] = [table[index].tolist() for _, table in group]
            self._nested.append((shared, [last for last, _ in group], lists.tolist()))

    def of(self, codes: Codes) -> Any:
        """Return the sums of encoded subnets, (n, choices) -> (n,) int64, or of one Subnet as an int.

        Raises:
            ChoiceError: not a subnet of the space; an array of another width, of no ints, or with numbers out of range; a
                space that is old.
        """
        if isinstance(codes, (Mapping, TableRow)):
            return self.one([max(number, 0) for number in self.space.encoding.code(self.space.read(codes))])
        self.space.check()
        codes = codes_of(codes, len(self.space), "codes")
        most = np.array([len(choice.values) for choice in self.space.choices.values()])
        if codes.size and ((codes.min(axis=0) < self._least).any() or (codes.max(axis=0) >= most).any()):
            raise ChoiceError("codes: numbers out of range; space.encode makes them")
        return self.many(codes)

    def one(self, numbers: Sequence[int]) -> int:
        """Return the sum for one subnet: the number of each choice's value, 0 for those that are not live."""
        total = self._constant
        for shared, last, amounts in self._nested:
            for entry in shared:
                amounts = amounts[numbers[entry]]
            for column, entry in zip(amounts, last, strict=True):
                total += column[numbers[entry]]
        return total

    def many(self, codes: NDArray[Any], chunk: int = 8192) -> NDArray[np.int64]:
        """Return the sums for encoded subnets, (n, choices) -> (n,); -1, not live, counts as any number: its gate is 0."""
        totals = np.zeros(len(codes), dtype=np.int64)
        for start in range(0, len(codes), chunk):
            columns = np.array(codes[start : start + chunk].T, dtype=np.int64, order="C")  # a copy of our own
            np.maximum(columns, 0, out=columns)
            total = totals[start : start + chunk]
            amounts = np.empty_like(total)
            prefixes: dict[tuple[int, ...], NDArray[np.int64]] = {(): np.zeros_like(total)}
            for entries, shape, table in self._flat:
                for n in range(1, len(entries) + 1):
                    if entries[:n] not in prefixes:
                        prefixes[entries[:n]] = prefixes[entries[: n - 1]] * shape[n - 1] + columns[entries[n - 1]]
                np.take(table, prefixes[entries], out=amounts, mode="clip")
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

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> space, costs = vitas.search_space(model), vitas.cost_model(model)
        >>> costs.flops([space.encode(subnet) for subnet in (space.smallest(), space.largest())]).tolist()
        [761216, 7927872]
    """
    space, model = search_space(model), unwrap(model)
    flops, params = stated_cost(model, convention), stated_params(model)
    costs = [Stated(partial(stated_cost, model, convention), flops), Stated(partial(stated_params, model), params)]
    return CostModel(space, flops, params, Watch(model, "cost_model", costs))

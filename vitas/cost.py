"""Cost as an expression in Choices: a sum of integer tables, each over the few choices that it depends on.

A linear layer between two Dims costs tokens * in * out: one table over (patch size, in, out). Every elastic layer states
its cost that way and containers add them up; a table entry is then the cost of one subnet's layer, exactly, in Python
or numpy integers. The unit is multiply-adds (MACs), which the ViT literature and fvcore 0.1.5 call FLOPs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from inspect import signature
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitas import plain
from vitas.choice import Choice
from vitas.errors import ChoiceError, VitasError, is_one_of, one_of, shown
from vitas.space import SearchSpace, codes_of, search_space
from vitas.subnet import Number
from vitas.walk import State, arguments_of, eval_mode, holders, unwrap

Bases = tuple[Choice[Any], ...]
Codes = Mapping[str, Number] | NDArray[Any] | Sequence[Sequence[int]]


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

    def extremes(self, most: int = 10**7) -> tuple[int, int] | None:
        """Return the smallest and the largest total; None if more than `most` combinations would have to be looked at.

        Choices that stand in one table only are settled there; all combinations of the others are looked at.
        """
        tables = self.merged()
        times = Counter(base for bases in tables for base in bases)
        shared = [base for base, n in times.items() if n > 1]
        if math.prod(len(base.values) for base in shared) > most:
            return None
        found = []
        for best in (np.min, np.max):
            total: Any = np.zeros([1] * len(shared), dtype=np.int64)
            for bases, table in tables.items():
                own = tuple(axis for axis, base in enumerate(bases) if base not in shared)
                table = best(table, axis=own)
                kept = [base for base in bases if base in shared]
                order = sorted(range(len(kept)), key=lambda axis: shared.index(kept[axis]))
                shape = [len(base.values) if base in kept else 1 for base in shared]
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

    def active(self) -> int:
        """Return the total for the values that are active."""
        return self.at(_ActiveIndices())


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


class _ActiveIndices(dict[Choice[Any], int]):
    def __missing__(self, choice: Choice[Any]) -> int:
        return choice.index_of(choice.active)


def _traced(model: nn.Module, subnet: Mapping[str, Number] | None, inputs: Any, convention: str) -> FlopCount:
    """Count by running the active path."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # slow to import, and seldom used
    from torch.utils.flop_counter import FlopCounterMode

    if convention != "exact":
        raise ChoiceError(f"convention: a count by running is exact, got {shown(convention)}")
    arguments = arguments_of(inputs)
    state = State.of_module(model)
    try:
        if subnet is not None:
            search_space(model).activate(subnet)
        # With gradients on: the counter fails on views of parameters that have no gradient function (torch 2.14).
        counting = FlopCounterMode(display=False)
        with eval_mode(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counting as counter:
            model(*arguments)
    finally:
        state.put_back()
    by_module: dict[str, int] = {}
    counts = {path: {op: n // 2 for op, n in ops.items()} for path, ops in counter.get_flop_counts().items()}
    root = type(model).__name__
    for path, ops in counts.items():
        inside = [sum(other.values()) for name, other in counts.items() if name.rpartition(".")[0] == path]
        own = sum(ops.values()) - (sum(inside) if path != "Global" else sum(ops.values()))
        if own:
            by_module[path.removeprefix(root).removeprefix(".")] = own
    by_operator: dict[str, int] = {}
    for op, n in counts.get("Global", {}).items():
        word = _OPERATORS.get(str(op).split(".")[-1], str(op))
        by_operator[word] = by_operator.get(word, 0) + n
    return FlopCount(sum(by_operator.values()), by_operator, by_module, NOT_COUNTED)


_OPERATORS = {"mm": "linear", "addmm": "linear", "bmm": "matmul", "baddbmm": "matmul", "convolution": "conv"}


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one subnet for one image.

    Attributes:
        total: Sum of all parts.
        by_operator: Parts by fvcore's names: "linear", "conv", "matmul".
        by_module: Parts by module path; only leaves stand here.
        not_counted: What costs time but is left out.
    """

    total: int
    by_operator: dict[str, int]
    by_module: dict[str, int]
    not_counted: tuple[str, ...]

    def __int__(self) -> int:
        return self.total

    def _rows(self) -> list[tuple[str, int]]:
        """Return the parts as a table shows them: a row for each block, one for each other module."""
        rows: dict[str, int] = {}
        for path, amount in self.by_module.items():
            numbered = re.match(r"(.*?\bblocks(\.\d+)+)\.", path)
            name = (numbered[1] if numbered else path) or "model"
            rows[name] = rows.get(name, 0) + amount
        return list(rows.items())

    def __str__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in [*rows, ("total", 0)])
        lines = [f"{name:<{width}}  {amount:>15,}  {amount / (self.total or 1):6.1%}" for name, amount in rows]
        lines.append(f"{'total':<{width}}  {self.total:>15,}  multiply-adds")
        lines.append(f"not counted: {', '.join(self.not_counted)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(escape(name), f"{amount:,}", f"{amount / (self.total or 1):.1%}") for name, amount in self._rows()]
        rows.append(("total", f"{self.total:,}", "multiply-adds"))
        cells = "".join(f"<tr><th>{name}</th><td>{amount}</td><td>{share}</td></tr>" for name, amount, share in rows)
        return f"<table>{cells}</table>"


NOT_COUNTED = ("bias", "layer norm", "softmax", "activation", "scaling", "residual add", "positions", "pooling")


def product_of(*counts: int | Choice[Any]) -> Cost:
    """Return the product of ints and Dims as a Cost: the parameters of a tensor of that shape."""
    return math.prod((Cost(count) for count in counts), start=Cost(1))


_SAME_TOKENS = (plain.Block, plain.Blocks, plain.Mlp, plain.PatchMerging, plain.PositionGenerator, nn.Sequential)
_FREE = (nn.LayerNorm, plain.LayerScale)


def cost_of(module: nn.Module, tokens: Cost) -> Cost:
    """Return the multiply-adds of a layer, or of a container that hands all its tokens to each of its layers.

    Raises:
        VitasError: a module that states no cost and is no container of vitas.plain or Sequential.
    """
    module = unwrap(module)
    if hasattr(module, "cost"):
        return module.cost(tokens)  # type: ignore[no-any-return, operator]
    if isinstance(module, _FREE) or not any(True for _ in module.parameters()):
        return Cost()
    if type(module) is nn.Linear:
        return (tokens * module.in_features * module.out_features).named("linear")
    if isinstance(module, _SAME_TOKENS):
        layers = module._modules.items()  # not named_children(): a layer that stands there twice runs twice
        return sum((cost_of(layer, tokens).under(name) for name, layer in layers if layer is not None), Cost())
    raise VitasError(f"{type(module).__name__} states no cost: give it a method cost(tokens) -> vitas.cost.Cost")


def params_of(module: nn.Module) -> Cost:
    """Return the active parameters of a module; what no elastic layer owns counts whole."""
    module = unwrap(module)
    if hasattr(module, "param_count"):
        return module.param_count()  # type: ignore[no-any-return, operator]
    own = Cost(sum(parameter.numel() for parameter in module.parameters(recurse=False)))
    return sum((params_of(child).under(name) for name, child in module.named_children()), own)


def _indices(model: nn.Module, subnet: Mapping[str, Number] | None) -> Mapping[Choice[Any], int]:
    """Return the number of every choice's value in `subnet`, or in the active one."""
    nothing = isinstance(subnet, Mapping) and not subnet and not any(holders(model))  # to choose
    if subnet is None or nothing:
        return _ActiveIndices()
    return search_space(model).indices(subnet)


def stated_cost(model: nn.Module, convention: str = "exact") -> Cost:
    """Return what a model says that its subnets cost for one image.

    Raises:
        ChoiceError: another convention.
        VitasError: a model that states no cost, or not for one image.
    """
    if not is_one_of(["exact", "vitas"], convention):
        raise ChoiceError(f"convention: {one_of(['exact', 'vitas'], convention)}")
    state_cost = getattr(model, "cost", None)
    if state_cost is None:
        raise VitasError(
            f"{type(model).__name__} states no cost: give it a method cost() -> vitas.cost.Cost, or count one subnet by"
            " running it with inputs=..."
        )
    name = type(model).__name__
    arguments = {} if convention == "exact" else {"convention": convention}
    if arguments:
        try:
            signature(state_cost).bind_partial(**arguments)
        except (TypeError, ValueError) as error:
            raise ChoiceError(f"convention: {name} states its cost as 'exact' only, got {shown(convention)}") from error
    try:
        cost = state_cost(**arguments)
    except TypeError as error:
        raise VitasError(f"{name} states no cost for one image ({error}); inputs=... counts by running") from error
    if not isinstance(cost, Cost):
        raise VitasError(f"{type(model).__name__}.cost() does not return a vitas.cost.Cost, got {type(cost).__name__}")
    return cost


def count_flops(
    model: nn.Module,
    subnet: Mapping[str, Number] | None = None,
    *,
    inputs: Any = None,
    convention: str = "exact",
) -> FlopCount:
    """Return the multiply-adds of a subnet for one image, whichever attention kernel runs.

    Args:
        model: A model that states its cost, such as a superformer; possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.
        inputs: A tensor or a tuple of arguments for a model that states no cost: the active path is run on them with
            unfused attention and counted by torch's FlopCounterMode; the count is for all of `inputs`.
        convention: "exact": all linear layers, convolutions and matrix products that run. "vitas" (DeiT only): as the
            method's authors count, see DeiTSuperformer.cost.

    Raises:
        ChoiceError: not a subnet of the model's space, or another convention.
        VitasError: a model that states no cost; inputs without a tensor among them.
    """
    model = unwrap(model)
    if inputs is not None:
        return _traced(model, subnet, inputs, convention)
    cost = stated_cost(model, convention)
    by_operator: dict[str, int] = {}
    by_module: dict[str, int] = {}
    for path, operator, amount in cost.parts(_indices(model, subnet)):
        if amount:
            by_operator[operator] = by_operator.get(operator, 0) + amount
            by_module[path] = by_module.get(path, 0) + amount
    return FlopCount(sum(by_module.values()), by_operator, by_module, NOT_COUNTED)


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
            return tables.one(self.space.numbers(codes))
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


def count_params(model: nn.Module, subnet: Mapping[str, Number] | None = None) -> int:
    """Return the number of parameters of a subnet: those of its export.

    Args:
        model: A model with or without elastic layers, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.

    Raises:
        ChoiceError: not a subnet of the model's space.
    """
    return params_of(model).at(_indices(unwrap(model), subnet))

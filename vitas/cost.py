"""Cost as an expression in Choices: a sum of integer tables, each over the few choices that it depends on.

A linear layer between two Dims costs tokens * in * out: one table over (patch size, in, out). Every elastic layer states
its cost that way and containers add them up; a table entry is then the cost of one subnet's layer, exactly, in Python
or numpy integers. The unit is multiply-adds (MACs), which the ViT literature and fvcore 0.1.5 call FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitas import plain
from vitas.choice import Choice
from vitas.errors import ChoiceError, VitasError, one_of
from vitas.space import holders, search_space, unwrap
from vitas.subnet import Number

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
        cost = cls()
        cost._add("", "", choice.bases, np.array(list(values)))
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

    def merged(self) -> Cost:
        """Return the same total without names and places: one table for each set of choices."""
        merged = Cost()
        for (_, _, bases), table in self.terms.items():
            merged._add("", "", bases, table)
        return merged

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


class _ActiveIndices(dict[Choice[Any], int]):
    def __missing__(self, choice: Choice[Any]) -> int:
        return choice.index_of(choice.active)


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

    def __str__(self) -> str:
        width = max(map(len, [*self.by_module, "total"]))
        rows = [f"{name:<{width}}  {amount:>15,}  {amount / self.total:6.1%}" for name, amount in self.by_module.items()]
        rows.append(f"{'total':<{width}}  {self.total:>15,}  MACs (1 multiply-add = 1)")
        rows.append(f"not counted: {', '.join(self.not_counted)}")
        return "\n".join(rows)


NOT_COUNTED = ("bias", "layer norm", "softmax", "activation", "scaling", "residual add", "positions", "pooling")


def product_of(*counts: int | Choice[Any]) -> Cost:
    """Return the product of ints and Dims as a Cost: the parameters of a tensor of that shape."""
    return math.prod((Cost(count) for count in counts), start=Cost(1))


_SAME_TOKENS = (plain.Block, plain.Blocks, plain.Mlp, nn.Sequential)
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
        return sum((cost_of(child, tokens).under(name) for name, child in module.named_children()), Cost())
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
    if subnet is None or (not subnet and not any(True for _ in holders(model))):
        return _ActiveIndices()
    return search_space(model).indices(subnet)


def count_flops(model: nn.Module, subnet: Mapping[str, Number] | None = None, *, convention: str = "exact") -> FlopCount:
    """Return the multiply-adds of a subnet for one image, whichever attention kernel runs.

    Args:
        model: A model that states its cost, such as a superformer; possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.
        convention: "exact": all linear layers, convolutions and matrix products that run. "vitas" (DeiT only): as the
            method's authors count, see DeiTSuperformer.cost.

    Raises:
        ChoiceError: not a subnet of the model's space, or another convention.
        VitasError: a model that states no cost.
    """
    if convention not in ("exact", "vitas"):
        raise ChoiceError(f"convention: {one_of(['exact', 'vitas'], convention)}")
    model = unwrap(model)
    state_cost = getattr(model, "cost", None)
    if state_cost is None:
        raise VitasError(f"{type(model).__name__} states no cost: give it a method cost() -> vitas.cost.Cost")
    cost: Cost = state_cost() if convention == "exact" else state_cost(convention=convention)
    by_operator: dict[str, int] = {}
    by_module: dict[str, int] = {}
    for path, operator, amount in cost.parts(_indices(model, subnet)):
        if amount:
            by_operator[operator] = by_operator.get(operator, 0) + amount
            by_module[path] = by_module.get(path, 0) + amount
    return FlopCount(sum(by_module.values()), by_operator, by_module, NOT_COUNTED)


def count_params(model: nn.Module, subnet: Mapping[str, Number] | None = None) -> int:
    """Return the number of parameters of a subnet: those of its export.

    Args:
        model: A model with or without elastic layers, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.

    Raises:
        ChoiceError: not a subnet of the model's space.
    """
    return params_of(model).at(_indices(unwrap(model), subnet))

"""What a model and its parts say that they cost.

Whoever states a cost has a method for it: `cost(tokens)` of a layer, `cost()` of a model, `param_count()` of both. An
exception that such a method raises is its author's, and comes through as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from vitas import plain
from vitas.cost.expression import Cost
from vitas.errors import ChoiceError, VitasError, is_one_of, one_of, shown
from vitas.space import State, StatesCost, held, needs_tokens, unwrap


@runtime_checkable
class StatesParams(Protocol):
    """A module that says how many of its parameters are active."""

    def param_count(self) -> Cost: ...


@runtime_checkable
class StatesWeights(Protocol):
    """A module of one's own that says which part of its raw parameters is in use; its export is of its own class."""

    def active_weights(self) -> dict[str, Tensor]: ...


@runtime_checkable
class HasConventions(Protocol):
    """A model whose `cost` takes one of several conventions, "exact" among them."""

    conventions: tuple[str, ...]


_SAME_TOKENS = (plain.Block, plain.Blocks, plain.Mlp, plain.PatchMerging, plain.PositionGenerator, nn.Sequential)


_FREE = (nn.LayerNorm, plain.LayerScale)


def cost_of(module: nn.Module, tokens: Cost) -> Cost:
    """Return the multiply-adds of a layer, or of a container that hands all its tokens to each of its layers.

    Raises:
        VitasError: a module that states no cost and is no container of vitas.plain or Sequential; a cost of another type.
    """
    module = unwrap(module)
    if isinstance(module, StatesCost):
        return _checked(module.cost(tokens), f"{type(module).__name__}.cost()")
    if isinstance(module, _FREE) or not any(True for _ in module.parameters()):
        return Cost()
    if type(module) is nn.Linear:
        return (tokens * module.in_features * module.out_features).named("linear")
    if isinstance(module, _SAME_TOKENS):
        layers = module._modules.items()  # not named_children(): a layer that stands there twice runs twice
        costs = {name: cost_of(layer, tokens).under(name) for name, layer in layers if layer is not None}
        if isinstance(module, nn.Sequential):
            _refuse_strides(module, [name for name, cost in costs.items() if cost.terms])
        return sum(costs.values(), Cost())
    raise VitasError(f"{type(module).__name__} states no cost: give it a method cost(tokens) -> vitas.cost.Cost")


def _refuse_strides(row: nn.Sequential, costly: list[str]) -> None:
    """Refuse layers in a row of which one has a stride: they are not given the same tokens."""
    for name, layer in row.named_children():
        if others := [other for other in costly if other != name and _strides(layer)]:
            raise VitasError(
                f"{type(row).__name__} states no cost: {name} has a stride, so {others[0]} sees other tokens;"
                " give it a method cost(tokens) -> vitas.cost.Cost"
            )


def _strides(layer: nn.Module) -> bool:
    """Say whether a convolution, a pool or a row with one among its layers has a stride."""
    if isinstance(layer, _SAME_TOKENS):
        return any(map(_strides, layer.children()))
    stride = getattr(layer, "stride", 1)
    return any(step != 1 for step in (stride if isinstance(stride, tuple) else (stride,)))


def params_of(module: nn.Module) -> Cost:
    """Return the active parameters of a module; what no elastic layer owns counts whole, and once where it is shared.

    Raises:
        VitasError: a count of another type.
    """
    return _params_of(module, set())


def _params_of(module: nn.Module, seen: set[int]) -> Cost:
    module = unwrap(module)
    if id(module) in seen:
        return Cost()
    seen.add(id(module))
    if isinstance(module, StatesParams):
        return _checked(module.param_count(), f"{type(module).__name__}.param_count()")
    if isinstance(module, StatesWeights) and any(True for _ in held(module)):
        name = type(module).__name__
        raise VitasError(f"{name}: its active_weights() are counted by param_count() -> vitas.cost.Cost: give it that too")
    own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
    seen.update(map(id, own))
    count = Cost(sum(parameter.numel() for parameter in own))
    return sum((_params_of(child, seen).under(name) for name, child in module.named_children()), count)


def stated_cost(model: nn.Module, convention: str = "exact") -> Cost:
    """Return what a model says that its subnets cost for one image.

    Raises:
        ChoiceError: another convention.
        VitasError: a model that states no cost, or not for one image; a cost of another type, or of the active subnet only.
    """
    if not is_one_of(["exact", "vitas"], convention):
        raise ChoiceError(f"convention: {one_of(['exact', 'vitas'], convention)}")
    name = type(model).__name__
    if not isinstance(model, StatesCost):
        raise VitasError(
            f"{name} states no cost: give it a method cost() -> vitas.cost.Cost, or count one subnet by"
            " running it with inputs=..."
        )
    if needs_tokens(model):
        raise VitasError(f"{name} states no cost for one image, only for a number of tokens; inputs=... counts by running")
    if convention == "exact":
        return _of_every_subnet(model, lambda: _checked(model.cost(), f"{name}.cost()"), "cost")
    if not isinstance(model, HasConventions):
        raise ChoiceError(f"convention: {name} states its cost as 'exact' only, got {shown(convention)}")
    return _of_every_subnet(model, lambda: _checked(model.cost(convention=convention), f"{name}.cost()"), "cost")


def stated_params(model: nn.Module) -> Cost:
    """Return the active parameters of a model: `params_of`, looked at as a whole.

    Raises:
        VitasError: a count of another type, or of the active subnet only.
    """
    model = unwrap(model)
    return _of_every_subnet(model, lambda: params_of(model), "param_count")


def _of_every_subnet(model: nn.Module, said: Callable[[], Cost], method: str) -> Cost:
    """Return what is said, if that is the same whichever subnet is active: it is an expression in all choices."""
    now = State.of_module(model)
    with now.smallest().restored():
        smallest = said()
    with now.largest().restored():
        largest = said()
    if (path := smallest.differs(largest)) is not None:
        part = f"{type(model).__name__}.{path}" if path else type(model).__name__
        raise VitasError(f"{part}: {method}() reads the active value: state the choice, Cost(dim), not Cost(dim.active)")
    return largest


def _checked(cost: Any, said: str) -> Cost:
    if not isinstance(cost, Cost):
        raise VitasError(f"{said} does not return a vitas.cost.Cost, got {shown(cost)}")
    return cost

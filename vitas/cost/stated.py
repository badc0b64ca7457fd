"""What a model and its parts say that they cost."""

from __future__ import annotations

from inspect import signature

from torch import nn

from vitas import plain
from vitas.cost.expression import Cost
from vitas.errors import ChoiceError, VitasError, is_one_of, one_of, shown
from vitas.space import unwrap

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

"""What every elastic layer offers, and how containers of layers add it up.

An elastic layer holds Choices and has
    active_weights()  the part of its weights in use, by name: the one place that slices, for forward and export alike;
    cost(tokens)      its multiply-adds as a Cost;
    param_count()     its active parameters as a Cost;
    export()          the plain layer of the active subnet, with its own copy of the weights.
Containers need none of these: `cost_of`, `params_of` and `exported` walk through them.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Choice, Dim
from vitas.cost import Cost
from vitas.errors import ExportError, VitasError
from vitas.space import held, unwrap

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class Elastic(Protocol):
    """A layer that states its cost and exports itself."""

    def cost(self, tokens: Cost) -> Cost:
        """Return the multiply-adds for `tokens` tokens (output positions of a convolution)."""

    def param_count(self) -> Cost:
        """Return the number of active parameters."""

    def export(self) -> nn.Module:
        """Return the plain layer of the active subnet."""


_SAME_TOKENS = (plain.Block, plain.Blocks, plain.Mlp, nn.Sequential)
_FREE = (nn.LayerNorm, plain.LayerScale)


def cost_of(module: nn.Module, tokens: Cost) -> Cost:
    """Return the multiply-adds of a layer, or of a container that hands all its tokens to each of its layers.

    Raises:
        VitasError: a module that states no cost and is no container of vitas.plain or Sequential.
    """
    module = unwrap(module)
    if isinstance(module, Elastic):
        return module.cost(tokens)
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


def exported(module: M) -> nn.Module:
    """Return a copy of `module` in which every elastic layer is its plain export and every Choice its active value.

    Raises:
        ExportError: a choice that cannot be reached through attributes, lists, tuples or dicts of modules.
    """
    replaced: dict[int, Any] = {}
    own_weights: list[nn.Module] = []
    _replace(module, replaced, own_weights)
    result = copy.deepcopy(module, replaced)
    for source in own_weights:
        target = replaced[id(source)]
        for name, weight in source.active_weights().items():  # type: ignore[operator]
            setattr(target, name, nn.Parameter(_own(weight), getattr(source, name).requires_grad))
    for path, part in result.named_modules():
        if type(part).__module__.startswith("vitas.nn") or any(True for _ in held(part)):
            raise ExportError(f"{path or type(part).__name__} is still searchable: give the module around it an export()")
    return result


def _replace(module: nn.Module, replaced: dict[int, Any], own_weights: list[nn.Module]) -> None:
    """Note for each elastic layer and each Choice what stands in its place; deepcopy does the rest."""
    inner = unwrap(module)
    if hasattr(inner, "export"):
        replaced[id(module)] = replaced[id(inner)] = inner.export()  # type: ignore[operator]
        return
    if inner is not module:
        replaced[id(module)] = exported(inner)
        return
    for _, choice in held(inner):
        replaced[id(choice)] = _fixed(choice)
    if hasattr(inner, "active_weights"):
        own_weights.append(inner)
    for child in inner.children():
        _replace(child, replaced, own_weights)


def _fixed(choice: Choice[Any]) -> plain.Fixed:
    if isinstance(choice, Dim):
        start, length = choice.run
        return plain.Fixed(length, start, choice.largest)
    return plain.Fixed(choice.active)


def _own(weight: Tensor) -> Tensor:
    return weight.detach().clone(memory_format=torch.contiguous_format)


def filled(layer: nn.Module, empty: M, weights: Mapping[str, Tensor]) -> M:
    """Return `empty`, a plain layer made on the meta device, with copies of `weights` and the training flags of `layer`.

    The meta device keeps an export from touching the random number generator.
    """
    empty.load_state_dict({name: _own(weight) for name, weight in weights.items()}, assign=True)
    flags = {name: parameter.requires_grad for name, parameter in layer.named_parameters()}
    for name, parameter in empty.named_parameters():
        parameter.requires_grad_(flags.get(name, any(flags.values())))
    return like(layer, empty)


def like(source: nn.Module, target: M) -> M:
    """Return `target` in the training mode of `source`, its children as they are."""
    target.training = source.training
    return target


def product_of(*counts: int | Choice[Any]) -> Cost:
    """Return the product of ints and Dims as a Cost: the parameters of a tensor of that shape."""
    return math.prod((Cost(count) for count in counts), start=Cost(1))

"""What every elastic layer offers, and how a model made of them is exported.

An elastic layer holds Choices and has
    active_weights()  the part of its weights in use, by name: the one place that slices, for forward and export alike;
    cost(tokens)      its multiply-adds as a Cost;
    param_count()     its active parameters as a Cost;
    export()          the plain layer of the active subnet, with its own copy of the weights.
Containers need none of these: `vitas.cost.cost_of`, `vitas.cost.params_of` and `exported` walk through them.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Choice, Dim
from vitas.errors import ExportError
from vitas.space import held, unwrap

M = TypeVar("M", bound=nn.Module)


def exported(module: M) -> nn.Module:
    """Return a copy of `module` in which every elastic layer is its plain export and every Choice its active value.

    Raises:
        ExportError: a choice that cannot be reached through attributes, lists, tuples or dicts of modules; a class of
            one's own that changes the forward pass of an elastic layer and inherits its `export`.
    """
    replaced: dict[int, Any] = {}
    own_weights: list[nn.Module] = []
    _replace(module, replaced, own_weights)
    result = copy.deepcopy(module, replaced)
    if any(isinstance(made, Choice) for made in replaced.values()):
        raise ExportError(
            "still searchable: a choice is held elsewhere than in attributes of modules or in lists, tuples, dicts there"
        )
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
    if exports_itself(inner):
        _refuse_another_forward(type(inner))
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


def exports_itself(module: nn.Module) -> bool:
    """Say whether a module has the `export()` of an elastic layer, and not one that wants a path, say."""
    method = getattr(module, "export", None)
    if not callable(method):
        return False
    parameters = inspect.signature(method).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _refuse_another_forward(kind: type[nn.Module]) -> None:
    """Refuse a class of the user's that overrides forward() alone: the export that it inherits computes something else."""
    for base in kind.__mro__:
        if "export" in vars(base):
            return
        if "forward" in vars(base) and not base.__module__.startswith("vitas."):
            raise ExportError(f"{base.__name__} overrides forward() of an elastic layer: give it an export() of its own too")


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
    flags = {key: parameter.requires_grad for key, parameter in layer.named_parameters()}
    for name, parameter in empty.named_parameters():
        # Under a parametrisation the parameter is found inside; pruning and old ones leave others, of other names.
        own = [flag for key, flag in flags.items() if name in key.split(".")] or flags.values()
        parameter.requires_grad_(any(own))
    return like(layer, empty)


def rebuilt(layer: nn.Module, plain_class: type[M], **held: Any) -> M:
    """Return `layer` as the plain class that it narrows: `held` are its attributes, its children are exported."""
    made = plain_class.__new__(plain_class)
    nn.Module.__init__(made)
    for name, child in layer._modules.items():
        made.register_module(name, None if child is None else exported(child))
    for name, value in held.items():
        setattr(made, name, value)
    return like(layer, made)


def like(source: nn.Module, target: M) -> M:
    """Return `target` in the training mode of `source`, its children as they are."""
    target.training = source.training
    return target

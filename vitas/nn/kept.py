"""What of a module goes into its export: data, and nothing else that somebody put on it; what of it goes into copies.

What a forward pass computed and left on a module, such as a table for the next call, is part of the graph of that pass,
which torch does not copy. Copies have its numbers.
"""

import copy
import enum
import functools
import sys
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitas.errors import ExportError

T = TypeVar("T")

TORCHS_OWN = frozenset(vars(nn.Module())) | {"_compiled_call_impl", "_output_capturing_hooks_installed"}
"""Attributes of every module, what torch.compile puts on one, transformers' note that hooks are there: they stay behind."""


def refuse_patches(module: nn.Module) -> None:
    """Refuse a module on whose instance something hides what its class computes by, such as a forward of its own.

    Raises:
        ExportError: with the name.
    """
    for name, value in vars(module).items():
        if name not in TORCHS_OWN and callable(value) and callable(getattr(type(module), name, None)):
            raise ExportError(
                f"a {type(module).__name__} has a {name} of its own, which an export would lose; take it off first:"
                f" del module.{name}"
            )


def refuse_hooked(module: nn.Module) -> None:
    """Refuse a module of which a hook makes a weight before each call: pruning, and the older weight and spectral norms.

    Raises:
        ExportError: with the name.
    """
    if not module._forward_pre_hooks:
        return
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and any(own.startswith(f"{name}_") for own in module._parameters):
            raise ExportError(
                f"a hook makes the {name} of a {type(module).__name__}, which an export would lose; take it off first, as by"
                " prune.remove, or use torch's parametrizations"
            )


def is_data(value: object, kind: type) -> bool:
    """Say whether a value is plain data, or of the library of `kind`: what a class itself puts on its instances."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(is_data(item, kind) for item in value)
    if isinstance(value, dict):
        return all(is_data(item, kind) for item in value.values())
    if isinstance(value, functools.partial):
        return all(is_data(item, kind) for item in (value.func, *value.args, *value.keywords.values()))
    if isinstance(value, FunctionType):
        return _found_by_name(value)
    if isinstance(value, BuiltinFunctionType):
        return not isinstance(value.__self__, (nn.Module, Tensor))
    if isinstance(value, Tensor):
        return value.is_leaf
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, slice, range, enum.Enum, type)):
        return True
    if isinstance(value, (torch.dtype, torch.device)):
        return True
    home = type(value).__module__.partition(".")[0]
    own = home == kind.__module__.partition(".")[0] and home not in ("torch", "vitas")
    return own and not isinstance(value, nn.Module)


def without_computed(value: Any) -> Any:
    """Return a dict without the tensors that a forward pass computed and kept there for the next; any other value itself."""
    if type(value) is not dict:
        return value
    return {key: item for key, item in value.items() if not isinstance(item, Tensor) or item.is_leaf}


def _found_by_name(function: FunctionType) -> bool:
    home = sys.modules.get(function.__module__)
    return "." not in function.__qualname__ and getattr(home, function.__qualname__, None) is function


def copied(what: T, memo: dict[int, Any] | None = None) -> T:
    """Return a deep copy of a module, or of anything that holds modules.

    Args:
        what: What is copied.
        memo: By identity what stands in place of a part, as of `copy.deepcopy`.
    """
    with _Computed():
        return copy.deepcopy(what, memo)


def on_meta(what: T, module: nn.Module) -> T:
    """Return a deep copy in which the parameters and buffers of `module` are on the meta device."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    return copied(what, memo | {id(buffer): buffer.to("meta") for buffer in module.buffers()})


class _Computed(TorchFunctionMode):
    """Let deepcopy take the numbers of tensors that were computed with gradients."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))

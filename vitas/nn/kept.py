"""What of a module goes into its export: data, and nothing else that somebody put on it."""

import enum
import functools
import sys
from types import BuiltinFunctionType, FunctionType

import torch
from torch import Tensor, nn

from vitas.errors import ExportError

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
                f"a {type(module).__name__} has a {name} of its own, which an export would lose or run with the wrong"
                f" weights: take it off (del module.{name}) before exporting"
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


def _found_by_name(function: FunctionType) -> bool:
    home = sys.modules.get(function.__module__)
    return "." not in function.__qualname__ and getattr(home, function.__qualname__, None) is function

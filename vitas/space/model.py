"""A model from outside: without its wrappers, in eval mode, on its device; and the arguments it is called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vitas.errors import ChoiceError, VitasError, shown


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, torch.compile, AveragedModel, Lightning Fabric and the like."""
    if not isinstance(model, nn.Module):
        raise ChoiceError(f"expected a torch.nn.Module, got {type(model).__name__}")
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def _inside(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper of one of these libraries holds: one child, perhaps by two names."""
    if looks_like_a_wrapper(module) and type(module).__module__.partition(".")[0] in _WRAPPING:
        return next(iter(module._modules.values()))
    return None


def looks_like_a_wrapper(module: nn.Module) -> bool:
    """Say whether a module has just one child, and calls it as wrappers do."""
    return list(module._modules) in _CHILDREN and len(set(module._modules.values())) == 1


_WRAPPING = ("torch", "timm", "lightning", "lightning_fabric")


_CHILDREN = (["module"], ["_orig_mod"], ["_forward_module"], ["_forward_module", "_original_module"])


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode for the length of a with block; then each of their parts gets its own flag back."""
    training = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, flag in training.items():
            part.training = flag


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module runs on, that of its first parameter or buffer; the CPU where there is none.

    Raises:
        VitasError: something lies on the meta device, where there are no numbers.
    """
    tensors = list(chain(module.parameters(), module.buffers()))
    if any(tensor.is_meta for tensor in tensors):
        raise VitasError(f"{type(module).__name__} is on the meta device, without numbers; build or load it on a real one")
    return tensors[0].device if tensors else torch.device("cpu")


def arguments_of(inputs: Any, what: str = "inputs") -> tuple[Any, ...]:
    """Return the positional arguments that `inputs` stands for: a tuple as it is, anything else alone.

    Raises:
        ChoiceError: no tensor among them.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(arguments)):
        raise ChoiceError(f"{what}: expected a tensor, or a tuple with a tensor among them, got {shown(inputs)}")
    return arguments


def logits_of(outputs: Any) -> Any:
    """Return the logits among the named outputs of a model of transformers; anything else as it is."""
    return outputs["logits"] if isinstance(outputs, Mapping) and "logits" in outputs else outputs


@runtime_checkable
class StatesCost(Protocol):
    """What states its cost: a model for one image, `cost()`; a layer for tokens, `cost(tokens)`."""

    def cost(self, *tokens: Any, **convention: Any) -> Any: ...


@runtime_checkable
class NeedsTokens(Protocol):
    """A layer of vitas.nn says whether its cost depends on the tokens that it is given."""

    needs_tokens: bool


def needs_tokens(module: nn.Module) -> bool:
    """Say whether a layer has to be told the tokens before it can state its cost."""
    return isinstance(module, NeedsTokens) and module.needs_tokens

"""What searchable models of timm have in common.

Importing this file imports timm; `vitas.wrap` does so when it is used. Written for timm 1.0.23 to 1.0.31.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitas.choice import outside_graphs
from vitas.errors import VitasError
from vitas.space import State
from vitas.superformer.base import OfImages


class Bound(nn.Module):
    """A block that runs in the subnet that was active when this was made, whenever it is run (again)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.state = block, State.of_module(block)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        with self.state.restored():
            return self.block(*inputs, **options)


class Running(nn.Sequential):
    """The blocks that run, as timm's methods want them: counted, sliced, run one by one or all together."""

    slots: Callable[[Tensor], Tensor] | None = None

    @outside_graphs(recursive=False)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.slots is None else self.slots(x)  # type: ignore[no-untyped-call]


def largest(module: nn.Module) -> AbstractContextManager[None]:
    """Activate the largest value of every choice for the length of a with block."""
    return State.of_module(module).largest().restored()


def whole(narrowed: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of the narrowed class, run while the largest subnet is active."""

    @wraps(narrowed)
    def method(self: Model, *arguments: Any, **named: Any) -> Any:
        with largest(self), torch.no_grad():
            return getattr(super(Model, self), narrowed.__name__)(*arguments, **named)

    return method


class Model(OfImages):
    """What searchable models have in common: methods that read or write whole parameters, or make layers."""

    reset_classifier = whole(VisionTransformer.reset_classifier)
    get_submodule, get_parameter = whole(nn.Module.get_submodule), whole(nn.Module.get_parameter)

    def _narrow_head(self) -> None:
        """Make the classifier searchable where it is not."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a new classifier is searchable like the old one."""
        super().__setattr__(name, value)
        if type(value) is nn.Linear:
            self._narrow_head()

    def prune_intermediate_layers(self, *arguments: Any, **named: Any) -> list[int]:
        """Refuse: which blocks run is the choice of a subnet.

        Raises:
            VitasError: always.
        """
        raise VitasError("prune_intermediate_layers: not while the depth can be searched; export a subnet and prune that")


# Whatever else holds a parameter was added by somebody, and no slice of it is known.
_OWN = {"weight", "bias", "gamma", "latent", "cls_token", "reg_token", "dist_token", "pos_embed"}


def unsupported(model: nn.Module, with_weights: Collection[type], with_parts: Collection[type]) -> str | None:
    """Name a part that none of the classes here narrows; None if all can be.

    Args:
        model: The model.
        with_weights: Classes that may hold parameters.
        with_parts: Classes that may hold modules.
    """
    for path, part in model.named_modules():
        own = dict(part.named_parameters(recurse=False))
        parts = any(True for _ in part.children())
        if (own and type(part) not in with_weights) or (parts and type(part) not in with_parts):
            return f"{path} is a {type(part).__name__}"
        if "forward" in vars(part):
            return f"{path or 'the model'} has a forward of its own"
        if unknown := own.keys() - _OWN:
            return f"{path or 'the model'} holds {', '.join(sorted(unknown))}"
    first: dict[nn.Parameter, str] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, path) != path:
            return f"{path} and {first[parameter]} are one parameter"
    return None

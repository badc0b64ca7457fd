"""Layers that somebody puts where a searchable one stood: they follow the same width, or are refused at once."""

from typing import TypeVar, cast

from torch import nn

from vitas.choice import Dim, as_dim
from vitas.errors import ShapeError, VitasError
from vitas.nn.layer import Elastic
from vitas.nn.linear import CyclicLinear
from vitas.nn.norm import ElasticLayerNorm

M = TypeVar("M", bound=nn.Module)


def become(module: nn.Module, narrower: type[M], **held: object) -> M:
    """Narrow the class of `module` by one step and let it hold `held`; all else stays as it is."""
    module.__class__ = narrower
    vars(module).update(held)
    return cast(M, module)


def follow(layer: nn.Module, width: Dim, what: str) -> None:
    """Let a new layer of torch, that reads `width` channels, use those of the active subnet, as the one before it did.

    Elastic layers, what holds one, and what has no weights are left as they are.

    Args:
        layer: What was put there.
        width: Its input channels; of a norm all.
        what: Its name.

    Raises:
        ShapeError: a layer for another number of channels.
        VitasError: a layer that could not follow.
    """
    refuse_stiff(layer, width, what)
    if type(layer) is nn.Linear:
        become(layer, CyclicLinear, in_dim=width, out_dim=as_dim(layer.out_features))
    elif type(layer) is nn.LayerNorm:
        become(layer, ElasticLayerNorm, dim=width)


def refuse_stiff(layer: nn.Module, width: Dim, what: str) -> None:
    """Refuse a layer that could not follow a width.

    Raises:
        ShapeError: a linear layer or a norm for another number of channels.
        VitasError: a layer of another kind with weights and without elastic layers, where the width can be searched.
    """
    channels = {nn.Linear: "in_features", nn.LayerNorm: "normalized_shape"}.get(type(layer))
    if channels is not None:
        if getattr(layer, channels) not in (width.largest, (width.largest,)):
            raise ShapeError(f"{what}: expected {width.largest} channels, as {width.label} has, got {layer}")
    elif not width.fixed and any(True for _ in layer.parameters()) and not any(map(_is_elastic, layer.modules())):
        raise VitasError(
            f"{what}: a {type(layer).__name__} cannot follow {width.label}; expected nn.Linear({width.largest}, ...) or"
            f" a vitas.nn layer of search_space(model).choices[{width.label!r}]"
        )


def _is_elastic(layer: nn.Module) -> bool:
    return isinstance(layer, Elastic)

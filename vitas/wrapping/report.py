"""What of an export the constructor of timm can build."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitas.errors import WrapError
from vitas.sample import use_subnet
from vitas.space import Number, unwrap
from vitas.wrapping.arguments import constructor_arguments
from vitas.wrapping.families import timm_families
from vitas.wrapping.wrap import sized


@dataclass(frozen=True)
class ExportReport:
    """Of which class the export of a subnet will be, and whether that class's own constructor can build it.

    Attributes:
        of_class: The class of the export, one of timm's; its blocks are timm's too.
        arguments: Sizes with which the constructor, or `timm.create_model` for the wrapped model, builds the same network;
            None where it cannot. `save_subnet`, `load_subnet` and `register` take the export either way.
        reasons: Why the constructor cannot.
        of_plain: Parts that timm's classes cannot express, and that are of vitas.plain: attention of a Twins whose heads
            are together narrower or wider than the stage.
    """

    of_class: str
    arguments: dict[str, Any] | None
    reasons: tuple[str, ...]
    of_plain: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.arguments is not None:
            return f"{self.of_class}({', '.join(f'{name}={sized(value)}' for name, value in self.arguments.items())})"
        text = f"{self.of_class}, put together block by block: its constructor cannot, since " + "; ".join(self.reasons)
        if self.of_plain:
            text += f". Of vitas.plain, since timm's have embed_dim channels inside: {', '.join(self.of_plain)}"
        return text


def export_report(model: nn.Module, subnet: Mapping[str, Number] | None = None) -> ExportReport:
    """Say beforehand what `export_subnet` will return for a wrapped model.

    timm's classes express every subnet of a wrapped Vision Transformer, since its blocks are put together one by one; its
    constructor has one size for all blocks, so it builds few of them. Of a wrapped Twins the same holds but for attention
    whose heads do not add up to the width of the stage, which is of vitas.plain inside timm's block.

    Args:
        model: What `wrap` returned, possibly inside DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.

    Raises:
        ChoiceError: not a subnet of the model's space.
        WrapError: a model that `wrap` did not make.
    """
    inner: Any = unwrap(model)
    family = next((f for f in timm_families() if isinstance(inner, tuple(f.MODELS.values()))), None)
    if family is None:
        raise WrapError(f"{type(inner).__name__}: expected what wrap returned; other exports are of vitas.plain")
    with use_subnet(model, subnet) if subnet is not None else nullcontext():
        stages = family.sizes(inner)
        parts = family.beyond_timm(inner)
    reasons = [reason for own in stages for reason in _unlike_constructor(own)]
    kind = type(inner).__bases__[-1]
    arguments = None if reasons else family.arguments([constructor_arguments(own) for own in stages])
    return ExportReport(f"{kind.__module__}.{kind.__qualname__}", arguments, tuple(reasons), tuple(parts))


def _unlike_constructor(own: Any) -> list[str]:
    """Say why timm's constructors, which have one size for all blocks of a stage, cannot build a row of blocks."""
    stage = own.prefix and f"{own.prefix[:-1]}: "
    reasons = [
        f"{stage}{what} differs from block to block: {', '.join(map(str, values))}"
        for what, values in (("num_heads", own.num_heads), ("the hidden width of the MLP", own.mlp_dim))
        if len(set(values)) > 1
    ]
    dim, heads, head_dims = own.embed_dim, own.num_heads[0], set(own.head_dim)
    if len(set(own.num_heads)) == 1 and (dim % heads or head_dims != {dim // heads}):
        width = ", ".join(map(str, head_dims))
        reasons.append(f"{stage}{heads} heads have {width} channels each and not embed_dim / num_heads = {dim / heads:g}")
    if (pooled := own.pool_mlp_dim) not in (None, own.mlp_dim[0]):
        reasons.append(
            f"the MLP of attention pooling keeps its hidden width of {pooled}, those of the blocks have {own.mlp_dim[0]}"
        )
    return reasons

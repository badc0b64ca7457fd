"""What of an export the constructor of timm can build."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn

from vitas.errors import WrapError
from vitas.sample import use_subnet
from vitas.space import Number, gated_children, unwrap
from vitas.wrapping.attention import InPlain
from vitas.wrapping.constructor import constructed
from vitas.wrapping.model import Model
from vitas.wrapping.slots import name_of
from vitas.wrapping.wrap import sized


@dataclass(frozen=True)
class ExportReport:
    """Of which class the export of a subnet will be, and whether that class's own constructor can build it.

    Attributes:
        of_class: The class of the export, one of timm's; its blocks are timm's too.
        arguments: Sizes with which the constructor, or `timm.create_model` for the wrapped model, builds the same network;
            None where it cannot, or where only `save_subnet` finds that out. `save_subnet`, `load_subnet` and `register`
            take the export either way.
        reasons: Why the constructor cannot.
        of_plain: Parts that timm's classes cannot express, and that are of vitas.plain: attention that timm ties to the
            width of its input, whose heads are together narrower or wider.
    """

    of_class: str
    arguments: dict[str, Any] | None
    reasons: tuple[str, ...]
    of_plain: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.arguments is not None:
            return f"{self.of_class}({', '.join(f'{name}={sized(value)}' for name, value in self.arguments.items())})"
        text = f"{self.of_class}, put together block by block and not by its constructor: " + "; ".join(self.reasons)
        if self.of_plain:
            text += f". Of vitas.plain, since timm's have embed_dim channels inside: {', '.join(self.of_plain)}"
        return text


def export_report(model: nn.Module, subnet: Mapping[str, Number] | None = None) -> ExportReport:
    """Say beforehand what `export_subnet` will return for a wrapped model.

    timm's classes express every subnet of a wrapped Vision Transformer, since its blocks are put together one by one; its
    constructor has one size for all blocks, so it builds few of them. The same holds of other classes, but for attention
    that timm ties to the width (of Twins, Swin V2, BEiT, PVTv2, XCiT, CaiT): where the heads do not add up to it, it is of
    vitas.plain inside timm's block, and its window or table cannot be resized after the export.

    Args:
        model: What `wrap` returned, possibly inside DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.

    Raises:
        ChoiceError: not a subnet of the model's space.
        WrapError: a model that `wrap` did not make.

    Example:
        >>> import timm
        >>> model = vitas.wrap(timm.create_model("test_vit"))
        >>> report = vitas.export_report(model, vitas.search_space(model).largest())
        >>> report.of_class, report.reasons
        ('timm.models.vision_transformer.VisionTransformer', ())
    """
    inner: Any = unwrap(model)
    if not isinstance(inner, Model):
        raise WrapError(f"{type(inner).__name__}: expected what wrap returned; other exports are of vitas.plain")
    with use_subnet(model, subnet) if subnet is not None else nullcontext():
        arguments, reasons = constructed(inner)
        parts = [path for path, part in running_parts(inner) if isinstance(part, InPlain) and not part.tied]
    return ExportReport(name_of(inner.shape.narrowed), arguments, reasons, tuple(parts))


def running_parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a model that run in the active subnet, with their paths."""
    yield path, module
    for name, child, gate in gated_children(module):
        if gate is None or gate.choice.index_of(gate.choice.active) in gate.indices:
            yield from running_parts(child, f"{path}.{name}" if path else name)

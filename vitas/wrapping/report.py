"""What of an export the constructor of timm can build."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from vitas.errors import WrapError
from vitas.sample import use_subnet
from vitas.space import Number, gated_children, unwrap
from vitas.wrapping.arguments import constructor_arguments
from vitas.wrapping.attention import InPlain
from vitas.wrapping.model import Model, Stage
from vitas.wrapping.narrow import Narrowed
from vitas.wrapping.slots import name_of
from vitas.wrapping.wrap import sized


@dataclass(frozen=True)
class ExportReport:
    """Of which class the export of a subnet will be, and whether that class's own constructor can build it.

    Attributes:
        of_class: The class of the export, one of timm's; its blocks are timm's too.
        arguments: Sizes with which the constructor, or `timm.create_model` for the wrapped model, builds the same network;
            None where it cannot. `save_subnet`, `load_subnet` and `register` take the export either way.
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
        text = f"{self.of_class}, put together block by block: its constructor cannot, since " + "; ".join(self.reasons)
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
    """
    inner: Any = unwrap(model)
    if not isinstance(inner, Model):
        raise WrapError(f"{type(inner).__name__}: expected what wrap returned; other exports are of vitas.plain")
    with use_subnet(model, subnet) if subnet is not None else nullcontext():
        stages = [sizes(stage) for stage in inner._stages]
        parts = [path for path, part in running_parts(inner) if isinstance(part, InPlain) and not part.tied]
        pools: list[Any] = [
            part.export()
            for part in inner.modules()
            if isinstance(part, Narrowed) and part is inner._modules.get("attn_pool")
        ]
        pooled = [pool.mlp.fc2.in_features for pool in pools if hasattr(pool, "mlp")]
    reasons = [reason for own in stages for reason in _unlike_constructor(own, pooled)]
    kind = inner.shape.narrowed
    if name_of(kind) not in _CONSTRUCTED:
        reasons.append(f"what builds a {kind.__name__} of these sizes is not known here")
    arguments = None if reasons else _arguments(stages)
    return ExportReport(name_of(kind), arguments, tuple(reasons), tuple(parts))


_CONSTRUCTED = (
    "timm.models.vision_transformer.VisionTransformer",
    "timm.models.deit.VisionTransformerDistilled",
    "timm.models.twins.Twins",
)
"""Classes whose constructors' arguments are known."""


class Sizes(NamedTuple):
    """The sizes of the blocks of a stage that run."""

    prefix: str  # of the names of its choices
    embed_dim: int
    num_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    mlp_dim: tuple[int, ...]
    stacks: tuple[int, ...]  # parts of the first layer of each MLP: 2 where it makes values and gates


def sizes(stage: Stage) -> Sizes:
    """Return the sizes of a stage in the active subnet."""
    run = [block for slot, block in enumerate(stage.blocks) if stage.depth.runs(slot)]
    heads = [pair for block in run for pair in block.heads[:1]]
    hidden = [pair for block in run for pair in block.hidden[:1]]
    return Sizes(
        stage.prefix,
        stage.width.active,
        tuple(dim.active for dim, _ in heads),
        tuple(head_dim for _, head_dim in heads),
        tuple(dim.active for dim, _ in hidden),
        tuple(stacks for _, stacks in hidden),
    )


def running_parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a model that run in the active subnet, with their paths."""
    yield path, module
    for name, child, gate in gated_children(module):
        if gate is None or gate.choice.index_of(gate.choice.active) in gate.indices:
            yield from running_parts(child, f"{path}.{name}" if path else name)


def _arguments(stages: Sequence[Sizes]) -> dict[str, Any]:
    """Return the arguments of the constructor that build all stages."""
    rows = [constructor_arguments(own) for own in stages]
    if not stages[0].prefix:
        return dict(rows[0])
    names = {"embed_dims": "embed_dim", "depths": "depth", "num_heads": "num_heads", "mlp_ratios": "mlp_ratio"}
    return {several: [row[one] for row in rows] for several, one in names.items()}


def _unlike_constructor(own: Sizes, pooled: Sequence[int]) -> list[str]:
    """Say why timm's constructors, which have one size for all blocks of a stage, cannot build a row of blocks."""
    stage = own.prefix and f"{own.prefix[:-1]}: "
    reasons = [
        f"{stage}{what} differs from block to block: {', '.join(map(str, values))}"
        for what, values in (("num_heads", own.num_heads), ("the hidden width of the MLP", own.mlp_dim))
        if len(set(values)) > 1
    ]
    dim, heads, head_dims = own.embed_dim, next(iter(own.num_heads), 1), set(own.head_dim)
    if len(set(own.num_heads)) == 1 and (dim % heads or head_dims != {dim // heads}):
        width = ", ".join(map(str, head_dims))
        reasons.append(f"{stage}{heads} heads have {width} channels each and not embed_dim / num_heads = {dim / heads:g}")
    return reasons + [
        f"the MLP of attention pooling keeps its hidden width of {width}, those of the blocks have {own.mlp_dim[0]}"
        for width in pooled
        if width != own.mlp_dim[0]
    ]

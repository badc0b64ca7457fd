"""The arguments with which timm's constructors build a subnet, which have one size for all blocks of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vitas.wrapping.arguments import constructor_arguments
from vitas.wrapping.narrow import Narrowed
from vitas.wrapping.slots import name_of

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
    depth: int
    num_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    mlp_dim: tuple[int, ...]
    stacks: tuple[int, ...]  # parts of the first layer of each MLP: 2 where it makes values and gates


def sizes(stage: Any) -> Sizes:
    """Return the sizes of a stage in the active subnet."""
    run = [block for slot, block in enumerate(stage.blocks) if stage.depth.runs(slot)]
    heads = [pair for block in run for pair in block.heads[:1]]
    hidden = [pair for block in run for pair in block.hidden[:1]]
    return Sizes(
        stage.prefix,
        stage.width.active,
        len(run),
        tuple(dim.active for dim, _ in heads),
        tuple(head_dim for _, head_dim in heads),
        tuple(dim.active for dim, _ in hidden),
        tuple(stacks for _, stacks in hidden),
    )


def constructed(model: Any) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the active subnet's sizes in the words of the constructor, or None and why there are none."""
    stages = [sizes(stage) for stage in model._stages]
    pools: list[Any] = [
        part.export() for part in model.modules() if isinstance(part, Narrowed) and part is model._modules.get("attn_pool")
    ]
    pooled = [pool.mlp.fc2.in_features for pool in pools if hasattr(pool, "mlp")]
    reasons, kind = [reason for own in stages for reason in _irregular(own)], model.shape.narrowed
    if name_of(kind) in _CONSTRUCTED:
        reasons += [reason for own in stages for reason in _unlike_constructor(own, pooled)]
    else:
        reasons.append("whether that builds these sizes is found out by save_subnet")
    return (None if reasons else _arguments(stages)), tuple(reasons)


def _arguments(stages: Sequence[Sizes]) -> dict[str, Any]:
    """Return the arguments of the constructor that build all stages."""
    per_stage = [constructor_arguments(own) for own in stages]
    if not stages[0].prefix:
        return dict(per_stage[0])
    names = {"embed_dims": "embed_dim", "depths": "depth", "num_heads": "num_heads", "mlp_ratios": "mlp_ratio"}
    return {several: [own[one] for own in per_stage] for several, one in names.items()}


def _irregular(own: Sizes) -> list[str]:
    """Say what differs between the blocks of a stage, for all of which timm's constructors have one size."""
    return [
        f"{_of(own)}{what} differs from block to block: {', '.join(map(str, values))}"
        for what, values in (("num_heads", own.num_heads), ("the hidden width of the MLP", own.mlp_dim))
        if len(set(values)) > 1
    ]


def _of(own: Sizes) -> str:
    return own.prefix and f"{own.prefix[:-1]}: "


def _unlike_constructor(own: Sizes, pooled: Sequence[int]) -> list[str]:
    """Say which sizes of a row of blocks follow others in timm's constructors, and here do not."""
    reasons, dim, heads, head_dims = [], own.embed_dim, next(iter(own.num_heads), 1), set(own.head_dim)
    if len(set(own.num_heads)) == 1 and (dim % heads or head_dims != {dim // heads}):
        width = ", ".join(map(str, head_dims))
        reasons.append(f"{_of(own)}{heads} heads have {width} channels each and not embed_dim / num_heads = {dim / heads:g}")
    return reasons + [
        f"the MLP of attention pooling keeps its hidden width of {width}, those of the blocks have {own.mlp_dim[0]}"
        for width in pooled
        if width != own.mlp_dim[0]
    ]

"""The blocks of which superformers are made, a floor below the models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from vitas import plain
from vitas.checks import are_several, as_flag
from vitas.choice import Choice, Dim
from vitas.errors import ChoiceError
from vitas.fields import check_field
from vitas.nn import (
    DropPath,
    ElasticAttention,
    ElasticLayerNorm,
    ElasticMlp,
    ElasticSubsampledAttention,
    ElasticWindowAttention,
    LayerScale,
    ShiftableIdentity,
)
from vitas.sharing import Sharing
from vitas.superformer.arguments import Count, Ratio, Width, choice_of, depths_of, dim_of, for_each_block

_ALLOWED: dict[str, Any] = {
    "norm_eps": plain.Eps,
    "proj_drop_rate": plain.Rate,
    "attn_drop_rate": plain.Rate,
    "drop_path_rate": plain.Rate,
    "qkv_bias": bool,
    "init_values": plain.Gain | None,
}
"""What options may be, as in the description of a block, `plain.TokenBlockConfig`."""


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a superformer have in common: those of its arguments, under their names, that are plain values.

    Raises:
        ChoiceError: a value that is not allowed, with its name.
    """

    patterns: Mapping[str, Sharing]  # of each kind of choice, see arguments.patterns_of
    private: str | None
    norm_eps: float
    proj_drop_rate: float
    attn_drop_rate: float
    drop_path_rate: float
    qkv_bias: bool = True
    qk_norm: bool = False
    init_values: float | None = None
    head_dim: int | None = None
    several_heads: bool = False  # whether some block has: one with a single head count then has no private copies

    def __post_init__(self) -> None:
        as_flag(self.qk_norm, "qk_norm")
        for name, hint in _ALLOWED.items():
            value = check_field(hint, getattr(self, name), name, ChoiceError)
            object.__setattr__(self, name, value)  # numpy's numbers are Python's from here on


class BlockValues(NamedTuple):
    """What the choices of a block are made of: of each one value or several, or a Choice."""

    num_heads: Count
    qkv_dim: Width | None
    mlp_dim: Width | None
    mlp_ratio: Ratio


def values_of(blocks: Sequence[str], **given: Any) -> list[BlockValues]:
    """Return what the choices of each block are made of.

    Args:
        blocks: Names of the blocks.
        given: Arguments in the order of BlockValues' fields, see `for_each_block`.
    """
    words = zip(given.items(), BlockValues._fields, strict=True)
    columns = [for_each_block(what, values, blocks, word) for (what, values), word in words]
    return [BlockValues(*row) for row in zip(*columns, strict=True)]


def several_heads(blocks: Iterable[BlockValues]) -> bool:
    """Say whether some block has several head counts."""
    heads = (values.num_heads for values in blocks)
    return any(not own.fixed if isinstance(own, Choice) else are_several(own) and len([*own]) > 1 for own in heads)


def token_block(name: str, width: Dim, values: BlockValues, options: BlockOptions) -> plain.Block:
    """Return a block (B, N, D) -> (B, N, D); `name` is what the names of its choices begin with."""
    heads, qkv_dim = _heads_of(name, values, options)
    attention = ElasticAttention(
        width,
        heads,
        head_dim=options.head_dim,
        qkv_dim=qkv_dim,
        private=_private_of(heads, options),
        qkv_bias=options.qkv_bias,
        qk_norm=options.qk_norm,
        attn_drop=options.attn_drop_rate,
        proj_drop=options.proj_drop_rate,
        norm_eps=options.norm_eps,
    )
    return _block(name, width, attention, values, options)


def map_block(
    name: str, width: Dim, values: BlockValues, options: BlockOptions, window: Choice[int] | None, sr_ratio: int
) -> plain.Block:
    """Return a block (B, H, W, D) -> (B, H, W, D), which attends inside windows or, without, to a coarser map."""
    heads, qkv_dim = _heads_of(name, values, options)
    common: dict[str, Any] = {"qkv_dim": qkv_dim, "private": _private_of(heads, options)}
    common |= {"attn_drop": options.attn_drop_rate, "proj_drop": options.proj_drop_rate}
    attention: nn.Module
    if window is not None:
        attention = ElasticWindowAttention(width, heads, window, **common)
    else:
        attention = ElasticSubsampledAttention(width, heads, sr_ratio, **common)
    return _block(name, width, attention, values, options)


def _private_of(heads: Dim, options: BlockOptions) -> str | None:
    return None if heads.fixed and options.several_heads else options.private


def _heads_of(name: str, values: BlockValues, options: BlockOptions) -> tuple[Dim, Dim | None]:
    heads = dim_of(values.num_heads, f"{name}.num_heads", options.patterns["num_heads"])
    return heads, None if values.qkv_dim is None else dim_of(values.qkv_dim, f"{name}.qkv_dim", options.patterns["qkv_dim"])


def _block(name: str, width: Dim, attention: nn.Module, values: BlockValues, options: BlockOptions) -> plain.Block:
    """Return a block around `attention`; its DropPath modules, if any, get their rates when those are laid."""
    if values.mlp_dim is None:
        hidden = choice_of(values.mlp_ratio, f"{name}.mlp_ratio") * width
    else:
        hidden = dim_of(values.mlp_dim, f"{name}.mlp_dim", options.patterns["mlp_dim"])
    gain = options.init_values
    return plain.Block(
        ElasticLayerNorm(width, options.norm_eps),
        attention,
        ElasticLayerNorm(width, options.norm_eps),
        ElasticMlp(width, hidden, drop=options.proj_drop_rate),
        *(None if gain is None else LayerScale(width, gain) for _ in range(2)),
        *(DropPath() if options.drop_path_rate else None for _ in range(2)),
    )


def row_of(
    block: Callable[[int], nn.Module],
    depth: int | Iterable[int],
    depth_p: float | Sequence[float] | None,
    shift: bool,
    stage: str | None = None,
) -> ShiftableIdentity:
    """Return the blocks of a model, or of one of its stages; `block` makes that of a slot."""
    prefix = "" if stage is None else f"{stage}."
    least, slots, step = depths_of(depth, f"{prefix}depth")
    name = f"{prefix}depth" if shift else "blocks.use" if stage is None else f"{prefix}use"
    return ShiftableIdentity(map(block, range(slots)), min_depth=least, step=step, p=depth_p, shift=shift, name=name)

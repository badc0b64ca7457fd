"""timm's Twins made searchable, by the same one-step subclasses as its Vision Transformer (timm_vit.py).

One thing is beyond timm's classes: their attention has as many channels inside as outside. Where the heads in use add up to
another width, the same layers run as attention of `vitas.nn`, exported as attention of `vitas.plain` inside timm's block.

Importing this file imports timm; `vitas.wrap` does so when it is used. Written for timm 1.0.23 to 1.0.31.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

from timm.models import twins
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Dim, as_choice, as_dim, compiling, mark_sizes, outside_graphs
from vitas.cost import Cost, Map
from vitas.nn import (
    CyclicLinear,
    Elastic,
    ElasticConv2d,
    ElasticSubsampledAttention,
    ElasticWindowAttention,
    ShiftableIdentity,
)
from vitas.nn.layer import exported, like
from vitas.nn.stacked import StackedLinear
from vitas.superformer.twins import cost_of_stages
from vitas.wrapping import timm_model
from vitas.wrapping.sizes import Row, Sizes
from vitas.wrapping.timm_layers import MLPS, NORMS, become, narrow_mlp, narrow_norm, stretch_drop_path
from vitas.wrapping.timm_model import Model

OurAttention = ElasticWindowAttention | ElasticSubsampledAttention


class TwinsAttention(Elastic):
    """timm's attention with a searchable number of heads of timm's head width.

    Shapes: (B, N, D) -> (B, N, D), D = width.active; inside h = heads.active heads, d = inner.active.
    Cost: that of the attention of vitas.nn with the same layers.
    """

    holds = ("ours",)
    width: Dim
    heads: Dim
    inner: Dim
    ours: OurAttention
    dim = property(lambda self: self.width.active)
    num_heads = property(lambda self: self.heads.active)

    @property
    def of_plain(self) -> bool:
        """Whether timm's class cannot express the active subnet."""
        return self.inner.active != self.width.active

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Run timm's code where it can express the active subnet, else ours; compiled, one graph of ours serves both."""
        if compiling() or self.of_plain:
            return cast(Tensor, like(self, self.ours)(x, size))
        return cast(Tensor, super().forward(x, size))

    def cost(self, tokens: Cost) -> Cost:
        """Return the cost of the same attention of vitas.nn."""
        return self.ours.cost(tokens)

    def export(self) -> nn.Module:
        """Return timm's attention where it can express the active subnet, else that of vitas.plain."""
        if not self.of_plain:
            return super().export()
        made = in_plain(self, self.heads.active, lambda part: None if part is None else exported(part))
        for name in ("attn_drop", "proj_drop"):
            made.register_module(name, exported(getattr(self, name)))
        return like(self, made)

    def extra_repr(self) -> str:
        return f"num_heads={self.heads.brief()}"


class _LocallyGroupedAttn(TwinsAttention, twins.LocallyGroupedAttn):
    pass


class _GlobalSubSampleAttn(TwinsAttention, twins.GlobalSubSampleAttn):
    pass


def in_plain(
    attention: Any, heads: int, part: Callable[[nn.Module | None], Any]
) -> plain.WindowAttention | plain.SubsampledAttention:
    """Return attention of vitas.plain made of what `part` gives for the layers of timm's."""
    if isinstance(attention, twins.LocallyGroupedAttn):
        return plain.WindowAttention(part(attention.qkv), part(attention.proj), heads, attention.ws)
    q, kv, proj = part(attention.q), part(attention.kv), part(attention.proj)
    return plain.SubsampledAttention(q, kv, proj, heads, part(attention.sr), part(attention.norm))


def ours(attention: Any, width: Dim, heads: Dim, inner: Dim) -> OurAttention:
    """Return attention of vitas.nn that has the very layers of timm's, also those that are put there later."""
    of_plain = in_plain(attention, heads.largest, lambda part: part)
    for name in of_plain._modules.keys() - attention._modules.keys():
        vars(of_plain)[name] = of_plain._modules[name]
    vars(of_plain)["_modules"] = attention._modules
    return elastic(of_plain, width, heads, inner)


def elastic(
    attention: plain.WindowAttention | plain.SubsampledAttention, width: Dim, heads: Dim, inner: Dim
) -> OurAttention:
    """Make attention of vitas.plain searchable, its layers being so already."""
    if isinstance(attention, plain.WindowAttention):
        window = as_choice(attention.window_size, "window_size")
        return become(attention, ElasticWindowAttention, num_heads=heads, window_size=window, dim=width, qkv_dim=inner)
    ratio: Any = 1 if attention.sr is None else cast(nn.Conv2d, attention.sr).stride[0]
    return become(attention, ElasticSubsampledAttention, num_heads=heads, sr_ratio=ratio, dim=width, qkv_dim=inner)


class _Block(Elastic, twins.Block):
    @outside_graphs(recursive=False)
    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Run timm's code; torch.compile compiles that, and not the row of blocks."""
        mark_sizes(x)
        x = super().forward(x, size)
        mark_sizes(x)
        return x


class _PosConv(Elastic, twins.PosConv):
    pass


class _PatchEmbed(Elastic, twins.PatchEmbed):
    pass


class ElasticTwins(Model, twins.Twins):
    """timm's Twins of which each stage's width and number of blocks, and each block's heads and MLP width, can be searched.

    Attributes and methods of timm's class follow the active subnet: `embed_dims`, `depths`, `feature_info`, `blocks` (those
    that run), `forward_intermediates`... Checkpoint keys and shapes are those of the whole model. The position generator
    follows the first block of a stage; the kind of attention belongs to the slot.

    Shapes: (B, C, H, W) -> (B, classes), any H and W that leave each stage a map.
    Cost: patches, blocks, position generators and classifier of the active subnet in MACs, for an image of the model's size.
    Source: timm 1.0.23 to 1.0.31, `timm/models/twins.py`; which channels a width uses: vitas.sharing.
    """

    widths: list[Dim]
    patch_embeds: Any
    pos_block: Any
    norm: Any
    embed_dims = property(lambda self: [dim.active for dim in self.widths])
    depths = property(lambda self: [len(row) for row in self.blocks])
    num_features = head_hidden_size = property(lambda self: self.widths[-1].active)

    @property
    def blocks(self) -> nn.ModuleList:
        """For each stage the blocks that run."""
        rows = cast("list[ShiftableIdentity]", self._modules["blocks"])
        return nn.ModuleList(nn.ModuleList(row.running()) for row in rows)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What `forward_intermediates` returns: for each stage its channels and how many pixels a position stands for."""
        return [{**info, "num_chs": dim.active} for info, dim in zip(vars(self)["feature_info"], self.widths, strict=True)]

    def image_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of an image; only counts depend on the size."""
        first = self.patch_embeds[0]
        return first.proj.in_channels, *first.img_size

    def cost(self, tokens: Cost | None = None) -> Cost:
        """Return the multiply-adds for one image of the model's size; `tokens` is not used."""
        return cost_of_stages(self, [Map(embed.H, embed.W) for embed in self.patch_embeds])

    def export(self) -> nn.Module:
        """Return timm's model of the active subnet, its blocks of different sizes, with its own copy of the weights."""
        exported: Any = super().export()
        exported.blocks = like(exported.blocks, nn.ModuleList(like(row, nn.ModuleList(row)) for row in exported.blocks))
        return cast(nn.Module, exported)

    def _narrow_head(self) -> None:
        narrow_head(self)


MODELS: dict[type[nn.Module], type[ElasticTwins]] = {twins.Twins: ElasticTwins}


ATTENTION: dict[type[nn.Module], type[TwinsAttention]] = {
    twins.LocallyGroupedAttn: _LocallyGroupedAttn,
    twins.GlobalSubSampleAttn: _GlobalSubSampleAttn,
}


_OURS = (plain.WindowAttention, plain.SubsampledAttention)


_WITH_WEIGHTS = {nn.Linear, nn.Conv2d, *NORMS}


_WITH_PARTS = {*MODELS, *ATTENTION, *_OURS, *MLPS}
_WITH_PARTS |= {twins.Block, twins.PosConv, twins.PatchEmbed, nn.Sequential, nn.ModuleList}


def unsupported(model: nn.Module) -> str | None:
    """Name a part that none of the classes here narrows; None if all can be."""
    return timm_model.unsupported(model, _WITH_WEIGHTS, _WITH_PARTS)


def supported_parts() -> str:
    """Return the kinds of parts that can be narrowed, for error messages."""
    kinds = [twins.Block, *ATTENTION, *MLPS, *NORMS, twins.PosConv, twins.PatchEmbed]
    return ", ".join(dict.fromkeys(kind.__name__ for kind in kinds))


def sizes(model: Any) -> list[Sizes]:
    """Return the sizes of each stage of a timm Twins."""
    return [
        Sizes.of(f"stages.{stage}.", dim, 1, row)
        for stage, (dim, row) in enumerate(zip(model.embed_dims, model.blocks, strict=True))
    ]


def arguments(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments of the constructor that build all stages."""
    names = {"embed_dims": "embed_dim", "depths": "depth", "num_heads": "num_heads", "mlp_ratios": "mlp_ratio"}
    return {several: [row[one] for row in rows] for several, one in names.items()}


def beyond_timm(model: Any) -> list[str]:
    """Return the attention that timm's classes cannot express in the active subnet."""
    parts = model.blocks.named_modules()
    return [f"blocks.{name}" for name, part in parts if isinstance(part, TwinsAttention) and part.of_plain]


def narrow(model: nn.Module, rows: Sequence[Row]) -> nn.Module:
    """Make a timm Twins searchable in place.

    Args:
        model: One of exactly the classes in `MODELS`, all of whose parts are supported.
        rows: The choices of each stage.
    """
    own: Any = model
    stages: list[nn.ModuleList] = list(own.blocks)
    stretch_drop_path(stages, [row.depth for row in rows])
    for stage, row in zip(stages, rows, strict=True):
        for slot, block in enumerate(stage):
            narrow_block(block, row.width, row.heads[slot], row.hidden[slot])
        become(stage, ShiftableIdentity, shift=True, depth=row.depth)
    widths = [row.width for row in rows]
    before = pairwise([as_dim(own.patch_embeds[0].proj.in_channels, "in_chans"), *widths])
    for embed, generator, (in_dim, width) in zip(own.patch_embeds, own.pos_block, before, strict=True):
        become(embed.proj, ElasticConv2d, in_dim=in_dim, out_dim=width, depthwise=False)
        narrow_norm(embed.norm, width)
        become(embed, _PatchEmbed)
        become(generator.proj[0], ElasticConv2d, in_dim=width, out_dim=width, depthwise=True)
        become(generator, _PosConv)
    narrow_norm(own.norm, widths[-1])
    result = become(model, ElasticTwins, widths=widths)
    narrow_head(result)
    return result


def narrow_head(model: ElasticTwins) -> None:
    """Make the classifier searchable where it is not."""
    head: Any = model.head
    if type(head) is nn.Linear:
        become(head, CyclicLinear, in_dim=model.widths[-1], out_dim=as_dim(head.out_features, "num_classes"))


def narrow_block(block: nn.Module, width: Dim, heads: Dim, hidden: Dim) -> None:
    """Make the parts of a block searchable."""
    attn: Any = block.attn
    inner = heads * (attn.proj.in_features // attn.num_heads)
    for name, stacks in (("qkv", 3), ("kv", 2)):
        if name in attn._modules:
            become(attn._modules[name], StackedLinear, in_dim=width, out_dim=inner, stacks=stacks)
    if "q" in attn._modules:
        become(attn.q, CyclicLinear, in_dim=width, out_dim=inner)
    become(attn.proj, CyclicLinear, in_dim=inner, out_dim=width)
    if attn._modules.get("sr") is not None:
        become(attn.sr, ElasticConv2d, in_dim=width, out_dim=width, depthwise=False)
    narrow_norm(attn._modules.get("norm"), width)
    if type(attn) in ATTENTION:
        same = ours(attn, width, heads, inner)
        become(attn, ATTENTION[type(attn)], width=width, heads=heads, inner=inner, ours=same)
    else:
        elastic(attn, width, heads, inner)
    narrow_mlp(cast(nn.Module, block.mlp), width, hidden)
    for norm in (block.norm1, block.norm2):
        narrow_norm(norm, width)
    become(block, _Block)

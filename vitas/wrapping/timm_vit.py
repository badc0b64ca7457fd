"""timm's Vision Transformer made searchable, by layers of timm_layers.py.

Importing this file imports timm; `vitas.wrap` does so when it is used. Written for timm 1.0.23 to 1.0.31.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm import layers
from timm.models import deit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitas.choice import Dim, as_dim, outside_graphs
from vitas.cost import Cost, cost_of
from vitas.errors import VitasError
from vitas.nn import CyclicLinear, ElasticConv2d, ShiftableIdentity
from vitas.nn.layer import Axes, like
from vitas.nn.stacked import StackedLinear
from vitas.wrapping import timm_model
from vitas.wrapping.sizes import Row, Sizes, width_into
from vitas.wrapping.timm_layers import (
    BLOCKS,
    MLPS,
    NORMS,
    POOLS,
    ChannelScale,
    HeadwiseAttention,
    become,
    narrow_mlp,
    narrow_norm,
    part,
    stretch_drop_path,
)
from vitas.wrapping.timm_model import Bound, Model, Running, whole


class ElasticVisionTransformer(Model, VisionTransformer):
    """timm's Vision Transformer of which the width, and of whose blocks heads, MLP width and number, can be searched.

    Attributes and methods of timm's class follow the active subnet: `embed_dim`, `cls_token`, `blocks` (those that run),
    `forward_intermediates`... Checkpoint keys and shapes are those of the whole model.

    Shapes: (B, C, H, W) -> (B, classes).
    Cost: patches, blocks, attention pooling and classifier of the active subnet in MACs, for an image of the model's size.
    Source: timm 1.0.23 to 1.0.31, `timm/models/vision_transformer.py`; which channels a width uses: vitas.sharing.
    """

    width: Dim
    patch_embed: Any
    norm_pre: Any
    norm: Any
    attn_pool: Any
    fc_norm: Any
    global_pool: str
    num_prefix_tokens: int
    pool_include_prefix: bool
    grad_checkpointing: bool
    embed_dim = num_features = head_hidden_size = property(lambda self: self.width.active)
    cls_token, reg_token, pos_embed = part("cls_token"), part("reg_token"), part("pos_embed")

    @property
    def blocks(self) -> nn.Sequential:
        """The blocks that run; under gradient checkpointing each is bound to the active subnet."""
        return self._running()

    @outside_graphs  # or torch.compile would make a graph for each depth
    def _running(self) -> nn.Sequential:
        slots = cast(ShiftableIdentity, self._modules["blocks"])
        bound = self.grad_checkpointing and torch.is_grad_enabled()
        running = Running(*(Bound(block) if bound else block for block in slots.running()))
        vars(running)["slots"] = slots  # not as a child
        return running

    def axes(self) -> Axes:
        """Return `width` for the channels of tokens and positions."""
        return dict.fromkeys(self._parameters, (None, None, self.width))

    def image_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of an image.

        Raises:
            VitasError: a model that does not know the size of its images.
        """
        size = self.patch_embed.img_size
        if size is None:
            raise VitasError("this model does not know the size of its images; give it one by set_input_size")
        return self.patch_embed.proj.in_channels, *size

    def cost(self, tokens: Cost | None = None) -> Cost:
        """Return the multiply-adds for one image of the model's size; `tokens` is not used.

        Raises:
            VitasError: a model that does not know the size of its images.
        """
        self.image_shape()
        patches = self.patch_embed.num_patches
        cost = cost_of(self.patch_embed.proj, Cost(patches)).under("patch_embed.proj")
        inside = Cost(patches + self.num_prefix_tokens)
        cost += cost_of(cast(nn.Module, self._modules["blocks"]), inside).under("blocks")
        pooled = Cost(1) if self.global_pool or self.attn_pool is not None else inside
        if self.attn_pool is not None:
            cost += cost_of(self.attn_pool, inside if self.pool_include_prefix else Cost(patches)).under("attn_pool")
        for name in ("head", "head_dist"):
            if name in self._modules:
                cost += cost_of(cast(nn.Module, self._modules[name]), pooled).under(name)
        return cost

    def export(self) -> nn.Module:
        """Return timm's model of the active subnet, its blocks of different sizes, with its own copy of the weights."""
        plain: Any = super().export()
        plain.blocks = like(plain, nn.Sequential(*plain.blocks))
        vars(plain).pop("_model_args", None)  # what timm.create_model was given says no longer what the network is
        plain.feature_info = [{**info, "num_chs": plain.embed_dim} for info in plain.feature_info[: len(plain.blocks)]]
        return cast(nn.Module, plain)

    init_weights, load_pretrained = whole(VisionTransformer.init_weights), whole(VisionTransformer.load_pretrained)
    _set_input_size = whole(VisionTransformer.set_input_size)

    def set_input_size(self, *sizes: Any, **named: Any) -> None:
        """Set the size of images, and of patches, as timm does; the tables are resampled whole."""
        self._set_input_size(*sizes, **named)
        narrow_stem(self)

    def _narrow_head(self) -> None:
        narrow_head(self)


class ElasticVisionTransformerDistilled(ElasticVisionTransformer, deit.VisionTransformerDistilled):
    """The same with a distillation token and its classifier (DeiT).

    Shapes: (B, C, H, W) -> (B, classes); while training with `set_distilled_training`, a pair of them.
    Source: timm 1.0.23 to 1.0.31, `timm/models/deit.py`.
    """

    dist_token = part("dist_token")


MODELS: dict[type[nn.Module], type[ElasticVisionTransformer]] = {
    VisionTransformer: ElasticVisionTransformer,
    deit.VisionTransformerDistilled: ElasticVisionTransformerDistilled,
}


_WITH_WEIGHTS = {nn.Linear, nn.Conv2d, layers.LayerScale, *NORMS, *MODELS, layers.AttentionPoolLatent}


_WITH_PARTS = {*MODELS, *BLOCKS, *MLPS, *POOLS, layers.Attention, layers.PatchEmbed, nn.Sequential}


def unsupported(model: nn.Module) -> str | None:
    """Name a part that none of the classes here narrows; None if all can be."""
    return timm_model.unsupported(model, _WITH_WEIGHTS, _WITH_PARTS)


def supported_parts() -> str:
    """Return the kinds of parts that can be narrowed, for error messages."""
    kinds = [*BLOCKS, layers.Attention, *MLPS, *NORMS, layers.LayerScale, layers.PatchEmbed, *POOLS]
    return ", ".join(dict.fromkeys(kind.__name__ for kind in kinds))


def sizes(model: Any) -> list[Sizes]:
    """Return the sizes of a timm Vision Transformer."""
    pool = model.attn_pool
    own = Sizes.of("", model.embed_dim, 1 if pool is None else pool.head_dim, model.blocks)
    return [own._replace(pool_mlp_dim=width_into(pool.mlp.fc2) if isinstance(pool, layers.AttentionPoolLatent) else None)]


def arguments(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments of the constructor that build the one row."""
    return rows[0]


def beyond_timm(model: Any) -> list[str]:
    """Return the parts that timm's classes cannot express in the active subnet: none."""
    return []


def narrow(model: nn.Module, rows: Sequence[Row]) -> nn.Module:
    """Make a timm Vision Transformer searchable in place.

    Args:
        model: One of exactly the classes in `MODELS`, all of whose parts are supported.
        rows: The choices of its one row of blocks.
    """
    ((width, depth, heads, hidden),) = rows
    slots = cast(nn.Sequential, model.blocks)
    stretch_drop_path([slots], [depth])
    for slot, block in enumerate(slots):
        narrow_block(block, width, heads[slot], hidden[slot])
    become(slots, ShiftableIdentity, shift=True, depth=depth)
    elastic = become(model, MODELS[type(model)], width=width)
    for norm in (elastic.norm_pre, elastic.norm, elastic.fc_norm):
        narrow_norm(norm, width)
    narrow_stem(elastic)
    narrow_head(elastic)
    return elastic


def narrow_stem(model: ElasticVisionTransformer) -> None:
    """Make the patch embedding searchable where it is not."""
    proj: Any = model.patch_embed.proj
    if type(proj) is nn.Conv2d:
        become(proj, ElasticConv2d, in_dim=as_dim(proj.in_channels, "in_chans"), out_dim=model.width, depthwise=False)
    narrow_norm(model.patch_embed.norm, model.width)


def narrow_head(model: ElasticVisionTransformer) -> None:
    """Make attention pooling and classifiers searchable where they are not."""
    width, pool = model.width, model.attn_pool
    if type(pool) in POOLS:
        if isinstance(pool, layers.AttentionPoolLatent):
            if type(pool.q) is nn.Linear:
                become(pool.q, CyclicLinear, in_dim=width, out_dim=width)
            become(pool.kv, StackedLinear, in_dim=width, out_dim=width, stacks=2)
            become(pool.proj, CyclicLinear, in_dim=width, out_dim=width)
            narrow_mlp(pool.mlp, width, as_dim(pool.mlp.fc2.in_features, "mlp_dim"))
        for name in ("norm", "pre_norm", "post_norm"):
            narrow_norm(getattr(pool, name, None), width)
        for name in ("q_norm", "k_norm"):
            narrow_norm(getattr(pool, name, None), as_dim(pool.head_dim, "head_dim"))
        become(pool, POOLS[type(pool)], dim=width)
    for name in ("head", "head_dist"):
        head: Any = model._modules.get(name)
        if type(head) is nn.Linear:
            become(head, CyclicLinear, in_dim=width, out_dim=as_dim(head.out_features, "num_classes"))


def narrow_block(block: nn.Module, width: Dim, heads: Dim, hidden: Dim) -> None:
    """Make the parts of a block searchable."""
    attn: Any = block.attn
    inner = heads * attn.head_dim
    become(attn.qkv, StackedLinear, in_dim=width, out_dim=inner, stacks=3)
    become(attn.proj, CyclicLinear, in_dim=inner, out_dim=width)
    if getattr(attn, "gate", None) is not None:  # since timm 1.0.30
        become(attn.gate, CyclicLinear, in_dim=width, out_dim=inner)
    head_dim = as_dim(attn.head_dim, "head_dim")
    for norm, dim in ((attn.q_norm, head_dim), (attn.k_norm, head_dim), (attn.norm, inner)):
        narrow_norm(norm, dim)
    become(attn, HeadwiseAttention, heads=heads, inner=inner)
    narrow_mlp(cast(nn.Module, block.mlp), width, hidden)
    for norm in (block.norm1, block.norm2):
        narrow_norm(norm, width)
    for name in ("ls1", "ls2"):
        scale: Any = getattr(block, name, None)
        if type(scale) is layers.LayerScale:
            become(scale, ChannelScale, dim=width)
    become(block, BLOCKS[type(block)])

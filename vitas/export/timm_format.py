"""timm's Vision Transformers and Twins in files, their blocks perhaps of different sizes; for the parts see `timm_parts`."""

import json
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

from timm import layers
from timm.models import deit, twins, vision_transformer
from torch import nn

from vitas.errors import ChoiceError, FileError
from vitas.export.formats import Format
from vitas.export.timm_parts import (
    BlockConfig,
    LatentConfig,
    MapBlockConfig,
    NormConfig,
    PrrConfig,
    built_norm,
    norm_of,
    pool_of,
)
from vitas.memory import refuse_beyond_memory
from vitas.plain import Count, CountOrZero, Description, Rate, Within, Words, at, each, is_there, stages

_MOST_BLOCKS = 128
"""In a network, over all its stages: enough for every known one, and built within a second."""


_MOST_PRETRAINED = 2**16  # characters; timm copies them often


def _plain(value: Any) -> Any:
    """Return plain JSON values, tuples as lists; what is not JSON, such as a loaded state, is left out of a dict."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if _is_plain(item)}
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, dict))


def _pretrained_of(model: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", _plain(dict(getattr(model, "pretrained_cfg", None) or {})))


@dataclass(frozen=True, kw_only=True)
class _NetworkConfig(Description):
    """What both families have."""

    pretrained_cfg: dict[str, Any] = at(read=_pretrained_of)

    def __post_init__(self) -> None:
        if (length := len(json.dumps(self.pretrained_cfg))) > _MOST_PRETRAINED:
            raise ValueError(f"pretrained_cfg: expected at most {_MOST_PRETRAINED} characters, got {length}")

    def told_to(self, model: nn.Module) -> nn.Module:
        """Return a network that knows where its weights came from."""
        pretrained = {key: tuple(v) if isinstance(v, list) else v for key, v in self.pretrained_cfg.items()}
        told: Any = model
        told.pretrained_cfg = told.default_cfg = pretrained
        return model


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig(_NetworkConfig):
    """timm's Vision Transformer."""

    network: ClassVar[Any] = vision_transformer.VisionTransformer

    img_size: tuple[Count, Count] = at("patch_embed.img_size", read=tuple)
    patch_size: tuple[Count, Count] = at("patch_embed.patch_size", read=tuple)
    in_chans: Count = at("patch_embed.proj.in_channels")
    num_classes: CountOrZero = at("num_classes")
    embed_dim: Count = at("embed_dim")
    global_pool: Annotated[str, Words(("", "avg", "avgmax", "max", "token", "map", "prr"))] = at("global_pool")
    class_token: bool = at("has_class_token")
    reg_tokens: CountOrZero = at("num_reg_tokens")
    positions: bool = at("pos_embed", read=is_there)
    no_embed_class: bool = at("no_embed_class")
    pool_include_prefix: bool = at("pool_include_prefix")
    dynamic_img_size: bool = at("dynamic_img_size")
    dynamic_img_pad: bool = at("patch_embed.dynamic_img_pad")
    patch_bias: bool = at("patch_embed.proj.bias", read=is_there)
    patch_norm: NormConfig | None = at("patch_embed.norm", read=norm_of)
    norm_pre: NormConfig | None = at("norm_pre", read=norm_of)
    norm: NormConfig | None = at("norm", read=norm_of)
    fc_norm: NormConfig | None = at("fc_norm", read=norm_of)
    drop_rate: Rate = at("head_drop.p")
    pos_drop_rate: Rate = at("pos_drop.p")
    patch_drop_rate: Rate = at("patch_drop", read=lambda drop: getattr(drop, "prob", 0.0))
    attn_pool: LatentConfig | PrrConfig | None = at("attn_pool", read=pool_of)
    blocks: Annotated[tuple[BlockConfig, ...], Within(1, _MOST_BLOCKS + 1)] = at("blocks", read=each(BlockConfig.of))

    def build(self) -> nn.Module:
        """Return a network; its weights are as timm draws them."""
        dim = self.embed_dim
        model: Any = self.network(
            img_size=self.img_size,
            patch_size=self.patch_size,
            in_chans=self.in_chans,
            num_classes=self.num_classes,
            global_pool=self.global_pool if self.attn_pool is None else "avg",
            embed_dim=dim,
            depth=1,
            num_heads=1,
            class_token=self.class_token,
            pos_embed="learn" if self.positions else "none",
            no_embed_class=self.no_embed_class,
            reg_tokens=self.reg_tokens,
            final_norm=False,
            pool_include_prefix=self.pool_include_prefix,
            dynamic_img_size=self.dynamic_img_size,
            dynamic_img_pad=self.dynamic_img_pad,
            drop_rate=self.drop_rate,
            pos_drop_rate=self.pos_drop_rate,
            patch_drop_rate=self.patch_drop_rate,
            embed_layer=partial(_patch_embed, self.patch_bias),
        )
        model.patch_embed.norm, model.norm_pre = built_norm(self.patch_norm, dim), built_norm(self.norm_pre, dim)
        model.norm, model.fc_norm = built_norm(self.norm, dim), built_norm(self.fc_norm, dim)
        model.global_pool = self.global_pool
        if self.attn_pool is not None:
            model.attn_pool = self.attn_pool.build(dim)
            for later in ("fc_norm", "head_drop", "head"):  # timm registers the pool before these
                model._modules[later] = model._modules.pop(later)
        model.blocks = nn.Sequential(*(block.build(dim) for block in self.blocks))
        sizes = {"num_chs": dim, "reduction": model.feature_info[0]["reduction"]}
        model.feature_info = [{"module": f"blocks.{i}", **sizes} for i in range(len(self.blocks))]
        return self.told_to(model)


def _patch_embed(patch_bias: bool, bias: bool, **options: Any) -> nn.Module:
    return cast(nn.Module, layers.PatchEmbed(bias=patch_bias, **options))


@dataclass(frozen=True, kw_only=True)
class DistilledConfig(VisionTransformerConfig):
    """timm's distilled Vision Transformer."""

    network: ClassVar[Any] = deit.VisionTransformerDistilled


@dataclass(frozen=True, kw_only=True)
class StageConfig(Description):
    """A stage of timm's Twins."""

    embed_dim: Count = at("embed.proj.out_channels")
    patch_norm: NormConfig | None = at("embed.norm", read=norm_of)
    blocks: Annotated[tuple[MapBlockConfig, ...], Within(0, _MOST_BLOCKS + 1)] = at("row", read=each(MapBlockConfig.of))


@dataclass(frozen=True, kw_only=True)
class TwinsConfig(_NetworkConfig):
    """timm's Twins."""

    img_size: tuple[Count, Count] = at("patch_embeds.0.img_size", read=tuple)
    patch_size: tuple[Count, Count] = at("patch_embeds.0.patch_size", read=tuple)
    in_chans: Count = at("patch_embeds.0.proj.in_channels")
    num_classes: CountOrZero = at("num_classes")
    global_pool: Annotated[str, Words(("", "avg"))] = at("global_pool")
    norm: NormConfig | None = at("norm", read=norm_of)
    drop_rate: Rate = at("head_drop.p")
    pos_drop_rate: Rate = at("pos_drops.0.p")
    stages: Annotated[tuple[StageConfig, ...], Within(1, _MOST_BLOCKS + 1)] = at(
        "patch_embeds", "blocks", read=stages(StageConfig.of)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (number := sum(len(stage.blocks) for stage in self.stages)) > _MOST_BLOCKS:
            raise ValueError(f"stages: expected at most {_MOST_BLOCKS} blocks, got {number}")

    def build(self) -> nn.Module:
        """Return a network; its weights are as timm draws them."""
        ones = [1] * len(self.stages)
        model: Any = twins.Twins(
            img_size=self.img_size,
            patch_size=self.patch_size[0],
            in_chans=self.in_chans,
            num_classes=self.num_classes,
            global_pool=self.global_pool,
            embed_dims=[stage.embed_dim for stage in self.stages],
            num_heads=ones,
            mlp_ratios=ones,
            depths=ones,
            sr_ratios=ones,
            drop_rate=self.drop_rate,
            pos_drop_rate=self.pos_drop_rate,
        )
        model.depths = [len(stage.blocks) for stage in self.stages]
        for number, stage in enumerate(self.stages):
            dim = stage.embed_dim
            model.patch_embeds[number].norm = built_norm(stage.patch_norm, dim)
            model.blocks[number] = nn.ModuleList(block.build(dim) for block in stage.blocks)
        model.norm = built_norm(self.norm, self.stages[-1].embed_dim)
        return self.told_to(model)


def resize(model: nn.Module, size: tuple[int, int], where: Path) -> None:
    """Give a loaded network another image size; timm resamples its positions. A Twins has none, and only notes the size.

    Raises:
        ChoiceError: an image that does not divide into the patches of all stages.
        FileError: one whose positions no machine like this one holds.
    """
    network: Any = model
    if not isinstance(network, twins.Twins):
        if network.pos_embed is not None:
            height, width = network.patch_embed.patch_size
            positions = (size[0] // height) * (size[1] // width)
            refuse_beyond_memory(positions * network.pos_embed[0, 0].nbytes, f"{where}: img_size: the table", FileError)
        network.set_input_size(img_size=size)
        return
    sides = [embed.patch_size[0] for embed in network.patch_embeds]
    if any(pixels % prod(sides) for pixels in size):
        raise ChoiceError(f"img_size: expected multiples of {prod(sides)} pixels, got {size[0]} x {size[1]}")
    for embed, side in zip(network.patch_embeds, sides, strict=True):
        embed.img_size, size = size, (size[0] // side, size[1] // side)
        (embed.H, embed.W), embed.num_patches = size, prod(size)


def draw_weights(model: nn.Module) -> None:
    """Draw all weights anew, as timm does."""
    network: Any = model
    if isinstance(network, twins.Twins):
        network.apply(network._init_weights)
    else:
        network.init_weights()


TIMM = Format(
    {
        "timm.models.vision_transformer.VisionTransformer": VisionTransformerConfig,
        "timm.models.deit.VisionTransformerDistilled": DistilledConfig,
        "timm.models.twins.Twins": TwinsConfig,
    },
    resize,
)

"""A timm Vision Transformer or Twins, its blocks perhaps of different sizes, as plain JSON values, and back.

timm's constructors know one size for all blocks (of a stage); here each block has its own: `Attention` through
`attn_head_dim`, `Mlp` through `hidden_features`. Attention that timm's Twins cannot express is of vitas.plain. Only the
classes named below are ever built. What a config says is checked by building the network on the meta device and describing
that again: the two descriptions have to be equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import prod
from typing import Any, cast

from timm import layers
from timm.layers import activations
from timm.models import deit, twins, vision_transformer
from torch import nn

from vitas import plain
from vitas.errors import ChoiceError

Config = dict[str, Any]


MODELS = {
    "timm.models.vision_transformer.VisionTransformer": vision_transformer.VisionTransformer,
    "timm.models.deit.VisionTransformerDistilled": deit.VisionTransformerDistilled,
    "timm.models.twins.Twins": twins.Twins,
}


def _named(*classes: Any) -> dict[str, Any]:
    return {f"{_HOME.get(one.__module__.partition('.')[0])}.{one.__name__}": one for one in classes}


_HOME = {"torch": "torch", "timm": "timm", "vitas": "vitas.plain"}


_NORMS = _named(nn.LayerNorm, layers.LayerNorm, layers.LayerNormFp32, layers.RmsNorm, layers.RmsNormFp32)


_ACTIVATIONS = _named(nn.GELU, nn.SiLU, nn.ReLU, nn.Sigmoid, activations.GELU, activations.GELUTanh, activations.QuickGELU)


_MLPS = _named(layers.Mlp, layers.GluMlp, layers.SwiGLU)


_BLOCKS = _named(vision_transformer.Block, vision_transformer.ResPostBlock)


_MAP_ATTENTION = _named(
    twins.LocallyGroupedAttn, twins.GlobalSubSampleAttn, plain.WindowAttention, plain.SubsampledAttention
)


def _int(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= 2**24


def _number(least: float, below: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and least <= value < below


def _pair(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == 2 and all(map(fits, value))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _blocks_of(stage: Any) -> int:
    blocks = stage.get("blocks") if isinstance(stage, dict) else None
    return len(blocks) if isinstance(blocks, list) else 1


_MOST_BLOCKS = 128
"""In a network, over all its stages: enough for every known one, and built within a second."""


_COUNTS: tuple[str, ...] = ("in_chans", "embed_dim", "num_heads", "attn_head_dim", "hidden_features", "latent_len")
_COUNTS += ("qkv_dim", "window_size", "sr_ratio")


_RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "drop_path", "attn_drop", "proj_drop")


_FLAGS: tuple[str, ...] = (
    "class_token",
    "positions",
    "no_embed_class",
    "pool_include_prefix",
    "dynamic_img_size",
    "dynamic_img_pad",
)
_FLAGS += ("patch_bias", "affine", "qkv_bias", "proj_bias", "gated")


_LEGAL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_COUNTS, _int(1)),
    **dict.fromkeys(_RATES, _number(0, 1)),
    **dict.fromkeys(_FLAGS, _flag),
    **dict.fromkeys(("img_size", "patch_size"), _pair(_int(1))),
    **dict.fromkeys(("num_classes", "reg_tokens"), _int(0)),
    "eps": _number(0, float("inf")),
    "init_values": lambda value: value is None or _number(float("-inf"), float("inf"))(value),
    "gate_last": lambda value: value is None or _flag(value),
    "bias": lambda value: _flag(value) or _pair(_flag)(value),
    "drop": _pair(_number(0, 1)),
    "global_pool": lambda value: value in ("", "avg", "avgmax", "max", "token", "map", "prr"),
    "pool": lambda value: value in ("token", "avg"),
    "sr_norm_eps": lambda value: value is None or _number(0, float("inf"))(value),
    "blocks": lambda value: isinstance(value, list) and 0 < len(value) <= _MOST_BLOCKS,
    "stages": lambda value: isinstance(value, list) and 0 < sum(map(_blocks_of, value)) <= _MOST_BLOCKS,
    "pretrained_cfg": lambda value: isinstance(value, dict) and len(json.dumps(value)) <= 2**16,  # timm copies it often
}
"""What each field may be, wherever it stands."""


def _check(config: Any, where: str = "model") -> None:
    """Raise ValueError for a field that cannot be what it is."""
    if isinstance(config, list):
        for i, item in enumerate(config):
            _check(item, f"{where}.{i}")
    elif isinstance(config, dict):
        for name, value in config.items():
            if name in _LEGAL and not _LEGAL[name](value):
                limit = f"expected 1 to {_MOST_BLOCKS} blocks, " if name in ("blocks", "stages") else ""
                raise ValueError(f"{where}.{name}: {limit}got {str(value)[:60]!r}")
            if name != "pretrained_cfg":
                _check(value, f"{where}.{name}")


def config_of(model: nn.Module) -> Config:
    """Return the sizes and options of a network of exactly one of `MODELS`, as plain JSON values.

    Raises:
        KeyError, AttributeError, TypeError, ValueError: a part that a config has no words for.
    """
    vit: Any = model
    if isinstance(vit, twins.Twins):
        return _twins_config(vit)
    embed = vit.patch_embed
    return {
        "img_size": list(embed.img_size),
        "patch_size": list(embed.patch_size),
        "in_chans": embed.proj.in_channels,
        "num_classes": vit.num_classes,
        "embed_dim": vit.embed_dim,
        "global_pool": vit.global_pool,
        "class_token": vit.has_class_token,
        "reg_tokens": vit.num_reg_tokens,
        "positions": vit.pos_embed is not None,
        "no_embed_class": vit.no_embed_class,
        "pool_include_prefix": vit.pool_include_prefix,
        "dynamic_img_size": vit.dynamic_img_size,
        "dynamic_img_pad": embed.dynamic_img_pad,
        "patch_bias": embed.proj.bias is not None,
        "patch_norm": _norm_config(embed.norm),
        "norm_pre": _norm_config(vit.norm_pre),
        "norm": _norm_config(vit.norm),
        "fc_norm": _norm_config(vit.fc_norm),
        "drop_rate": vit.head_drop.p,
        "pos_drop_rate": vit.pos_drop.p,
        "patch_drop_rate": getattr(vit.patch_drop, "prob", 0.0),
        "attn_pool": _pool_config(vit.attn_pool),
        "blocks": [_block_config(block) for block in vit.blocks],
        "pretrained_cfg": _plain(dict(getattr(vit, "pretrained_cfg", None) or {})),
    }


def _twins_config(model: Any) -> Config:
    first = model.patch_embeds[0]
    return {
        "img_size": list(first.img_size),
        "patch_size": list(first.patch_size),
        "in_chans": first.proj.in_channels,
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "norm": _norm_config(model.norm),
        "drop_rate": model.head_drop.p,
        "pos_drop_rate": model.pos_drops[0].p,
        "stages": [
            {
                "embed_dim": embed.proj.out_channels,
                "patch_norm": _norm_config(embed.norm),
                "blocks": [_twins_block_config(block) for block in row],
            }
            for embed, row in zip(model.patch_embeds, model.blocks, strict=True)
        ],
        "pretrained_cfg": _plain(dict(getattr(model, "pretrained_cfg", None) or {})),
    }


def from_config(name: str, config: Config) -> nn.Module:
    """Return a network that `config_of` described, of the class called `name` in `MODELS`.

    Raises:
        KeyError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError, AssertionError: a config of none.
    """
    _check(config)
    model = _twins(config) if MODELS[name] is twins.Twins else _vit(MODELS[name], config)
    pretrained = {key: tuple(v) if isinstance(v, list) else v for key, v in config["pretrained_cfg"].items()}
    model.pretrained_cfg = model.default_cfg = pretrained
    return cast(nn.Module, model)


def _vit(kind: Any, config: Config) -> Any:
    dim, pool = config["embed_dim"], config["attn_pool"]
    model: Any = kind(
        img_size=tuple(config["img_size"]),
        patch_size=tuple(config["patch_size"]),
        in_chans=config["in_chans"],
        num_classes=config["num_classes"],
        global_pool=config["global_pool"] if pool is None else "avg",
        embed_dim=dim,
        depth=1,
        num_heads=1,
        class_token=config["class_token"],
        pos_embed="learn" if config["positions"] else "none",
        no_embed_class=config["no_embed_class"],
        reg_tokens=config["reg_tokens"],
        final_norm=False,
        pool_include_prefix=config["pool_include_prefix"],
        dynamic_img_size=config["dynamic_img_size"],
        dynamic_img_pad=config["dynamic_img_pad"],
        drop_rate=config["drop_rate"],
        pos_drop_rate=config["pos_drop_rate"],
        patch_drop_rate=config["patch_drop_rate"],
        embed_layer=partial(_patch_embed, config["patch_bias"]),
    )
    model.patch_embed.norm = _norm(config["patch_norm"], dim)
    model.norm_pre = _norm(config["norm_pre"], dim)
    model.norm = _norm(config["norm"], dim)
    model.fc_norm = _norm(config["fc_norm"], dim)
    model.global_pool = config["global_pool"]
    if pool is not None:
        model.attn_pool = _pool(pool, dim)
        for later in ("fc_norm", "head_drop", "head"):  # timm registers the pool before these
            model._modules[later] = model._modules.pop(later)
    model.blocks = nn.Sequential(*(_block(block, dim) for block in config["blocks"]))
    reduction = model.feature_info[0]["reduction"]
    model.feature_info = [
        {"module": f"blocks.{i}", "num_chs": dim, "reduction": reduction} for i in range(len(config["blocks"]))
    ]
    return model


def _twins(config: Config) -> Any:
    stages = config["stages"]
    ones = [1] * len(stages)
    if config["global_pool"] not in ("", "avg"):  # timm 1.0.23 does not look
        raise ValueError(f"global_pool: got {config['global_pool']!r}")
    model: Any = twins.Twins(
        img_size=tuple(config["img_size"]),
        patch_size=config["patch_size"][0],
        in_chans=config["in_chans"],
        num_classes=config["num_classes"],
        global_pool=config["global_pool"],
        embed_dims=[stage["embed_dim"] for stage in stages],
        num_heads=ones,
        mlp_ratios=ones,
        depths=ones,
        sr_ratios=ones,
        drop_rate=config["drop_rate"],
        pos_drop_rate=config["pos_drop_rate"],
    )
    model.depths = [len(stage["blocks"]) for stage in stages]
    for number, stage in enumerate(stages):
        dim = stage["embed_dim"]
        model.patch_embeds[number].norm = _norm(stage["patch_norm"], dim)
        model.blocks[number] = nn.ModuleList(_twins_block(block, dim) for block in stage["blocks"])
    model.norm = _norm(config["norm"], stages[-1]["embed_dim"])
    return model


def _patch_embed(patch_bias: bool, bias: bool, **options: Any) -> nn.Module:
    return cast(nn.Module, layers.PatchEmbed(bias=patch_bias, **options))


def _name(module: nn.Module, known: Mapping[str, Any]) -> str:
    for name, one in known.items():
        if type(module) is one:
            return name
    raise TypeError(f"{type(module).__name__} is none of {', '.join(known)}")


def _is_identity(module: nn.Module | None) -> bool:
    return module is None or type(module) is nn.Identity


def _norm_config(norm: Any) -> Config | None:
    if _is_identity(norm):
        return None
    affine = norm.weight is not None
    return {"class": _name(norm, _NORMS), "eps": norm.eps, "affine": affine, "bias": getattr(norm, "bias", None) is not None}


def _norm(config: Config | None, dim: int) -> nn.Module:
    if config is None:
        return nn.Identity()
    kind = _NORMS[config["class"]]
    norm = kind(dim, config["eps"], config["affine"])
    if config["affine"] and not config["bias"] and getattr(norm, "bias", None) is not None:
        norm.register_parameter("bias", None)
    return cast(nn.Module, norm)


def _block_config(block: Any) -> Config:
    kind = _name(block, _BLOCKS)
    holders = [block, block] if hasattr(block, "init_values") else [block.ls1, block.ls2]
    return {
        "class": kind,
        "norm1": _norm_config(block.norm1),
        "norm2": _norm_config(block.norm2),
        "init_values": _same(getattr(holder, "init_values", None) for holder in holders),
        "drop_path": _same(getattr(drop, "drop_prob", 0.0) for drop in (block.drop_path1, block.drop_path2)),
        "attn": _attention_config(block.attn),
        "mlp": _mlp_config(block.mlp),
    }


_SIZES = {"num_heads": "num_heads", "window_size": "ws", "sr_ratio": "sr_ratio"}
"""Our words and timm's arguments, of the attention of its Twins."""


def _twins_block_config(block: Any) -> Config:
    kind, attn = _name(block.attn, _MAP_ATTENTION), block.attn
    ours = isinstance(attn, (plain.WindowAttention, plain.SubsampledAttention))
    sizes = {name: getattr(attn, timms) for name, timms in _SIZES.items() if hasattr(attn, timms)}
    drops = {name: getattr(attn, name).p for name in ("attn_drop", "proj_drop")}
    return {
        "norm1": _norm_config(block.norm1),
        "norm2": _norm_config(block.norm2),
        "drop_path": _same(getattr(drop, "drop_prob", 0.0) for drop in (block.drop_path1, block.drop_path2)),
        "attn": {"class": kind, **(plain.attention_config(attn) if ours else {**sizes, **drops})},
        "mlp": _mlp_config(block.mlp),
    }


def _twins_block(config: Config, dim: int) -> nn.Module:
    block: Any = twins.Block(dim, 1, 1 / dim, drop_path=config["drop_path"], ws=1)
    block.norm1, block.norm2 = _norm(config["norm1"], dim), _norm(config["norm2"], dim)
    block.attn, block.mlp = _map_attention(config["attn"], dim), _mlp(config["mlp"], dim)
    return cast(nn.Module, block)


def _map_attention(config: Config, dim: int) -> nn.Module:
    kind = _MAP_ATTENTION[config["class"]]
    if config["class"].startswith("vitas"):
        return plain.attention_from(config, dim)
    options = {timms: config[name] for name, timms in _SIZES.items() if name in config}
    return cast(nn.Module, kind(dim, attn_drop=config["attn_drop"], proj_drop=config["proj_drop"], **options))


def _same(values: Iterable[Any]) -> Any:
    first, second = values
    if first != second:
        raise ValueError(f"two branches of a block differ: {first} and {second}")
    return first


def _block(config: Config, dim: int) -> nn.Module:
    kind = _BLOCKS[config["class"]]
    block: Any = kind(dim, 1, mlp_ratio=1 / dim, drop_path=config["drop_path"], init_values=config["init_values"])
    block.norm1, block.norm2 = _norm(config["norm1"], dim), _norm(config["norm2"], dim)
    block.attn, block.mlp = _attention(config["attn"], dim), _mlp(config["mlp"], dim)
    return cast(nn.Module, block)


def _attention_config(attn: Any) -> Config:
    if type(attn) is not layers.Attention:
        raise TypeError(f"{type(attn).__name__} is not timm's Attention")
    return {
        "num_heads": attn.num_heads,
        "attn_head_dim": attn.head_dim,
        "qkv_bias": attn.qkv.bias is not None,
        "proj_bias": attn.proj.bias is not None,
        "gated": getattr(attn, "gate", None) is not None,
        "q_norm": _norm_config(attn.q_norm),
        "k_norm": _norm_config(attn.k_norm),
        "norm": _norm_config(attn.norm),
        "attn_drop": attn.attn_drop.p,
        "proj_drop": attn.proj_drop.p,
    }


def _attention(config: Config, dim: int) -> nn.Module:
    names = ("num_heads", "attn_head_dim", "qkv_bias", "proj_bias", "attn_drop", "proj_drop")
    gated = {"gated": True} if config["gated"] else {}  # since timm 1.0.30
    attn: Any = layers.Attention(dim, **{name: config[name] for name in names}, **gated)
    attn.q_norm, attn.k_norm = (_norm(config[name], attn.head_dim) for name in ("q_norm", "k_norm"))
    attn.norm = _norm(config["norm"], attn.attn_dim)
    return cast(nn.Module, attn)


def _mlp_config(mlp: Any) -> Config:
    first = mlp.fc1_g if type(mlp) is layers.SwiGLU else mlp.fc1
    return {
        "class": _name(mlp, _MLPS),
        "hidden_features": mlp.fc2.in_features,
        "act": _name(mlp.act, _ACTIVATIONS),
        "gate_last": getattr(mlp, "gate_last", None),
        "norm": _norm_config(mlp.norm),
        "bias": [first.bias is not None, mlp.fc2.bias is not None],
        "drop": [mlp.drop1.p, mlp.drop2.p],
    }


def _mlp(config: Config, dim: int) -> nn.Module:
    kind, hidden = _MLPS[config["class"]], config["hidden_features"]
    gates = {} if config["gate_last"] is None else {"gate_last": config["gate_last"]}
    mlp: Any = kind(
        dim,
        2 * hidden if kind is layers.GluMlp else hidden,
        act_layer=_ACTIVATIONS[config["act"]],
        bias=tuple(config["bias"]),
        drop=tuple(config["drop"]),
        **gates,
    )
    mlp.norm = _norm(config["norm"], hidden)
    return cast(nn.Module, mlp)


def _pool_config(pool: Any) -> Config | None:
    if pool is None:
        return None
    if type(pool) is not layers.AttentionPoolLatent:
        return {"num_heads": pool.num_heads, "pool": pool.pool}
    return {
        "num_heads": pool.num_heads,
        "pool": pool.pool,
        "latent_len": pool.latent_len,
        "qkv_bias": pool.kv.bias is not None,
        "norm": _norm_config(pool.norm),
        "mlp": _mlp_config(pool.mlp),
    }


def _pool(config: Config, dim: int) -> nn.Module:
    if "mlp" not in config:
        return cast(nn.Module, layers.AttentionPoolPrr(dim, config["num_heads"], config["pool"]))
    names = ("num_heads", "latent_len", "qkv_bias")
    pool: Any = layers.AttentionPoolLatent(dim, **{name: config[name] for name in names}, pool_type=config["pool"])
    pool.norm, pool.mlp = _norm(config["norm"], dim), _mlp(config["mlp"], dim)
    return cast(nn.Module, pool)


def _plain(value: Any) -> Any:
    """Return plain JSON values, tuples as lists; what is none, such as a loaded state, is left out of a dict."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if _is_plain(item)}
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, dict))


_OF_THE_MOMENT = {"training", "grad_checkpointing", "distilled_training", "fused_attn", "weight_init_mode", "fix_init"}


def scalars(model: nn.Module) -> dict[str, Any]:
    """Return every number, word and flag that the parts of a network hold, by path: what printing may not show."""
    return {
        f"{path}.{name}": tuple(value) if isinstance(value, list) else value
        for path, part in model.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str, tuple, list))
        and not name.startswith("_")
        and name not in _OF_THE_MOMENT
    }


def set_input_size(model: nn.Module, size: tuple[int, int]) -> None:
    """Give a loaded network another image size; timm resamples its positions. A Twins has none, and only notes the size.

    Raises:
        ChoiceError: an image that does not divide into the patches of all stages.
    """
    network: Any = model
    if not isinstance(network, twins.Twins):
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

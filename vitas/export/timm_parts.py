"""Parts of timm's networks as descriptions: norms, attention, MLPs, blocks, pools.

timm's constructors know one size for all blocks (of a stage); here each block has its own: `Attention` through
`attn_head_dim`, `Mlp` through `hidden_features`. Attention that timm's Twins cannot express is of vitas.plain. Only the
classes named below are ever built.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast

from timm import layers
from timm.layers import activations
from timm.models import twins, vision_transformer
from torch import nn

from vitas import plain
from vitas.plain import Count, Description, Eps, Gain, Rate, Words, at, is_there


def _named(*classes: Any) -> dict[str, Any]:
    return {f"{_HOME.get(one.__module__.partition('.')[0])}.{one.__name__}": one for one in classes}


_HOME = {"torch": "torch", "timm": "timm", "vitas": "vitas.plain"}


_NORMS = _named(nn.LayerNorm, layers.LayerNorm, layers.LayerNormFp32, layers.RmsNorm, layers.RmsNormFp32)


_ACTIVATIONS = _named(nn.GELU, nn.SiLU, nn.ReLU, nn.Sigmoid, activations.GELU, activations.GELUTanh, activations.QuickGELU)


_MLPS = _named(layers.Mlp, layers.GluMlp, layers.SwiGLU)


_BLOCKS = _named(vision_transformer.Block, vision_transformer.ResPostBlock)


_LOCAL, _GLOBAL = _named(twins.LocallyGroupedAttn), _named(twins.GlobalSubSampleAttn)


_OWN = _named(plain.WindowAttention, plain.SubsampledAttention)


def _name(known: Mapping[str, Any], part: nn.Module) -> str:
    for name, one in known.items():
        if type(part) is one:
            return name
    raise TypeError(f"{type(part).__name__} is none of {', '.join(known)}")


def _class_of(known: Mapping[str, Any], *paths: str) -> Any:
    """Return a field that holds the name of a class."""
    return at(*paths, read=partial(_name, known))


def _same(values: Iterable[Any]) -> Any:
    first, second = values
    if first != second:
        raise ValueError(f"two branches of a block differ: {first} and {second}")
    return first


def _drop_path_of(layers: Iterable[Any]) -> float:
    return cast(float, _same(map(plain.drop_path_of, layers)))


def _has(name: str) -> Any:
    """Return a field that says whether there is a parameter that not every version or class has."""
    return at(read=lambda part: getattr(part, name, None) is not None)


@dataclass(frozen=True, kw_only=True)
class NormConfig(Description):
    """A norm."""

    class_: Annotated[str, Words(_NORMS)] = _class_of(_NORMS)
    eps: Eps = at("eps")
    affine: bool = at("weight", read=is_there)
    bias: bool = _has("bias")

    def build(self, dim: int) -> nn.Module:
        """Return a norm on `dim` channels."""
        norm = _NORMS[self.class_](dim, self.eps, self.affine)
        if self.affine and not self.bias and getattr(norm, "bias", None) is not None:
            norm.register_parameter("bias", None)
        return cast(nn.Module, norm)


def norm_of(norm: nn.Module | None) -> NormConfig | None:
    """Describe a norm; an identity is None."""
    return None if norm is None or type(norm) is nn.Identity else NormConfig.of(norm)


def built_norm(norm: NormConfig | None, dim: int) -> nn.Module:
    """Return a norm on `dim` channels, or an identity."""
    return nn.Identity() if norm is None else norm.build(dim)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Description):
    """timm's Attention."""

    num_heads: Count = at("num_heads")
    attn_head_dim: Count = at("head_dim")
    qkv_bias: bool = at("qkv.bias", read=is_there)
    proj_bias: bool = at("proj.bias", read=is_there)
    gated: bool = _has("gate")
    q_norm: NormConfig | None = at("q_norm", read=norm_of)
    k_norm: NormConfig | None = at("k_norm", read=norm_of)
    norm: NormConfig | None = at("norm", read=norm_of)
    attn_drop: Rate = at("attn_drop.p")
    proj_drop: Rate = at("proj_drop.p")

    def build(self, dim: int) -> nn.Module:
        """Return attention on `dim` channels."""
        gated = {"gated": True} if self.gated else {}  # since timm 1.0.30
        attn: Any = layers.Attention(
            dim,
            num_heads=self.num_heads,
            attn_head_dim=self.attn_head_dim,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            attn_drop=self.attn_drop,
            proj_drop=self.proj_drop,
            **gated,
        )
        attn.q_norm, attn.k_norm = built_norm(self.q_norm, attn.head_dim), built_norm(self.k_norm, attn.head_dim)
        attn.norm = built_norm(self.norm, attn.attn_dim)
        return cast(nn.Module, attn)


def _attention_of(attn: nn.Module) -> AttentionConfig:
    _name(_named(layers.Attention), attn)
    return AttentionConfig.of(attn)


def _biases_of(mlp: Any) -> tuple[bool, bool]:
    first = mlp.fc1_g if type(mlp) is layers.SwiGLU else mlp.fc1
    return first.bias is not None, mlp.fc2.bias is not None


@dataclass(frozen=True, kw_only=True)
class MlpConfig(Description):
    """An MLP, gated or not."""

    class_: Annotated[str, Words(_MLPS)] = _class_of(_MLPS)
    hidden_features: Count = at("fc2.in_features")
    act: Annotated[str, Words(_ACTIVATIONS)] = _class_of(_ACTIVATIONS, "act")
    gate_last: bool | None = at(read=lambda mlp: getattr(mlp, "gate_last", None))
    norm: NormConfig | None = at("norm", read=norm_of)
    bias: tuple[bool, bool] = at(read=_biases_of)
    drop: tuple[Rate, Rate] = at("drop1.p", "drop2.p")

    def build(self, dim: int) -> nn.Module:
        """Return an MLP on `dim` channels."""
        kind, hidden = _MLPS[self.class_], self.hidden_features
        gates = {} if self.gate_last is None else {"gate_last": self.gate_last}
        width = 2 * hidden if kind is layers.GluMlp else hidden
        mlp: Any = kind(dim, width, act_layer=_ACTIVATIONS[self.act], bias=self.bias, drop=self.drop, **gates)
        mlp.norm = built_norm(self.norm, hidden)
        return cast(nn.Module, mlp)


def _gain_of(block: Any) -> float | None:
    holders = [block, block] if type(block) is vision_transformer.ResPostBlock else [block.ls1, block.ls2]
    return cast("float | None", _same(getattr(holder, "init_values", None) for holder in holders))


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Description):
    """A block of timm's Vision Transformer."""

    class_: Annotated[str, Words(_BLOCKS)] = _class_of(_BLOCKS)
    norm1: NormConfig | None = at("norm1", read=norm_of)
    norm2: NormConfig | None = at("norm2", read=norm_of)
    init_values: Gain | None = at(read=_gain_of)
    drop_path: Rate = at("drop_path1", "drop_path2", read=_drop_path_of)
    attn: AttentionConfig = at("attn", read=_attention_of)
    mlp: MlpConfig = at("mlp", read=MlpConfig.of)

    def build(self, dim: int) -> nn.Module:
        """Return a block on `dim` channels."""
        kind, gain = _BLOCKS[self.class_], self.init_values
        block: Any = kind(dim, 1, mlp_ratio=1 / dim, drop_path=self.drop_path, init_values=gain)
        block.norm1, block.norm2 = built_norm(self.norm1, dim), built_norm(self.norm2, dim)
        block.attn, block.mlp = self.attn.build(dim), self.mlp.build(dim)
        return cast(nn.Module, block)


@dataclass(frozen=True, kw_only=True)
class LocalConfig(Description):
    """Attention of timm's Twins inside windows."""

    class_: Annotated[str, Words(_LOCAL)] = _class_of(_LOCAL)
    num_heads: Count = at("num_heads")
    window_size: Count = at("ws")
    attn_drop: Rate = at("attn_drop.p")
    proj_drop: Rate = at("proj_drop.p")

    def build(self, dim: int) -> nn.Module:
        """Return attention on `dim` channels."""
        made = twins.LocallyGroupedAttn(dim, self.num_heads, self.attn_drop, self.proj_drop, ws=self.window_size)
        return cast(nn.Module, made)


@dataclass(frozen=True, kw_only=True)
class GlobalConfig(Description):
    """Attention of timm's Twins to a coarser map."""

    class_: Annotated[str, Words(_GLOBAL)] = _class_of(_GLOBAL)
    num_heads: Count = at("num_heads")
    sr_ratio: Count = at("sr_ratio")
    attn_drop: Rate = at("attn_drop.p")
    proj_drop: Rate = at("proj_drop.p")

    def build(self, dim: int) -> nn.Module:
        """Return attention on `dim` channels."""
        made = twins.GlobalSubSampleAttn(
            dim, self.num_heads, attn_drop=self.attn_drop, proj_drop=self.proj_drop, sr_ratio=self.sr_ratio
        )
        return cast(nn.Module, made)


@dataclass(frozen=True, kw_only=True)
class OwnConfig(Description):
    """Attention of vitas.plain, whose width timm's Twins cannot express."""

    class_: Annotated[str, Words(_OWN)] = _class_of(_OWN)
    attn: plain.WindowAttentionConfig | plain.SubsampledAttentionConfig = at(read=plain.map_attention, flat=True)

    def build(self, dim: int) -> nn.Module:
        """Return attention on `dim` channels."""
        return self.attn.build(dim)


def _map_attention_of(attn: nn.Module) -> LocalConfig | GlobalConfig | OwnConfig:
    name = _name({**_LOCAL, **_GLOBAL, **_OWN}, attn)
    if name in _OWN:
        return OwnConfig.of(attn)
    return LocalConfig.of(attn) if name in _LOCAL else GlobalConfig.of(attn)


@dataclass(frozen=True, kw_only=True)
class MapBlockConfig(Description):
    """A block of timm's Twins."""

    norm1: NormConfig | None = at("norm1", read=norm_of)
    norm2: NormConfig | None = at("norm2", read=norm_of)
    drop_path: Rate = at("drop_path1", "drop_path2", read=_drop_path_of)
    attn: LocalConfig | GlobalConfig | OwnConfig = at("attn", read=_map_attention_of)
    mlp: MlpConfig = at("mlp", read=MlpConfig.of)

    def build(self, dim: int) -> nn.Module:
        """Return a block on `dim` channels."""
        block: Any = twins.Block(dim, 1, 1 / dim, drop_path=self.drop_path, ws=1)
        block.norm1, block.norm2 = built_norm(self.norm1, dim), built_norm(self.norm2, dim)
        block.attn, block.mlp = self.attn.build(dim), self.mlp.build(dim)
        return cast(nn.Module, block)


@dataclass(frozen=True, kw_only=True)
class PrrConfig(Description):
    """A pool without weights."""

    num_heads: Count = at("num_heads")
    pool: Annotated[str, Words(("token", "avg"))] = at("pool")

    def build(self, dim: int) -> nn.Module:
        """Return a pool of `dim` channels."""
        return cast(nn.Module, layers.AttentionPoolPrr(dim, self.num_heads, self.pool))


@dataclass(frozen=True, kw_only=True)
class LatentConfig(PrrConfig):
    """A pool by attention."""

    latent_len: Count = at("latent_len")
    qkv_bias: bool = at("kv.bias", read=is_there)
    norm: NormConfig | None = at("norm", read=norm_of)
    mlp: MlpConfig = at("mlp", read=MlpConfig.of)

    def build(self, dim: int) -> nn.Module:
        """Return a pool of `dim` channels."""
        pool: Any = layers.AttentionPoolLatent(
            dim, num_heads=self.num_heads, latent_len=self.latent_len, qkv_bias=self.qkv_bias, pool_type=self.pool
        )
        pool.norm, pool.mlp = built_norm(self.norm, dim), self.mlp.build(dim)
        return cast(nn.Module, pool)


def pool_of(pool: nn.Module | None) -> LatentConfig | PrrConfig | None:
    """Describe the pool of a network, if any."""
    if pool is None:
        return None
    return LatentConfig.of(pool) if type(pool) is layers.AttentionPoolLatent else PrrConfig.of(pool)

"""Attention that its library ties to the width of the input, freed: the same layers, any number of heads.

Their code reshapes what the heads gather to the width of the input. Where the heads in use add up to another width, the same
computation runs in a class whose code asks its layers, and the export is of that class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas import plain
from vitas.choice import compiling
from vitas.nn.layer import like
from vitas.wrapping.narrow import Narrowed, rebuilt
from vitas.wrapping.narrow import plain as exported


class Freed(Narrowed):
    """Attention that runs its library's code where that fits, else `free`, which fits always.

    Compiled, one graph of `free` serves all subnets.
    """

    words = ("w",)
    whole_only: ClassVar[bool] = False
    """Whether the library's code reads the weights of layers, which are those of the whole model."""
    free: Callable[..., Any]

    @property
    def tied(self) -> bool:
        """Whether the library's own class can express the active subnet."""
        return bool(self._dims["h d"].active == self._dims["w"].active)

    @property
    def fits(self) -> bool:
        """Whether the library's code runs as the active subnet."""
        full = all(self._dims[word].active == self._dims[word].largest for word in ("h d", "w"))
        return full or (self.tied and not self.whole_only)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Attend."""
        if compiling() or not self.fits:
            return type(self).free(self, *inputs, **options)
        return super().forward(*inputs, **options)

    def export(self) -> nn.Module:
        """Return the library's attention where it can express the active subnet, else the same of another class."""
        return super().export() if self.tied else self.freed()

    def freed(self) -> nn.Module:
        """Return the active subnet as a class that fits always."""
        raise NotImplementedError


class InPlain(Freed):
    """Attention of timm whose code vitas.plain has too."""

    heads = property(lambda self: lambda: self._dims["h"].active)  # asked by the code of vitas.plain

    def filled(self, made: nn.Module) -> nn.Module:
        """Return attention of vitas.plain with the dropout and the mode of this one."""
        for name in ("attn_drop", "proj_drop"):
            made.register_module(name, exported(self._modules[name]))
        return like(self, made)


class _Windows(InPlain):
    """timm's LocallyGroupedAttn by the code of vitas.plain.WindowAttention."""

    ws: int
    q_norm = k_norm = staticmethod(lambda x: x)
    attend = plain.WindowAttention.attend
    free = plain.WindowAttention.forward
    window = plain.WindowAttention.window
    _padded = plain.WindowAttention._padded
    _unpadded = plain.WindowAttention._unpadded
    window_size = property(lambda self: self.ws)

    def freed(self) -> nn.Module:
        """Return attention of vitas.plain."""
        parts: list[Any] = [exported(getattr(self, name)) for name in ("qkv", "proj")]
        qkv, proj = parts
        return self.filled(plain.WindowAttention(qkv, proj, self._dims["h"].active, self.ws))


class _Subsampled(InPlain):
    """timm's GlobalSubSampleAttn, and PVTv2's attention, by the code of vitas.plain.SubsampledAttention."""

    free = plain.SubsampledAttention.forward

    def freed(self) -> nn.Module:
        """Return attention of vitas.plain."""
        parts: list[Any] = [exported(getattr(self, name)) for name in ("q", "kv", "proj", "sr", "norm")]
        q, kv, proj, sr, norm = parts
        return self.filled(plain.SubsampledAttention(q, kv, proj, self._dims["h"].active, sr, norm))


class Alike(InPlain):
    """Attention whose parts a class of vitas.plain has under the same names."""

    kind: type[nn.Module]

    def freed(self) -> nn.Module:
        """Return attention of vitas.plain."""
        return rebuilt(self, self.kind)


class _Biased(Alike):
    """BEiT's attention by the code of vitas.plain.BiasedAttention."""

    whole_only = True
    kind = plain.BiasedAttention
    free = plain.BiasedAttention.forward


class _Cosine(Alike):
    """Attention of Swin V2 by the code of vitas.plain.CosineAttention."""

    whole_only = True
    kind = plain.CosineAttention
    free = plain.CosineAttention.forward


class _Relative(Alike):
    """Attention of VisionTransformerRelPos by the code of vitas.plain.RelativeAttention."""

    kind = plain.RelativeAttention
    free = plain.RelativeAttention.forward


class _CrossCovariance(Alike):
    """XCiT's attention by the code of vitas.plain.CrossCovarianceAttention."""

    kind = plain.CrossCovarianceAttention
    free = plain.CrossCovarianceAttention.forward


class _TalkingHeads(Alike):
    """CaiT's attention by the code of vitas.plain.TalkingHeadsAttention."""

    kind = plain.TalkingHeadsAttention
    free = plain.TalkingHeadsAttention.forward


class _ClassToken(Alike):
    """CaiT's and XCiT's class attention by the code of vitas.plain.ClassAttention."""

    kind = plain.ClassAttention
    free = plain.ClassAttention.forward


class _Tokens(InPlain):
    """Attention of CAFormer by the code of vitas.plain.Attention."""

    q_norm = k_norm = staticmethod(lambda x: x)
    attend = plain.Attention.attend
    free = plain.Attention.forward

    def freed(self) -> nn.Module:
        """Return attention of vitas.plain."""
        qkv, proj = (exported(getattr(self, name)) for name in ("qkv", "proj"))
        assert qkv is not None
        assert proj is not None
        return self.filled(plain.Attention(qkv, proj, self._dims["h"].active))


class _Eva(Freed):
    """timm's EvaAttention by the code of its AttentionRope, of which exports are where EvaAttention does not fit."""

    whole_only = True
    num_prefix_tokens: int
    scale: float

    def free(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Attend: (B, N, D) -> (B, N, D); rotary positions turn q and k of all but the prefix tokens."""
        from timm.layers import apply_rot_embed_cat

        own: Any = self
        heads, first = self._dims["h"].active, self.num_prefix_tokens
        q, k, v = (torch.unflatten(part, -1, (heads, -1)).transpose(1, 2) for part in self.qkv_of(x))  # (B, h, N, d) each
        q, k = own.q_norm(q), own.k_norm(k)
        if rope is not None:
            half = bool(vars(self).get("rotate_half"))
            q, k = (
                torch.cat([p[:, :, :first], apply_rot_embed_cat(p[:, :, first:], rope, half=half)], dim=2).type_as(v)
                for p in (q, k)
            )
        dropout = own.attn_drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
        out = own.norm(out.transpose(1, 2).flatten(2))
        if own._modules.get("gate") is not None:
            out = out * own.gate(x).sigmoid()
        return own.proj_drop(own.proj(out))  # type: ignore[no-any-return]

    def qkv_of(self, x: Tensor) -> Sequence[Tensor]:
        """Return q, k and v, (B, N, h * d) each."""
        own: Any = self
        if own._modules.get("qkv") is None:
            return [own.q_proj(x), own.k_proj(x), own.v_proj(x)]
        biases = self.cut("q_bias", "k_bias", "v_bias")
        bias = torch.cat(list(biases.values())) if biases else None
        return F.linear(x, own.qkv.active_weights()["weight"], bias).chunk(3, dim=-1)

    def freed(self) -> nn.Module:
        """Return timm's AttentionRope, q, k and v apart: there k has no bias either."""
        from timm.layers import AttentionRope

        parts: Any = super(Freed, self).export()
        made: Any = AttentionRope.__new__(AttentionRope)
        nn.Module.__init__(made)
        names = ("num_heads", "scale", "num_prefix_tokens", "fused_attn")
        vars(made).update({name: getattr(parts, name) for name in names}, rotate_half=bool(vars(self).get("rotate_half")))
        inner = self._dims["h d"].active
        made.head_dim = inner // parts.num_heads
        made.attn_dim = made.kv_dim = inner
        made.num_kv_heads, made.num_kv_groups = parts.num_heads, 1
        made.qkv = None
        for name, bias in (("q_proj", parts.q_bias), ("k_proj", None), ("v_proj", parts.v_bias)):
            made.add_module(name, parts._modules.get(name))
            if parts.qkv is not None:
                rows = "qkv".index(name[0]) * inner
                made.add_module(name, _linear(parts.qkv, rows, inner, bias))
        for name in ("q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"):
            made.add_module(name, parts._modules.get(name))
        return like(self, cast(nn.Module, made))


def _linear(stacked: nn.Linear, start: int, rows: int, bias: nn.Parameter | None) -> nn.Linear:
    """Return some rows of a linear layer as one of its own."""
    made = nn.Linear(stacked.in_features, rows, bias is not None, device="meta")
    weight = stacked.weight.detach()[start : start + rows].clone()
    made.weight = nn.Parameter(weight, stacked.weight.requires_grad)
    made.bias = bias  # type: ignore[assignment]
    return like(stacked, made)


class _BiasesAnew(Narrowed):
    """Attention of LeViT and TinyViT, without the table of biases that its library keeps between calls.

    Source: ours.
    """

    forgets = ("attention_bias_cache",)
    attention_biases: Tensor
    attention_bias_idxs: Tensor

    def get_attention_biases(self, device: torch.device) -> Tensor:
        """Return what is added to the scores of the active heads, (h, N, N)."""
        return self.attention_biases[:, self.attention_bias_idxs]


class _Pooled(Narrowed):
    """Attention of MViT V2, whose convolutions take the heads as images.

    Source: ours.
    """

    each_head = ("pool_q", "pool_k", "pool_v")


FORWARDS: dict[str, type[Narrowed]] = {
    "timm.models.cait.ClassAttn": _ClassToken,
    "timm.models.cait.TalkingHeadAttn": _TalkingHeads,
    "timm.models.levit.Attention": _BiasesAnew,
    "timm.models.levit.AttentionDownsample": _BiasesAnew,
    "timm.models.metaformer.Attention": _Tokens,
    "timm.models.mvitv2.MultiScaleAttention": _Pooled,
    "timm.models.pvt_v2.Attention": _Subsampled,
    "timm.models.vision_transformer_relpos.RelPosAttention": _Relative,
    "timm.models.xcit.XCA": _CrossCovariance,
    "timm.models.beit.Attention": _Biased,
    "timm.models.swin_transformer_v2.WindowAttention": _Cosine,
    "timm.models.eva.EvaAttention": _Eva,
    "timm.models.tiny_vit.Attention": _BiasesAnew,
    "timm.models.twins.LocallyGroupedAttn": _Windows,
    "timm.models.twins.GlobalSubSampleAttn": _Subsampled,
}
"""What stands first among the bases of the class that narrows an attention, by its full name."""

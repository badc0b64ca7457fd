"""What exports are made of: Vision Transformer and Twins in plain torch. This file imports torch only and works alone.

The forward passes of block, attention, MLP and model stand here and nowhere else. Each class is given its layers: with
torch.nn layers it is a plain network, with those of `vitas.nn` the same code is searchable. Attribute names and
checkpoint keys are timm's (timm 1.0.23, `timm/models/vision_transformer.py` and `twins.py`).

Letters: B images, C channels, H x W pixels, P patch size, N tokens, D embedding width, h heads, d width of q, k and v each.
"""

import itertools
import math
import operator
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, SupportsIndex, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint


@fx.wrap
def of_shape(x: Tensor, shape: Sequence[int | None], least: int = 1, error: type[Exception] = ValueError) -> Tensor:
    """Return images that have the shape that is accepted; a step of its own where torch.fx records a network.

    Args:
        x: Images (B, C, H, W).
        shape: C, H and W; None: any height and width of at least `least`.
        least: Smallest height and width.
        error: What is raised.

    Raises:
        ValueError: `error`, for another shape.
    """
    fits = x.ndim == 1 + len(shape)
    if fits and all(n >= least if wanted is None else n == wanted for n, wanted in zip(x.shape[1:], shape, strict=True)):
        return x
    words = zip(shape, ("channels", "height", "width"), strict=True)
    expected = ", ".join(word if wanted is None else str(wanted) for wanted, word in words)
    sides = f", sides of at least {least}" if least > 1 else ""
    raise error(f"images: expected shape (batch, {expected}){sides}, got {tuple(x.shape)}")


def _whole(length: int, side: int) -> int:
    """Return how many parts of `side` hold `length`, the last one padded."""
    return (length + side - 1) // side  # not -(-length // side): ONNX rounds a negative quotient to zero, not down


@fx.wrap
def whole_windows(x: Tensor, side: int) -> Tensor:
    """Pad a map (B, H, W, D) with zeros to whole windows; a step of its own where torch.fx records a network."""
    height, width = x.shape[1], x.shape[2]
    rows, columns = _whole(height, side), _whole(width, side)
    if rows * side > height or columns * side > width:
        x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
    return x


class DropPath(nn.Module):
    """Drop the whole branch of a sample with probability `drop_prob` while training; scale the others up.

    Shapes: (B, ...) -> (B, ...).
    Source: stochastic depth, Huang et al., arXiv:1603.09382v3.
    """

    drop_prob: float

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        drop_prob = self.drop_prob
        if drop_prob == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - drop_prob)
        return x * keep.div_(1 - drop_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class LayerScale(nn.Module):
    """Multiply each channel by a learned gain that starts small.

    Shapes: (B, N, D) -> (B, N, D).
    Source: Touvron et al., arXiv:2103.17239v2, section 2.
    """

    def __init__(self, dim: int, init_values: float = 1e-5, device: torch.device | None = None) -> None:
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.full((dim,), float(init_values), device=device))

    def reset_parameters(self) -> None:
        """Set every gain to its starting value."""
        nn.init.constant_(self.gamma, self.init_values)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an activation between.

    Shapes: (B, N, D) -> (B, N, D).
    """

    def __init__(self, fc1: nn.Module, fc2: nn.Module, act: nn.Module, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = fc1
        self.act = act
        self.drop1 = nn.Dropout(drop)
        self.fc2 = fc2
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention; the head width is d / h, the scale its inverse root.

    Shapes: (B, N, D) -> (B, N, D).
    Source: Vaswani et al., arXiv:1706.03762v7, section 3.2.

    Args:
        qkv: Layer (B, N, D) -> (B, N, 3d): all of q, then k, then v.
        proj: Layer (B, N, d) -> (B, N, D).
        num_heads: Number of heads.
        q_norm: Layer on the channels of each head's queries.
        k_norm: Layer on the channels of each head's keys.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.
    """

    def __init__(
        self,
        qkv: nn.Module,
        proj: nn.Module,
        num_heads: int,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = qkv
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = proj
        self.proj_drop = nn.Dropout(proj_drop)

    def heads(self) -> int:
        """Return the number of heads in use."""
        return self.num_heads

    def attend(self, x: Tensor) -> Tensor:
        """Return what the heads gather, before the projection: (B, N, D) -> (B, N, d)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads(), -1))  # (B, N, 3, h, d / h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d / h) each
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, dropout_p=dropout)
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.attend(x)))  # type: ignore[no-any-return]


class WindowAttention(Attention):
    """Self-attention inside square windows of a map; the map is padded with zeros to whole windows.

    The padding takes part as tokens, as in timm. A window larger than the map is one window, mostly padding.

    Shapes: (B, H, W, D) -> (B, H, W, D); with size=(H, W), as timm calls it, (B, N, D) -> (B, N, D).
    Source: locally-grouped self-attention, Chu et al. (Twins), arXiv:2104.13840v4, section 3.2.

    Args:
        qkv: Layer (B, N, D) -> (B, N, 3d): all of q, then k, then v.
        proj: Layer (..., d) -> (..., D).
        num_heads: Number of heads.
        window_size: Side of a window, in tokens.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.
    """

    def __init__(
        self,
        qkv: nn.Module,
        proj: nn.Module,
        num_heads: int,
        window_size: int,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(qkv, proj, num_heads, attn_drop=attn_drop, proj_drop=proj_drop)
        self.window_size = window_size

    def window(self) -> int:
        """Return the side of a window."""
        return self.window_size

    def _padded(self, x: Tensor, side: int) -> Tensor:
        """Pad a map (B, H, W, D) with zeros to whole windows."""
        return whole_windows(x, side)

    def _unpadded(self, x: Tensor, height: int, width: int) -> Tensor:
        """Take the padding off again."""
        return x[:, :height, :width]

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is not None:
            return self.forward(torch.unflatten(x, 1, size)).flatten(1, 2)
        height, width, side = x.shape[1], x.shape[2], self.window()
        rows, columns = _whole(height, side), _whole(width, side)
        x = self._padded(x, side)
        x = torch.unflatten(torch.unflatten(x, 2, (columns, side)), 1, (rows, side))  # (B, rows, side, columns, side, D)
        x = self.attend(x.transpose(2, 3).flatten(3, 4).flatten(0, 2))  # (B * rows * columns, side^2, d)
        x = torch.unflatten(torch.unflatten(x, 1, (side, side)), 0, (-1, rows, columns))
        x = self._unpadded(x.transpose(2, 3).flatten(3, 4).flatten(1, 2), height, width)
        return self.proj_drop(self.proj(x))  # type: ignore[no-any-return]


class SubsampledAttention(nn.Module):
    """Attention of all positions of a map to the positions of a coarser one, which a convolution makes.

    Shapes: (B, H, W, D) -> (B, H, W, D); k, v (B, h, (H / R) * (W / R), d / h), R the stride of `sr`. With size=(H, W), as
    timm calls it, (B, N, D) -> (B, N, D).
    Source: global sub-sampled attention, Chu et al. (Twins), arXiv:2104.13840v4, section 3.2.

    Args:
        q: Layer (B, N, D) -> (B, N, d).
        kv: Layer (B, N, D) -> (B, N, 2d): all of k, then v.
        proj: Layer (B, N, d) -> (B, N, D).
        num_heads: Number of heads.
        sr: Layer (B, D, H, W) -> (B, D, H / R, W / R), or None for R = 1.
        norm: Layer on the channels of the coarser map, or None.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.
    """

    sr: nn.Module | None
    norm: nn.Module | None

    def __init__(
        self,
        q: nn.Module,
        kv: nn.Module,
        proj: nn.Module,
        num_heads: int,
        sr: nn.Module | None = None,
        norm: nn.Module | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = q
        self.kv = kv
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = proj
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_module("sr", sr)  # a child also where it is None
        self.register_module("norm", norm)

    def heads(self) -> int:
        """Return the number of heads in use."""
        return self.num_heads

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is not None:
            return self.forward(torch.unflatten(x, 1, size)).flatten(1, 2)
        height, heads = x.shape[1], self.heads()
        q = self.q(x.flatten(1, 2)).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, h, N, d / h)
        if self.sr is not None:
            x = self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.norm is not None:
            x = self.norm(x)
        kv = self.kv(x.flatten(1, 2)).unflatten(-1, (2, heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        x = self.proj(x.transpose(1, 2).flatten(2))  # (B, N, D)
        return self.proj_drop(x).unflatten(1, (height, -1))  # type: ignore[no-any-return]


def _separate_qkv(attention: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Return q, k and v, (B, h, N, d / h) each, where the biases of q and v stand apart from the layer and k has none."""
    qkv = attention.qkv(x)
    if attention.q_bias is not None:
        qkv = qkv + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return torch.unflatten(qkv, -1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class BiasedAttention(nn.Module):
    """Self-attention with a learnt number added to each score: one a head and a step from query to key.

    Made by exports, which put in the parts that timm's attention has, under its names.

    Shapes: (B, N, D) -> (B, N, D); `relative_position_bias_table` (steps, h), `relative_position_index` (N, N).
    Source: Bao et al. (BEiT), arXiv:2106.08254v2, section 2.4; the table of Liu et al. (Swin), arXiv:2103.14030v2.
    """

    num_heads: int
    qkv: nn.Module
    attn_drop: nn.Dropout
    proj: nn.Module
    proj_drop: nn.Module
    relative_position_bias_table: Tensor | None
    relative_position_index: Tensor

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        q, k, v = _separate_qkv(self, x)
        bias = shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            own = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (h, N, N)
            bias = own if bias is None else own + bias
        x = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class CosineAttention(nn.Module):
    """Self-attention in windows by the angle of q and k; a small MLP makes the numbers added to the scores from the steps.

    Made by exports, which put in the parts that timm's attention has, under its names.

    Shapes: (B * W, N, D) -> (B * W, N, D) for W windows of N tokens; mask (W, N, N); `logit_scale` (h, 1, 1).
    Source: Liu et al. (Swin V2), arXiv:2111.09883v2, sections 3.2 and 3.3.
    """

    num_heads: int
    qkv: nn.Module
    attn_drop: nn.Module
    proj: nn.Module
    proj_drop: nn.Module
    cpb_mlp: nn.Module
    logit_scale: Tensor
    relative_coords_table: Tensor
    relative_position_index: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = _separate_qkv(self, x)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)  # (B * W, h, N, N)
        scores = scores * self.logit_scale.clamp(max=math.log(100)).exp()
        steps = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)  # (steps, h)
        scores = scores + 16 * steps[self.relative_position_index].permute(2, 0, 1).sigmoid()
        if mask is not None:
            scores = (torch.unflatten(scores, 0, (-1, mask.shape[0])) + mask.unsqueeze(1)).flatten(0, 1)
        x = self.attn_drop(scores.softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class RelativeAttention(nn.Module):
    """Self-attention to whose scores a part of its own, timm's `rel_pos`, adds a number a head and a step.

    Made by exports, which put in the parts that timm's attention has, under its names.

    Shapes: (B, N, D) -> (B, N, D); shared_rel_pos (1, h, N, N).
    Source: positions as in Swin, Liu et al., arXiv:2103.14030v2 and arXiv:2111.09883v2.
    """

    num_heads: int
    proj_drop: nn.Module
    proj: nn.Module
    k_norm: nn.Module
    q_norm: nn.Module
    qkv: nn.Module
    attn_drop: nn.Dropout
    rel_pos: Any

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d / h) each
        bias = shared_rel_pos if self.rel_pos is None else self.rel_pos.get_bias()
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, bias, dropout_p=dropout)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class CrossCovarianceAttention(nn.Module):
    """Attention of the channels of a head to each other, by the angle of their values over all positions.

    Made by exports, which put in the parts that timm's attention has, under its names.

    Shapes: (B, N, D) -> (B, N, D); `temperature` (h, 1, 1).
    Source: El-Nouby et al. (XCiT), arXiv:2106.09681v2, section 3.2.
    """

    num_heads: int
    proj_drop: nn.Module
    proj: nn.Module
    attn_drop: nn.Module
    qkv: nn.Module
    temperature: Tensor

    def forward(self, x: Tensor) -> Tensor:
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)  # (B, h, d / h, N) each
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        x = self.attn_drop(scores.softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(x.permute(0, 3, 1, 2).flatten(2)))  # type: ignore[no-any-return]


class TalkingHeadsAttention(nn.Module):
    """Self-attention whose heads are mixed, before and after the softmax.

    Made by exports, which put in the parts that timm's attention has, under its names.

    Shapes: (B, N, D) -> (B, N, D).
    Source: Shazeer et al., arXiv:2003.02436v1; Touvron et al. (CaiT), arXiv:2103.17239v2.
    """

    num_heads: int
    proj_drop: nn.Module
    proj: nn.Module
    attn_drop: nn.Module
    proj_w: nn.Module
    proj_l: nn.Module
    qkv: nn.Module
    scale: float

    def forward(self, x: Tensor) -> Tensor:
        qkv = torch.unflatten(self.qkv(x), -1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d / h) each
        scores = (q * self.scale @ k.transpose(-2, -1)).permute(0, 2, 3, 1)  # (B, N, N, h)
        weights = self.proj_w(self.proj_l(scores).softmax(dim=2)).permute(0, 3, 1, 2)
        x = self.attn_drop(weights) @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class ClassAttention(nn.Module):
    """Attention of the first token to all.

    Made by exports, which put in the parts that timm's attention has, under its names.

    Shapes: (B, N, D) -> (B, 1, D).
    Source: Touvron et al. (CaiT), arXiv:2103.17239v2, section 3.
    """

    num_heads: int
    proj_drop: nn.Module
    proj: nn.Module
    v: nn.Module
    k: nn.Module
    q: nn.Module
    attn_drop: nn.Dropout

    def forward(self, x: Tensor) -> Tensor:
        own = (self.q(x[:, :1]), self.k(x), self.v(x))
        q, k, v = (torch.unflatten(part, -1, (self.num_heads, -1)).transpose(1, 2) for part in own)  # (B, h, N, d / h)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block: x + attention, then x + MLP.

    Shapes: (B, N, D) -> (B, N, D), or (B, H, W, D) -> (B, H, W, D) where its attention works on maps.
    Source: Dosovitskiy et al., arXiv:2010.11929v2, section 3.1.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attn: nn.Module,
        norm2: nn.Module,
        mlp: nn.Module,
        ls1: nn.Module | None = None,
        ls2: nn.Module | None = None,
        drop_path1: nn.Module | None = None,
        drop_path2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm1
        self.attn = attn
        self.ls1 = ls1 or nn.Identity()
        self.drop_path1 = drop_path1 or nn.Identity()
        self.norm2 = norm2
        self.mlp = mlp
        self.ls2 = ls2 or nn.Identity()
        self.drop_path2 = drop_path2 or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))  # type: ignore[no-any-return]


class Blocks(nn.Sequential):
    """Blocks in a row; with `grad_checkpointing` their activations are recomputed in the backward pass.

    Shapes: (B, N, D) -> (B, N, D).
    """

    grad_checkpointing = False

    def running(self) -> list[nn.Module]:
        """Return the blocks that run, in order."""
        return list(self)

    def forward(
        self,
        x: Tensor,
        after_first: nn.Module | None = None,
        taken: dict[int, Tensor] | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Run the blocks.

        Args:
            x: Input of the first block.
            after_first: A layer that runs behind the first block, whichever that is, or alone where there is none.
            taken: Its keys are numbers of blocks that run; the output of each becomes its value.
            last: Number of the last block to run; None: all run.
        """
        row = self.running()
        for number, block in enumerate(row if last is None else row[: last + 1]):
            x = self.run(block, x)
            if number == 0 and after_first is not None:
                x = after_first(x)
            if taken is not None and number in taken:
                taken[number] = x
        return x if row or after_first is None else after_first(x)

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one block."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return self.recomputed(block, x)
        return block(x)  # type: ignore[no-any-return]

    def recomputed(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run a block without keeping its activations."""
        return checkpoint(block, x, use_reentrant=False)  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Cut the image into patches and embed each.

    Shapes: (B, C, H, W) -> (B, N, D), N = (H / P) * (W / P).

    Args:
        proj: Layer (B, C, H, W) -> (B, D, H / P, W / P).
        img_size: Height and width in pixels.
        in_chans: Image channels C.
    """

    def __init__(self, proj: nn.Module, img_size: tuple[int, int], in_chans: int = 3) -> None:
        super().__init__()
        self.img_size = img_size
        self.in_chans = in_chans
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        x = self.check(x)
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        proj: Any = self.proj
        return int(proj.kernel_size[0])

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Return how many rows and columns of patches an image has, the last ones padded."""
        return _whole(size[0], self.patch()), _whole(size[1], self.patch())

    def embed_any_size(self, x: Tensor) -> Tensor:
        """Embed images of any size, padded with zeros to whole patches: (B, C, H, W) -> (B, N, D)."""
        x = self.check(x, any_size=True)
        (height, width), (rows, columns), side = x.shape[2:], self.grid(x.shape[2:]), self.patch()
        x = F.pad(x, (0, columns * side - width, 0, rows * side - height))
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def accepted(self, any_size: bool = False) -> tuple[int | None, ...]:
        """Return the channels, height and width of images that are accepted; None: any."""
        return (self.in_chans, None, None) if any_size else (self.in_chans, *self.img_size)

    def check(self, x: Tensor, any_size: bool = False) -> Tensor:
        """Return images of the shape that is accepted.

        Raises:
            ValueError: another shape.
        """
        return of_shape(x, self.accepted(any_size))


def add_tokens(x: Tensor, tokens: Sequence[Tensor], pos_embed: Tensor) -> Tensor:
    """Put the class (and distillation) token before the patches and add the positions: (B, N, D) -> (B, T + N, D)."""
    first = [token.expand(x.shape[0], -1, -1) for token in tokens]
    return torch.cat([*first, x], dim=1) + pos_embed


def resample_positions(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Return the positions for another grid of patches: bicubic, antialiased, the first `prefix` tokens kept.

    Shapes: (1, prefix + old[0] * old[1], D) -> (1, prefix + new[0] * new[1], D).
    Source: the same rule as timm 1.0.23, `resample_abs_pos_embed`.
    """
    if old == new:
        return pos_embed
    first, grid = pos_embed[:, :prefix], pos_embed[:, prefix:].float()
    grid = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(pos_embed.dtype)
    return torch.cat([first, grid], dim=1)


def resampled(pos_embed: Any, old: tuple[int, int], new: tuple[int, int], prefix: int) -> nn.Parameter:
    """Return a new parameter with the positions for another grid of patches, see `resample_positions`."""
    table = resample_positions(pos_embed.detach(), old, new, prefix)
    return nn.Parameter(table.clone(memory_format=torch.contiguous_format), pos_embed.requires_grad)


class Tokens(nn.Module):
    """Class token and learned positions.

    Shapes: (B, N, D) -> (B, 1 + N, D); tables (1, 1, D) and (1, 1 + N, D).
    """

    def __init__(self, cls_token: Tensor, pos_embed: Tensor) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(cls_token)
        self.pos_embed = nn.Parameter(pos_embed)

    def reset_parameters(self) -> None:
        """Draw fresh tables: truncated normal positions (std 0.02) and a token near zero, as timm does."""
        reset_tables(self)

    def forward(self, x: Tensor) -> Tensor:
        return add_tokens(x, [self.cls_token], self.pos_embed)


def fresh_classifier(model: nn.Module, width: int, num_classes: int) -> nn.Module:
    """Return a classifier (B, D) -> (B, classes) with fresh weights, of the device and type of a model's; an identity for 0.

    Raises:
        ValueError: anything but an int of at least 0.
    """
    try:
        classes = operator.index(num_classes)
    except TypeError:
        classes = -1
    if classes < 0:
        raise ValueError(f"num_classes: expected an int of at least 0, got {num_classes!r}")
    if not classes:
        return nn.Identity().train(model.training)
    beside = next(model.parameters())
    layer = nn.Linear(width, classes, device=beside.device, dtype=beside.dtype)
    _reset_linear(layer)
    return layer.train(model.training)


def _reset_linear(layer: nn.Linear) -> None:
    """Draw fresh weights: truncated normal (std 0.02), the bias zero, as timm does."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def reset_tables(module: nn.Module) -> None:
    """Draw fresh positions (truncated normal, std 0.02) and tokens (near zero) where a module has them."""
    for name, table in module.named_parameters():
        if name.startswith(("cls_token", "dist_token")):
            nn.init.normal_(table, std=1e-6)
        elif name.startswith("pos_embed"):
            nn.init.trunc_normal_(table, std=0.02)


class VisionTransformer(nn.Module):
    """Vision Transformer, with an optional distillation token (DeiT).

    Shapes: (B, C, H, W) -> (B, classes); while training a distilled model with `distilled_training`, a pair of them.
    Source: Dosovitskiy et al., arXiv:2010.11929v2; distillation: Touvron et al., arXiv:2012.12877v2, section 4.

    Args:
        patch_embed: Layer (B, C, H, W) -> (B, N, D).
        cls_token: (1, 1, D).
        pos_embed: (1, T + N, D), T the number of tokens before the patches.
        blocks: Layer (B, T + N, D) -> (B, T + N, D).
        norm: Layer norm before pooling, or None.
        fc_norm: Layer norm after pooling, or None.
        head: Classifier (B, D) -> (B, classes), or None.
        dist_token: (1, 1, D), or None.
        head_dist: Classifier of the distillation token.
        global_pool: "token" (the class token) or "avg" (mean over the patches).
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        cls_token: Tensor | nn.ParameterDict,
        pos_embed: Tensor | nn.ParameterDict,
        blocks: nn.Module,
        norm: nn.Module | None = None,
        fc_norm: nn.Module | None = None,
        head: nn.Module | None = None,
        dist_token: Tensor | nn.ParameterDict | None = None,
        head_dist: nn.Module | None = None,
        global_pool: str = "token",
    ) -> None:
        super().__init__()
        self.global_pool = global_pool
        self.distilled = dist_token is not None
        self.distilled_training = False
        self.num_prefix_tokens = 2 if self.distilled else 1
        self.patch_embed = patch_embed
        self.cls_token = _registered(cls_token)
        if dist_token is not None:
            self.dist_token = _registered(dist_token)
        self.pos_embed = _registered(pos_embed)
        self.blocks = blocks
        self.norm = norm or nn.Identity()
        self.fc_norm = fc_norm or nn.Identity()
        self.head = head or nn.Identity()
        if self.distilled:
            self.head_dist = head_dist or nn.Identity()

    @property
    def config(self) -> dict[str, Any]:
        """The sizes and options that `from_config` needs, as plain JSON values."""
        return VisionTransformerConfig.of(self).as_json()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "VisionTransformer":
        """Return a network of these sizes; its tables are zero and its layers as torch draws them."""
        made: VisionTransformer = from_json(VisionTransformerConfig, config).build(cls)
        return made

    def tables(self) -> dict[str, Tensor]:
        """Return class token, distillation token (if any) and positions in use, (1, ..., D) each."""
        names = ("cls_token", "dist_token", "pos_embed") if self.distilled else ("cls_token", "pos_embed")
        return {name: getattr(self, name) for name in names}

    def embed(self, x: Tensor, any_size: bool = False) -> Tensor:
        """Return the tokens that enter the blocks: (B, C, H, W) -> (B, T + N, D).

        Args:
            x: Images.
            any_size: Whether they may have another size: they are padded to whole patches, and positions are resampled.
        """
        *tokens, pos_embed = self.tables().values()
        if not any_size:
            return add_tokens(self.patch_embed(x), tokens, pos_embed)
        embed: Any = self.patch_embed
        patches = embed.embed_any_size(x)
        grids = embed.grid(embed.img_size), embed.grid(x.shape[2:])
        return add_tokens(patches, tokens, resample_positions(pos_embed, *grids, self.num_prefix_tokens))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return all tokens after the last norm: (B, C, H, W) -> (B, T + N, D)."""
        return self.norm(self.blocks(self.embed(x)))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Pool and classify: (B, T + N, D) -> (B, classes), or (B, D) with `pre_logits`."""
        if self.distilled:
            x, x_dist = x[:, 0], x[:, 1]
            if pre_logits:
                return (x + x_dist) / 2
            x, x_dist = self.head(x), self.head_dist(x_dist)
            return (x, x_dist) if self.distilled_training and self.training else (x + x_dist) / 2
        x = x[:, self.num_prefix_tokens :].mean(dim=1) if self.global_pool == "avg" else x[:, 0]
        x = self.fc_norm(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.blocks(self.embed(x))
        return self.forward_head(self.norm(x))

    def width(self) -> int:
        """Return the channels of the tokens."""
        embed: Any = self.patch_embed
        return int(embed.proj.out_channels)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What `forward_intermediates` returns: for each block its channels and how many pixels a position stands for."""
        embed: Any = self.patch_embed
        blocks: Any = self.blocks
        sizes = {"num_chs": self.width(), "reduction": embed.patch()}
        return [{"module": f"blocks.{i}", **sizes} for i in range(len(blocks.running()))]

    def feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return the numbers of the blocks that `indices` means, see `feature_indices`."""
        return feature_indices(len(self.feature_info), indices)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return all tokens after the last norm and the maps behind some blocks, as timm's method of this name does.

        Images may have any size: they are padded to whole patches, and positions are resampled.

        Args:
            x: Images (B, C, H, W).
            indices: Numbers of blocks that run, negative ones from the end; an int: so many last ones; None: all.
            return_prefix_tokens: Whether each map comes with its class (and distillation) token.
            norm: Whether the maps pass the last norm.
            stop_early: Whether to leave out the blocks behind the last one that is asked for.
            output_fmt: "NCHW": maps (B, D, H / P, W / P); "NLC": tokens (B, N, D).
            intermediates_only: Whether to return just the list of maps.

        Raises:
            ValueError: indices out of range, another format, images of other channels.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt: expected 'NCHW' or 'NLC', got {output_fmt!r}")
        wanted = self.feature_indices(indices)
        taken: dict[int, Any] = dict.fromkeys(wanted)
        size = x.shape[-2:]
        x = self.blocks(self.embed(x, any_size=True), None, taken, max(wanted) if stop_early else None)
        x = self.norm(x)
        outputs = []
        for number in sorted(taken):
            tokens = self.norm(taken[number]) if norm else taken[number]
            prefix, tokens = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
            if output_fmt == "NCHW":
                grid = self.patch_embed.grid(size)  # type: ignore[operator]
                tokens = tokens.transpose(1, 2).unflatten(2, grid).contiguous()
            outputs.append((tokens, prefix) if return_prefix_tokens else tokens)
        return outputs if intermediates_only else (x, outputs)

    def reset_parameters(self) -> None:
        """Draw fresh weights: truncated normal (std 0.02) for linear layers and positions, as timm does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _reset_linear(module)
        reset_tables(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, about a third more time."""
        self.blocks.grad_checkpointing = enable  # type: ignore[assignment]

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size from now on: positions are resampled (bicubic, antialiased), as timm does.

        Raises:
            ValueError: patches that do not divide the image.
        """
        embed: Any = self.patch_embed
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if any(side < 1 or side % embed.patch() for side in size):
            height, width = size
            raise ValueError(f"img_size: patches of {embed.patch()} pixels do not divide an image of {height} x {width}")
        grids = embed.grid(embed.img_size), embed.grid(size)
        self.pos_embed = resampled(self.pos_embed, *grids, self.num_prefix_tokens)
        embed.img_size = size

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' outputs while training, for a distillation loss."""
        self.distilled_training = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimisers should not decay."""
        first = ("cls_token", "dist_token", "pos_embed")
        return {name for name, _ in self.named_parameters() if name.split(".")[0] in first}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of parameters' names for timm's layer-wise learning rates: the stem, then each block."""
        blocks = [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^cls_token|^dist_token|^pos_embed|^patch_embed", "blocks": blocks}

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        return _classes_of(self.head)

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Return the classifier; of a distilled model both."""
        return (self.head, self.head_dist) if self.distilled else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in the place of the old one; of a distilled model both.

        Args:
            num_classes: Classes; 0: no classifier.
            global_pool: "token" or "avg"; None: as before. The last norm stays where it is.

        Raises:
            ValueError: another word, or number; "avg" for a distilled model.
        """
        words = ("token",) if self.distilled else ("token", "avg")
        _check_pooling(global_pool, words)
        self.head = fresh_classifier(self, self.width(), num_classes)
        if self.distilled:
            self.head_dist = fresh_classifier(self, self.width(), num_classes)
        self.global_pool = global_pool or self.global_pool


def feature_indices(number: int, indices: int | Sequence[int] | None) -> list[int]:
    """Return which of `number` features `indices` means: all (None), so many last ones (an int), or those listed.

    Raises:
        ValueError: out of range, or no ints.
    """
    if indices is None:
        return list(range(number))
    if not isinstance(indices, Iterable):
        last = _index(indices)
        if not 0 < last <= number:
            raise ValueError(f"indices: expected 1 to {number} last features, got {last}")
        return list(range(number - last, number))
    given = [_index(index) for index in indices]
    for index in given:
        if not -number <= index < number:
            raise ValueError(f"indices: expected numbers in {-number}..{number - 1}, got {index}")
    if not given:
        raise ValueError("indices: expected at least one, got none")
    return [index % number for index in given]


def _index(number: SupportsIndex) -> int:
    try:
        return operator.index(number)
    except TypeError:
        raise ValueError(f"indices: expected ints, got {number!r}") from None


def _check_pooling(global_pool: str | None, words: Sequence[str]) -> None:
    if global_pool is not None and global_pool not in words:
        raise ValueError(f"global_pool: expected one of {', '.join(map(repr, words))}, got {global_pool!r}")


def _registered(table: Tensor | nn.ParameterDict) -> nn.Parameter | nn.ParameterDict:
    return nn.Parameter(table) if isinstance(table, Tensor) else table


class PatchMerging(nn.Module):
    """Merge each square of pixels, or of positions of a map, into one position and normalise it.

    Shapes: (B, C, H, W) -> (B, H / P, W / P, D), rounded down.

    Args:
        proj: Layer (B, C, H, W) -> (B, D, H / P, W / P).
        norm: Layer on D channels.
    """

    def __init__(self, proj: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.proj = proj
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class PositionGenerator(nn.Module):
    """Positions made from the map itself: x + a depth-wise 3 x 3 convolution of x.

    Shapes: (B, H, W, D) -> (B, H, W, D).
    Source: conditional position encodings, Chu et al., arXiv:2102.10882v3, section 3.3.

    Args:
        conv: Layer (B, D, H, W) -> (B, D, H, W).
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.proj = nn.Sequential(conv)  # timm's key: proj.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class Twins(nn.Module):
    """Hierarchical Vision Transformer of stages, each a coarser map with more channels; images of any size.

    A stage merges patches, then runs blocks of window and sub-sampled attention, with a position generator after the first.

    Shapes: (B, C, H, W) -> (B, classes); without pooling (B, N, classes), N the positions of the last map.
    Source: Chu et al. (Twins), arXiv:2104.13840v4.

    Args:
        patch_embeds: For each stage a layer (B, C, H, W) -> (B, H / P, W / P, D).
        blocks: For each stage its blocks, (B, H, W, D) -> (B, H, W, D).
        pos_block: For each stage a layer (B, H, W, D) -> (B, H, W, D).
        norm: Layer norm on the channels of the last stage.
        head: Classifier (B, D) -> (B, classes), or None.
        global_pool: "avg" (mean over the positions) or "" (none).
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after each merging of patches.
    """

    def __init__(
        self,
        patch_embeds: Iterable[nn.Module],
        blocks: Iterable[nn.Module],
        pos_block: Iterable[nn.Module],
        norm: nn.Module,
        head: nn.Module | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.global_pool = global_pool
        self.patch_embeds = nn.ModuleList(patch_embeds)
        self.pos_drops = nn.ModuleList(nn.Dropout(pos_drop_rate) for _ in self.patch_embeds)
        self.blocks = nn.ModuleList(blocks)
        self.pos_block = nn.ModuleList(pos_block)
        self.norm = norm
        self.head_drop = nn.Dropout(drop_rate)
        self.head = head or nn.Identity()

    @property
    def config(self) -> dict[str, Any]:
        """The sizes and options that `from_config` needs, as plain JSON values."""
        return TwinsConfig.of(self).as_json()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Twins":
        """Return a network of these sizes; its layers are as torch draws them."""
        made: Twins = from_json(TwinsConfig, config).build(cls)
        return made

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Run one stage: (B, H, W, C) -> (B, H / P, W / P, D)."""
        x = self.patch_embeds[number](x.permute(0, 3, 1, 2))
        return self.blocks[number](self.pos_drops[number](x), self.pos_block[number])  # type: ignore[no-any-return]

    def last_map(self, x: Tensor) -> Tensor:
        """Run all stages: (B, C, H, W) -> (B, H / stride, W / stride, D)."""
        x = self.check(x).permute(0, 2, 3, 1)
        for number in range(len(self.blocks)):
            x = self.stage(number, x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the positions of the last map after the last norm: (B, C, H, W) -> (B, N, D)."""
        return self.norm(self.last_map(x)).flatten(1, 2)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify: (B, N, D) -> (B, classes), or (B, D) with `pre_logits`."""
        x = self.head_drop(x.mean(dim=1) if self.global_pool == "avg" else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last_map(x)  # in a step of its own: compiled, norm and head are one graph
        return self.forward_head(self.norm(x).flatten(1, 2))

    def widths(self) -> list[int]:
        """Return the channels of each stage."""
        return [embed.proj.out_channels for embed in self.patch_embeds]  # type: ignore[union-attr, misc]

    def strides(self) -> list[int]:
        """Return how many pixels a position of each stage's map stands for, in each direction."""
        embeds: Any = self.patch_embeds
        return list(itertools.accumulate([embed.proj.stride[0] for embed in embeds], operator.mul))

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What `forward_intermediates` returns: for each stage its channels and how many pixels a position stands for."""
        sizes = zip(self.widths(), self.strides(), strict=True)
        return [{"module": f"blocks.{k}", "num_chs": width, "reduction": stride} for k, (width, stride) in enumerate(sizes)]

    def feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return the numbers of the stages that `indices` means, see `feature_indices`."""
        return feature_indices(len(self.blocks), indices)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the last map and the maps of some stages, as timm's method of this name does.

        Args:
            x: Images (B, C, H, W) of any size.
            indices: Numbers of stages, negative ones from the end; an int: so many last ones; None: all.
            norm: Whether the map of the last stage passes the last norm; it fits no other.
            stop_early: Whether to leave out the stages behind the last one that is asked for.
            output_fmt: "NCHW": maps (B, D, H / stride, W / stride).
            intermediates_only: Whether to return just the list of maps; else they come after the normed positions of the
                last map (B, N, D), or, with `stop_early` before the last stage, after the map of the stage that ran last.

        Raises:
            ValueError: indices out of range, another format, images that `check` refuses.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        x = self.check(x)
        wanted = self.feature_indices(indices)
        x, maps = x.permute(0, 2, 3, 1), []
        for number in range(max(wanted) + 1 if stop_early else len(self.blocks)):
            x = self.stage(number, x)
            if number in wanted:
                maps.append(x)
        if number == len(self.blocks) - 1:
            normed = self.norm(x)
            if norm and number in wanted:
                maps[-1] = normed
            x = normed.flatten(1, 2)
        else:
            x = x.permute(0, 3, 1, 2)
        maps = [map.permute(0, 3, 1, 2).contiguous() for map in maps]
        return maps if intermediates_only else (x, maps)

    def sizes(self) -> tuple[int, int]:
        """Return the image channels and the least side of an image: one position for every layer of every stage."""
        embeds: Any = self.patch_embeds
        rows: Any = self.blocks
        least = [
            stride * getattr(getattr(block.attn, "sr", None), "stride", (1,))[0]
            for stride, row in zip(self.strides(), rows, strict=True)
            for block in row
        ]
        return embeds[0].proj.in_channels, max([self.strides()[-1], *least])

    def check(self, x: Tensor) -> Tensor:
        """Return images that have the channels that are accepted, and a position in every map.

        Raises:
            ValueError: other images.
        """
        channels, least = self.sizes()
        return of_shape(x, (channels, None, None), least)

    def reset_parameters(self) -> None:
        """Draw fresh weights as timm does: truncated normal (std 0.02) for linear layers, by fan-out for convolutions."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _reset_linear(module)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, about a third more time."""
        for row in self.blocks:
            row.grad_checkpointing = enable  # type: ignore[assignment]

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimisers should not decay."""
        return {name for name, _ in self.named_parameters() if name.split(".")[0] == "pos_block"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of parameters' names for timm's layer-wise learning rates: each block, or (coarse) each stage."""
        fine = [(r"^blocks\.(\d+)\.(\d+)", None), (r"^(?:patch_embeds|pos_block)\.(\d+)", (0,))]
        stages = [(r"^(?:blocks|patch_embeds|pos_block)\.(\d+)", None)]
        return {"stem": r"^patch_embeds\.0", "blocks": [*(stages if coarse else fine), (r"^norm", (99999,))]}

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        return _classes_of(self.head)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in the place of the old one.

        Args:
            num_classes: Classes; 0: no classifier.
            global_pool: "avg" or "" (none); None: as before.

        Raises:
            ValueError: another word, or number.
        """
        _check_pooling(global_pool, ("avg", ""))
        self.head = fresh_classifier(self, self.widths()[-1], num_classes)
        self.global_pool = self.global_pool if global_pool is None else global_pool


class Fixed:
    """What a searchable choice becomes in the export of a module that reads one itself: the value it had.

    `take` cuts a tensor of full size as before, and leaves alone one that already has the active size.

    Args:
        value: The value that was active.
        start: First channel of its run, for a channel count.
        largest: Channels of the shared tensors, for a channel count.
    """

    def __init__(self, value: float, start: int = 0, largest: int | None = None) -> None:
        self.active = self.smallest = value
        self.largest = value if largest is None else largest
        self.run = (start, value)

    def channels(self) -> Tensor:
        """Return the indices of the channels in use, (K,)."""
        start, length = self.run
        return (torch.arange(int(length)) + start) % int(self.largest)

    def take(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Return the channels in use of `tensor` along `axis`."""
        if tensor.shape[axis] == self.active:
            return tensor
        return tensor.index_select(axis, self.channels().to(tensor.device))

    def __repr__(self) -> str:
        return f"{self.active}"


# -- descriptions ------------------------------------------------------------------------------------------------------
#
# What a network is made of, as frozen dataclasses. Each field is told once: its name in config files, what it may be (its
# type), and where it stands in a network (`at`). `vitas.fields` checks files, and arguments of superformers, against them.


class Within(NamedTuple):
    """What a number, or the length of a list, may be: from `least` up to `below`, which it may not be."""

    least: float
    below: float


class Words(tuple[str, ...]):
    """The words that a field may be."""


MOST_BLOCKS = 1024  # of a list
_MOST_IN_ALL = 256  # of a network: more than any known one has, and built within a second

Count = Annotated[int, Within(1, 2**24 + 1)]
CountOrZero = Annotated[int, Within(0, 2**24 + 1)]
Rate = Annotated[float, Within(0, 1)]
Eps = Annotated[float, Within(0, 1e30)]
Gain = Annotated[float, Within(-1e30, 1e30)]

D = TypeVar("D", bound="Description")
N = TypeVar("N", bound=nn.Module)


def at(*paths: str, read: Callable[[Any], Any] | None = None, flat: bool = False) -> Any:
    """Return a field of a description.

    Args:
        paths: Where it stands in the part that is described, such as "mlp.fc1.out_features"; of several a tuple is read,
            without any the part itself.
        read: What makes the field's value of what stands there; None: it is the value.
        flat: Whether the field, a description, has its own fields in the same JSON object as the one around it.
    """
    find = operator.attrgetter(*paths) if paths else _itself
    return field(metadata={"find": find, "read": read or _itself, "flat": flat})


def _itself(part: Any) -> Any:
    return part


@dataclass(frozen=True, kw_only=True)
class Description:
    """Sizes and options of a part of a network; every field is made by `at`."""

    @classmethod
    def of(cls: type[D], part: Any) -> D:
        """Describe a part of a network.

        Raises:
            AttributeError, TypeError, ValueError, ArithmeticError: a part that it has no words for.
        """
        return cls(**{one.name: one.metadata["read"](one.metadata["find"](part)) for one in fields(cls)})

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` makes an equal description of them."""
        told: dict[str, Any] = {}
        kind: Any = type(self)
        for name, key, _, flat in layout_of(kind):
            value = _as_json(getattr(self, name))
            told |= value if flat else {key: value}
        return told


def _as_json(value: Any) -> Any:
    if isinstance(value, Description):
        return value.as_json()
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value


@cache
def allowed(hint: Any) -> tuple[Any, ...]:
    """Return the types that `X | Y | None` allows; that of None is NoneType."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@cache
def bare(hint: Any) -> tuple[Any, Any]:
    """Return a type without its bounds, and these or None."""
    return get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)


@cache
def _kinds(hint: Any) -> tuple[Any, ...]:
    return tuple(kind for kind in allowed(hint) if is_dataclass(kind))


def described_by(hint: Any, told: Mapping[str, Any]) -> Any:
    """Return the description, of those that a type allows, whose keys are most like those of a JSON object; or None."""
    kinds = _kinds(hint)
    if len(kinds) < 2:
        return kinds[0] if kinds else None
    return min(kinds, key=lambda kind: len(keys_of(kind, told) ^ told.keys()))


@cache
def layout_of(kind: Any) -> tuple[tuple[str, str, Any, bool], ...]:
    """Return name, JSON key and type of each field of a description, and whether it is flat."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple((one.name, one.name.rstrip("_"), hints[one.name], one.metadata["flat"]) for one in fields(kind))


def keys_of(kind: Any, told: Mapping[str, Any]) -> set[str]:
    """Return the keys of the JSON object that such a description becomes, where types allow several as in `told`."""
    keys: set[str] = set()
    for _, key, hint, flat in layout_of(kind):
        keys |= keys_of(described_by(hint, told), told) if flat else {key}
    return keys


def _as_it_is(hint: Any, value: Any, path: str) -> Any:
    return value


def from_json(hint: Any, value: Any, check: Callable[[Any, Any, str], Any] = _as_it_is, path: str = "") -> Any:
    """Return the value of type `hint`, a description or what a field may be, that JSON values tell.

    Args:
        hint: A type.
        value: What `as_json` made of such a value.
        check: Called with type, value and path before each value is used; returns the value or raises.
        path: Where `value` stands, such as "blocks.0.mlp_dim".

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: what `check` let through though it is wrong.
    """
    value = check(hint, value, path)
    if isinstance(value, Mapping) and (kind := described_by(hint, value)):
        return _from_object(kind, value, check, path)
    if isinstance(value, list) and get_origin(kind := bare(hint)[0]) is tuple:
        each, *rest = get_args(kind)
        hints = [each] * len(value) if rest == [...] else [each, *rest]
        pairs = enumerate(zip(hints, value, strict=True))
        return tuple(from_json(one, item, check, f"{path}.{i}") for i, (one, item) in pairs)
    return value


def _from_object(kind: Any, told: Mapping[str, Any], check: Callable[[Any, Any, str], Any], path: str) -> Any:
    values, prefix = {}, f"{path}." if path else ""
    for name, key, hint, flat in layout_of(kind):
        if flat:
            inner = described_by(hint, told)
            values[name] = _from_object(inner, {key: told[key] for key in keys_of(inner, told)}, check, path)
        else:
            values[name] = from_json(hint, told[key], check, f"{prefix}{key}")
    try:
        return kind(**values)
    except ValueError as error:  # of two fields that do not go together
        raise ValueError(f"{prefix}{error}") from None


def eps_of(norm: Any) -> float | None:
    """Return the epsilon of a norm; None where there is none."""
    return None if norm is None or isinstance(norm, nn.Identity) else norm.eps


def is_there(part: object) -> bool:
    """Say whether a part, such as a bias, is there."""
    return part is not None


def drop_path_of(layer: Any) -> float:
    """Return the rate of stochastic depth; an identity has 0."""
    return 0.0 if isinstance(layer, nn.Identity) else layer.drop_prob


def _gain_of(scale: Any) -> float | None:
    return None if isinstance(scale, nn.Identity) else scale.init_values


def _classes_of(head: Any) -> int:
    return 0 if isinstance(head, nn.Identity) else head.out_features


def _first(sides: Any) -> int:
    return sides[0]  # type: ignore[no-any-return]


def _ratio_of(conv: Any) -> int:
    return 1 if conv is None else conv.stride[0]


def each(describe: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that describes each of several parts."""
    return lambda parts: tuple(map(describe, parts))


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(Description):
    """Attention of any kind."""

    num_heads: Count = at("num_heads")
    qkv_dim: Count = at("proj.in_features")
    attn_drop: Rate = at("attn_drop.p")
    proj_drop: Rate = at("proj_drop.p")
    qkv_bias: bool = at("qkv.bias", read=is_there)

    def __post_init__(self) -> None:
        if self.qkv_dim % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of qkv_dim {self.qkv_dim}, got {self.num_heads}")


@dataclass(frozen=True, kw_only=True)
class TokenAttentionConfig(AttentionConfig):
    """An `Attention`."""

    qk_norm_eps: Eps | None = at("q_norm", read=eps_of)

    def build(self, dim: int) -> Attention:
        """Return attention on `dim` channels."""
        width, eps = self.qkv_dim, self.qk_norm_eps
        q_norm, k_norm = (None if eps is None else nn.LayerNorm(width // self.num_heads, eps) for _ in "qk")
        qkv, proj = nn.Linear(dim, 3 * width, self.qkv_bias), nn.Linear(width, dim)
        return Attention(qkv, proj, self.num_heads, q_norm, k_norm, self.attn_drop, self.proj_drop)


@dataclass(frozen=True, kw_only=True)
class WindowAttentionConfig(AttentionConfig):
    """A `WindowAttention`."""

    window_size: Count = at("window_size")

    def build(self, dim: int) -> WindowAttention:
        """Return attention on `dim` channels."""
        qkv, proj = nn.Linear(dim, 3 * self.qkv_dim, self.qkv_bias), nn.Linear(self.qkv_dim, dim)
        return WindowAttention(qkv, proj, self.num_heads, self.window_size, self.attn_drop, self.proj_drop)


@dataclass(frozen=True, kw_only=True)
class SubsampledAttentionConfig(AttentionConfig):
    """A `SubsampledAttention`."""

    qkv_bias: bool = at("q.bias", read=is_there)
    sr_ratio: Count = at("sr", read=_ratio_of)
    sr_norm_eps: Eps | None = at("norm", read=eps_of)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sr_ratio == 1) != (self.sr_norm_eps is None):
            raise ValueError(f"sr_norm_eps: expected None for a ratio of 1, else a number, got {self.sr_norm_eps}")

    def build(self, dim: int) -> SubsampledAttention:
        """Return attention on `dim` channels."""
        width, ratio, eps = self.qkv_dim, self.sr_ratio, self.sr_norm_eps
        q, kv, proj = nn.Linear(dim, width, self.qkv_bias), nn.Linear(dim, 2 * width, self.qkv_bias), nn.Linear(width, dim)
        sr = None if eps is None else nn.Conv2d(dim, dim, ratio, ratio)
        norm = None if eps is None else nn.LayerNorm(dim, eps)
        return SubsampledAttention(q, kv, proj, self.num_heads, sr, norm, self.attn_drop, self.proj_drop)


def map_attention(attn: nn.Module) -> WindowAttentionConfig | SubsampledAttentionConfig:
    """Describe attention on a map."""
    return (WindowAttentionConfig if isinstance(attn, WindowAttention) else SubsampledAttentionConfig).of(attn)


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Description):
    """A `Block`; its attention is settled by the network around."""

    attn: TokenAttentionConfig | WindowAttentionConfig | SubsampledAttentionConfig
    mlp_dim: Count = at("mlp.fc1.out_features")
    norm_eps: Eps = at("norm1.eps")
    init_values: Gain | None = at("ls1", read=_gain_of)
    drop_path: Rate = at("drop_path1", read=drop_path_of)

    def build(self, dim: int) -> Block:
        """Return a block on `dim` channels."""
        gain, rate = self.init_values, self.drop_path
        return Block(
            nn.LayerNorm(dim, self.norm_eps),
            self.attn.build(dim),
            nn.LayerNorm(dim, self.norm_eps),
            Mlp(nn.Linear(dim, self.mlp_dim), nn.Linear(self.mlp_dim, dim), nn.GELU(), self.attn.proj_drop),
            *(None if gain is None else LayerScale(dim, gain) for _ in range(2)),
            *(DropPath(rate) if rate else None for _ in range(2)),
        )


@dataclass(frozen=True, kw_only=True)
class TokenBlockConfig(BlockConfig):
    """A block of a `VisionTransformer`."""

    attn: TokenAttentionConfig = at("attn", read=TokenAttentionConfig.of, flat=True)


@dataclass(frozen=True, kw_only=True)
class MapBlockConfig(BlockConfig):
    """A block of a `Twins`."""

    attn: WindowAttentionConfig | SubsampledAttentionConfig = at("attn", read=map_attention, flat=True)


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig(Description):
    """A `VisionTransformer`."""

    img_size: tuple[Count, Count] = at("patch_embed.img_size", read=tuple)
    patch_size: Count = at("patch_embed.proj.kernel_size", read=_first)
    in_chans: Count = at("patch_embed.in_chans")
    num_classes: CountOrZero = at("head", read=_classes_of)
    embed_dim: Count = at("patch_embed.proj.out_channels")
    global_pool: Annotated[str, Words(("token", "avg"))] = at("global_pool")
    distilled: bool = at("distilled")
    norm_eps: Eps | None = at("norm", read=eps_of)
    fc_norm_eps: Eps | None = at("fc_norm", read=eps_of)
    blocks: Annotated[tuple[TokenBlockConfig, ...], Within(0, MOST_BLOCKS + 1)] = at(
        "blocks", read=each(TokenBlockConfig.of)
    )

    def __post_init__(self) -> None:
        if len(self.blocks) > _MOST_IN_ALL:
            raise ValueError(f"blocks: {len(self.blocks)} in all, more than {_MOST_IN_ALL}")
        if any(side % self.patch_size for side in self.img_size):
            raise ValueError(f"patch_size: expected a divisor of img_size, got {self.patch_size}")

    def build(self, kind: type[VisionTransformer] = VisionTransformer) -> VisionTransformer:
        """Return a network; its tables are zero and its layers as torch draws them."""
        dim, classes, patch, size = self.embed_dim, self.num_classes, self.patch_size, self.img_size
        tokens = (2 if self.distilled else 1) + (size[0] // patch) * (size[1] // patch)
        return kind(
            PatchEmbed(nn.Conv2d(self.in_chans, dim, patch, patch), size, self.in_chans),
            torch.zeros(1, 1, dim),
            torch.zeros(1, tokens, dim),
            Blocks(*(block.build(dim) for block in self.blocks)),
            None if self.norm_eps is None else nn.LayerNorm(dim, self.norm_eps),
            None if self.fc_norm_eps is None else nn.LayerNorm(dim, self.fc_norm_eps),
            nn.Linear(dim, classes) if classes else None,
            torch.zeros(1, 1, dim) if self.distilled else None,
            nn.Linear(dim, classes) if classes and self.distilled else None,
            self.global_pool,
        )


@dataclass(frozen=True, kw_only=True)
class StageConfig(Description):
    """A stage of a `Twins`, described from its `StageParts`."""

    embed_dim: Count = at("embed.proj.out_channels")
    patch_size: Count = at("embed.proj.stride", read=_first)
    norm_eps: Eps = at("embed.norm.eps")
    blocks: Annotated[tuple[MapBlockConfig, ...], Within(0, MOST_BLOCKS + 1)] = at("row", read=each(MapBlockConfig.of))


class StageParts(NamedTuple):
    """What a stage of Twins is described from."""

    embed: Any
    row: Any


def stages(describe: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that describes each stage of Twins, given all mergings of patches and all rows of blocks."""
    return lambda parts: tuple(describe(StageParts(*pair)) for pair in zip(*parts, strict=True))


@dataclass(frozen=True, kw_only=True)
class TwinsConfig(Description):
    """A `Twins`."""

    in_chans: Count = at("patch_embeds.0.proj.in_channels")
    num_classes: CountOrZero = at("head", read=_classes_of)
    global_pool: Annotated[str, Words(("avg", ""))] = at("global_pool")
    norm_eps: Eps = at("norm.eps")
    drop_rate: Rate = at("head_drop.p")
    pos_drop_rate: Rate = at("pos_drops.0.p")
    stages: Annotated[tuple[StageConfig, ...], Within(1, MOST_BLOCKS + 1)] = at(
        "patch_embeds", "blocks", read=stages(StageConfig.of)
    )

    def __post_init__(self) -> None:
        if (number := sum(len(stage.blocks) for stage in self.stages)) > _MOST_IN_ALL:
            raise ValueError(f"stages: {number} blocks in all, more than {_MOST_IN_ALL}")

    def build(self, kind: type[Twins] = Twins) -> Twins:
        """Return a network; its layers are as torch draws them."""
        dims = [stage.embed_dim for stage in self.stages]
        embeds = []
        for stage, before, dim in zip(self.stages, [self.in_chans, *dims], dims):  # noqa: B905 -- the last is not before any
            conv = nn.Conv2d(before, dim, stage.patch_size, stage.patch_size)
            embeds.append(PatchMerging(conv, nn.LayerNorm(dim, stage.norm_eps)))
        return kind(
            embeds,
            [Blocks(*(block.build(stage.embed_dim) for block in stage.blocks)) for stage in self.stages],
            [PositionGenerator(nn.Conv2d(dim, dim, 3, padding=1, groups=dim)) for dim in dims],
            nn.LayerNorm(dims[-1], self.norm_eps),
            nn.Linear(dims[-1], self.num_classes) if self.num_classes else None,
            self.global_pool,
            self.drop_rate,
            self.pos_drop_rate,
        )

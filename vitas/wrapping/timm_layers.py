"""Layers of timm made searchable: one-step subclasses in which what a forward pass reads follows the choices.

Only the class of a module changes (`become`): parameters, checkpoint keys, hooks and flags stay, and timm's own forward code
runs. What that code reads as an attribute, `num_heads`, `cls_token`, the gain of a norm, is here a property over a Choice or
Dim. Linear layers and convolutions are torch's and become those of `vitas.nn`. An export takes every step back: timm's
classes, with ints and slices where the properties were.

Importing this file imports timm; `vitas.wrap` does so when it is used. Written for timm 1.0.23 to 1.0.31.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from timm import layers
from timm.models import vision_transformer
from torch import Tensor, nn

from vitas.choice import Choice, Dim, Mark, compiling, take
from vitas.cost import Cost, cost_of
from vitas.nn import CyclicLinear, Elastic
from vitas.nn.drop_path import drop_samples
from vitas.nn.layer import Axes
from vitas.nn.stacked import StackedLinear
from vitas.wrapping.sizes import stacks_of

M = TypeVar("M", bound=nn.Module)


def become(module: nn.Module, narrower: type[M], **dims: Any) -> M:
    """Narrow the class of `module` by one step and let it hold `dims`; all else stays as it is.

    Args:
        module: An instance of exactly the class that `narrower` narrows.
        narrower: The class to become.
        dims: Attributes that `narrower` has beyond those of the class that it narrows.
    """
    module.__class__ = narrower
    vars(module).update(dims)
    return cast(M, module)


def part(name: str) -> Any:
    """Return a property: the part in use of a parameter that the module holds; None where it has none."""

    def in_use(module: Any) -> Tensor | None:
        parameter = module._parameters.get(name)
        return None if parameter is None else take(it=(parameter, *module.axes()[name]))["it"]

    return property(in_use)


class Channelwise(Elastic):
    """A norm or a scale over the active channels of `dim`.

    Shapes: (B, N, K) -> (B, N, K), K = dim.active.
    Cost: 0 MACs.
    """

    dim: Dim

    def axes(self) -> Axes:
        """Return `dim` for each parameter."""
        return dict.fromkeys(self._parameters, (self.dim,))

    def cost(self, tokens: Cost) -> Cost:
        """Return nothing: norms and scaling are listed as not counted."""
        return Cost()


class Norm(Channelwise):
    """A norm over the active channels."""

    weight = part("weight")
    bias = part("bias")
    normalized_shape = property(lambda self: (self.dim.active,))


class _TorchLayerNorm(Norm, nn.LayerNorm):
    pass


class _LayerNorm(Norm, layers.LayerNorm):
    pass


class _LayerNormFp32(Norm, layers.LayerNormFp32):
    pass


class _RmsNorm(Norm, layers.RmsNorm):
    pass


class _RmsNormFp32(Norm, layers.RmsNormFp32):
    pass


class ChannelScale(Channelwise, layers.LayerScale):
    """A learned gain for each active channel."""

    gamma = part("gamma")


class StretchedDropPath(Elastic, layers.DropPath):
    """Stochastic depth whose rate follows the block's place among those that run: the model's rates, stretched over them.

    `slot` is the block's number in its row, `before` the depths of the rows before it, `depths` those of all rows.

    Shapes: (B, ...) -> (B, ...).
    Cost: 0 MACs.
    """

    holds = ("slot", "rates", "before")
    slot: Mark[int]
    rates: tuple[float, ...]
    before: tuple[Choice[int], ...]
    depths: tuple[Choice[int], ...]
    scale_by_keep: bool

    @property
    def drop_prob(self) -> float:
        """The rate in the active subnet."""
        number = self.slot.read(0) + sum(depth.active for depth in self.before)
        last = sum(depth.active for depth in self.depths) - 1
        place = number * (len(self.rates) - 1) / max(last, 1)
        below = min(int(place), len(self.rates) - 1)
        above = min(below + 1, len(self.rates) - 1)
        return self.rates[below] + (place - below) * (self.rates[above] - self.rates[below])

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples; compiled, one graph serves every slot and depth (with other random numbers than eager)."""
        if not self.training or not compiling():
            return super().forward(x)  # type: ignore[no-any-return]
        last = len(self.rates) - 1
        number = self.slot.read(0) + sum(depth.active for depth in self.before)
        steps, place = torch.sym_max(sum(depth.active for depth in self.depths) - 1, 1), number * last
        rates, below = torch.tensor(self.rates, device=x.device), torch.sym_min(place // steps, last)
        share = place / steps - below
        rate = rates[below] + share * (rates[torch.sym_min(below + 1, last)] - rates[below])
        return drop_samples(x, 1 - rate, self.scale_by_keep)


class HeadwiseAttention(Elastic, layers.Attention):
    """timm's attention with a searchable number of heads of timm's head width.

    Shapes: (B, N, D) -> (B, N, D); inside h = heads.active heads, d = inner.active = h * head_dim.
    Cost: 4 * tokens * D * d + 2 * tokens^2 * d MACs.
    """

    heads: Dim
    inner: Dim
    num_heads = property(lambda self: self.heads.active)
    attn_dim = property(lambda self: self.inner.active)

    def cost(self, tokens: Cost) -> Cost:
        """Return the linear layers' cost and 2 * tokens^2 * d."""
        return super().cost(tokens) + (tokens * tokens * self.inner * 2).named("matmul")


class _Mlp(Elastic, layers.Mlp):
    pass


class _GluMlp(Elastic, layers.GluMlp):
    pass


class _SwiGLU(Elastic, layers.SwiGLU):
    pass


class _Block(Elastic, vision_transformer.Block):
    pass


class _ResPostBlock(Elastic, vision_transformer.ResPostBlock):
    pass


class _LatentPool(Elastic, layers.AttentionPoolLatent):
    """Attention pooling by learned queries, as wide as the residual stream; its heads keep their width."""

    dim: Dim
    latent_len: int
    num_heads = property(lambda self: self.dim.active // self.head_dim)
    latent_dim = out_features = property(lambda self: self.dim.active)
    latent = part("latent")

    def axes(self) -> Axes:
        """Return `dim` for the channels of the queries."""
        return {"latent": (None, None, self.dim)}

    def cost(self, tokens: Cost) -> Cost:
        """Return the cost of pooling `tokens` into latent_len queries."""
        queries = Cost(self.latent_len)
        parts = {"q": queries, "kv": tokens, "proj": queries, "mlp": queries}
        cost = sum((cost_of(getattr(self, name), n).under(name) for name, n in parts.items()), Cost())
        return cost + (tokens * self.dim * self.latent_len * 2).named("matmul")


if hasattr(layers, "AttentionPoolPrr"):  # since timm 1.0.26

    class _PrrPool(Elastic, layers.AttentionPoolPrr):
        """Attention pooling without weights, as wide as the residual stream; its heads keep their width."""

        dim: Dim
        num_heads = property(lambda self: self.dim.active // self.head_dim)
        out_features = property(lambda self: self.dim.active)

        def cost(self, tokens: Cost) -> Cost:
            """Return 2 * tokens^2 * K."""
            return (tokens * tokens * self.dim * 2).named("matmul")


NORMS: dict[type[nn.Module], type[Norm]] = {
    nn.LayerNorm: _TorchLayerNorm,
    layers.LayerNorm: _LayerNorm,
    layers.LayerNormFp32: _LayerNormFp32,
    layers.RmsNorm: _RmsNorm,
    layers.RmsNormFp32: _RmsNormFp32,
}


MLPS: dict[type[nn.Module], type[Elastic]] = {layers.Mlp: _Mlp, layers.GluMlp: _GluMlp, layers.SwiGLU: _SwiGLU}


BLOCKS: dict[type[nn.Module], type[Elastic]] = {
    vision_transformer.Block: _Block,
    vision_transformer.ResPostBlock: _ResPostBlock,
}


POOLS: dict[type[nn.Module], type[Elastic]] = {layers.AttentionPoolLatent: _LatentPool}


if hasattr(layers, "AttentionPoolPrr"):
    POOLS[layers.AttentionPoolPrr] = _PrrPool


def stretch_drop_path(rows: Sequence[Iterable[nn.Module]], depths: Sequence[Choice[int]]) -> None:
    """Let the stochastic depth of the blocks of several rows in turn follow how many of them run."""
    all_ = tuple(depths)
    for name in ("drop_path1", "drop_path2"):
        drops = [[getattr(block, name) for block in row] for row in rows]
        rates = tuple(float(getattr(drop, "drop_prob", 0.0)) for row in drops for drop in row)
        for number, row in enumerate(drops):
            for slot, drop in enumerate(row):
                if type(drop) is layers.DropPath:
                    before = tuple(depths[:number])
                    become(drop, StretchedDropPath, slot=Mark(slot), rates=rates, before=before, depths=all_)


def narrow_mlp(mlp: Any, width: Dim, hidden: Dim) -> None:
    """Make an MLP searchable."""
    for name in ("fc1", "fc1_g", "fc1_x"):
        linear = getattr(mlp, name, None)
        if linear is not None:
            stacks = stacks_of(mlp)
            if stacks == 1:
                become(linear, CyclicLinear, in_dim=width, out_dim=hidden)
            else:  # GluMlp: values and gates in one layer
                become(linear, StackedLinear, in_dim=width, out_dim=hidden, stacks=stacks)
    become(mlp.fc2, CyclicLinear, in_dim=hidden, out_dim=width)
    narrow_norm(mlp.norm, hidden)
    become(mlp, MLPS[type(mlp)])


def narrow_norm(norm: Any, dim: Dim) -> None:
    """Make a norm searchable where it is one."""
    if type(norm) in NORMS:
        become(norm, NORMS[type(norm)], dim=dim)

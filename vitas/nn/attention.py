"""Multi-head self-attention with searchable heads and a searchable width of q, k and v."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Choice, Dim, as_choice, as_count, as_dim, take
from vitas.cost import Cost, cost_of, params_of, product_of
from vitas.errors import ChoiceError, is_one_of, one_of, shown
from vitas.nn.base import filled, rebuilt
from vitas.nn.linear import CyclicLinear, check_axes, check_channels
from vitas.nn.private import Private


class ElasticAttention(plain.Attention):
    """Self-attention whose heads and width follow the active subnet, with the true head width in the scale.

    Either every head has `head_dim` channels and the width follows the heads, or `qkv_dim` channels are searched and
    regrouped into the active number of heads.

    Shapes: (B, N, D) -> (B, N, D), D = dim.active; q, k, v (B, h, N, d / h), d = qkv_dim.active, h = num_heads.active.
    Cost: 4 * tokens * D * d + 2 * tokens^2 * d MACs; softmax, scaling and bias are not counted.
    Source: fixed head width, Chen et al. (AutoFormer), arXiv:2107.00651; searched width and private q, k for each head
    count: public ViTAS code (Su et al., July 2021). Slicing q, k and v apart, and the scale (d / h)^-0.5, are ours: that
    code slices them fused and scales by a constant.

    Args:
        dim: Channels, an int or a Dim shared with the layers around.
        num_heads: Number of heads, an int or a Choice.
        head_dim: Channels of each head; None (and no `qkv_dim`): dim.largest // num_heads.largest.
        qkv_dim: Width d of q, equal to that of k and of v; an int or a Dim. Excludes `head_dim`.
        private: None; "qk": a copy of q and k for each head count, v shared; "v": the converse.
        qkv_bias: Whether q, k, v have a bias.
        qk_norm: Whether each head's q and k pass a layer norm; needs heads of one width.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.
        norm_eps: Added to the variance in the norms of q and k.

    Raises:
        ChoiceError: heads that do not divide the width, `head_dim` together with `qkv_dim`, private copies for a single head
            count, `qk_norm` where the head width varies.
    """

    def __init__(
        self,
        dim: int | Dim,
        num_heads: int | Choice[int],
        *,
        head_dim: int | None = None,
        qkv_dim: int | Dim | None = None,
        private: str | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        heads = as_heads(dim, num_heads, head_dim, qkv_dim)
        if qk_norm and len(heads.widths) > 1:
            raise ChoiceError(f"qk_norm: needs heads of one width, got {sorted(heads.widths)}; give head_dim, not qkv_dim")
        q_norm, k_norm = (nn.LayerNorm(min(heads.widths), norm_eps) if qk_norm else None for _ in "qk")
        qkv, proj = stacked("qkv", heads, private, qkv_bias), CyclicLinear(heads.qkv_dim, heads.dim)
        super().__init__(qkv, proj, heads.num_heads.largest, q_norm, k_norm, attn_drop, proj_drop)
        self.num_heads: Choice[int] = heads.num_heads  # type: ignore[assignment]
        self.dim, self.qkv_dim = heads.dim, heads.qkv_dim

    def heads(self) -> int:
        """Return the number of heads in use."""
        return self.num_heads.active

    def forward(self, x: Tensor) -> Tensor:
        """Attend.

        Raises:
            ShapeError: x is not (B, N, D).
        """
        check_axes(x, self.dim, "batch", "tokens")
        return super().forward(x)

    def cost(self, tokens: Cost) -> Cost:
        """Return 4 * tokens * D * d + 2 * tokens^2 * d."""
        matmul = (tokens * tokens * self.qkv_dim * 2).named("matmul")
        return cost_of(self.qkv, tokens).under("qkv") + matmul + cost_of(self.proj, tokens).under("proj")

    def param_count(self) -> Cost:
        """Return the parameters of qkv, proj and the norms of q and k."""
        return sum((params_of(child) for child in self.children()), Cost())

    def export(self) -> plain.Attention:
        """Return plain attention with its own copy of the active weights, q, k and v in one linear layer."""
        return rebuilt(self, plain.Attention, num_heads=self.heads())


class Heads(NamedTuple):
    """How the width of q, k and v follows from the heads, or is regrouped into them.

    Attributes:
        dim: Channels of the input.
        num_heads: The head counts.
        qkv_dim: Width of q, k and v each.
        head_dim: Channels of each head where that is fixed, else None.
        widths: All head widths that occur.
    """

    dim: Dim
    num_heads: Choice[int]
    qkv_dim: Dim
    head_dim: int | None
    widths: set[int]


def as_heads(dim: int | Dim, num_heads: int | Choice[int], head_dim: int | None, qkv_dim: int | Dim | None) -> Heads:
    """Return the heads that the arguments of an attention layer describe.

    Raises:
        ChoiceError: heads that do not divide the width, `head_dim` together with `qkv_dim`.
    """
    dim, heads = as_dim(dim, "dim"), as_choice(num_heads, "num_heads")
    for count in heads.values:
        as_count(count, heads.name or "num_heads")
    head_dim = None if head_dim is None else as_count(head_dim, "head_dim")
    if qkv_dim is None:
        head_dim = _head_dim(dim, heads) if head_dim is None else head_dim
        return Heads(dim, heads, heads * head_dim, head_dim, {head_dim})
    if head_dim is not None:
        raise ChoiceError(f"give head_dim (the width follows the heads) or qkv_dim, not both: {head_dim}, {qkv_dim}")
    inner = as_dim(qkv_dim, "qkv_dim")
    return Heads(dim, heads, inner, None, _head_widths(inner, heads))


def stacked(parts: str, heads: Heads, private: str | None, bias: bool) -> nn.Module:
    """Return one layer for some of q, k and v, with a copy for each head count of those that are private.

    Args:
        parts: "qkv", "kv" or "q".
        heads: Widths and head counts.
        private: None, "qk" or "v".
        bias: Whether there is a bias.

    Raises:
        ChoiceError: another word for `private`, or a single head count to have private copies for.
    """
    if not is_one_of([None, "qk", "v"], private):
        raise ChoiceError(f"private: {one_of(['qk', 'v'], private)}; None shares all")
    if private and heads.num_heads.fixed:
        count = heads.num_heads.largest
        raise ChoiceError(f"private={shown(private)}: copies for each head count need more than one, got {count}; give None")
    own = [part for part in parts if private and part in private]
    if not own:
        return StackedLinear(heads.dim, heads.qkv_dim, len(parts), bias)
    if len(own) == len(parts):
        return _copies(heads, len(own), bias)
    return PrivateStack(parts, heads, "".join(own), bias)


def _copies(heads: Heads, stacks: int, bias: bool) -> Private:
    def copy_for(count: int) -> StackedLinear:
        rows = heads.qkv_dim if heads.head_dim is None else count * heads.head_dim
        return StackedLinear(heads.dim, rows, stacks, bias)

    return Private(heads.num_heads, copy_for)


class StackedLinear(nn.Linear):
    """Several linear layers with the same input and widths, stacked in one weight as timm's fused q, k, v are.

    Each part is cut by itself, so a row of the shared weight serves q, k or v in every subnet, never two of them.

    Shapes: (..., I) -> (..., stacks * O), I = in_features.active, O = out_features.active.
    Cost: stacks * tokens * I * O MACs; the bias is not counted.
    Source: ours; the public ViTAS code cuts the fused weight from its edge.

    Args:
        in_features: Input channels, an int or a Dim.
        out_features: Output channels of each part, an int or a Dim.
        stacks: Number of parts.
        bias: Whether to add a learned bias.
    """

    def __init__(self, in_features: int | Dim, out_features: int | Dim, stacks: int, bias: bool = True) -> None:
        in_dim, out_dim = as_dim(in_features, "in_features"), as_dim(out_features, "out_features")
        super().__init__(in_dim.largest, stacks * out_dim.largest, bias)
        self.in_dim, self.out_dim, self.stacks = in_dim, out_dim, stacks

    def active_weights(self) -> dict[str, Tensor]:
        """Return the weight (stacks * O, I) and bias (stacks * O,) in use; nothing else slices."""
        shape = (self.stacks, self.out_dim.largest)
        weight = self.weight.view(*shape, -1)
        bias = self.bias.view(shape) if self.bias is not None else None
        parts = take(weight=(weight, None, self.out_dim, self.in_dim), bias=(bias, None, self.out_dim))
        return {name: part.flatten(0, 1) for name, part in parts.items()}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the active part.

        Raises:
            ShapeError: x does not have I channels.
        """
        check_channels(x, self.in_dim)
        return F.linear(x, **self.active_weights())

    def cost(self, tokens: Cost) -> Cost:
        """Return stacks * tokens * I * O."""
        return (tokens * self.in_dim * self.out_dim * self.stacks).named("linear")

    def param_count(self) -> Cost:
        """Return stacks * (I * O + O)."""
        rows = product_of(self.stacks, self.out_dim)
        return rows * self.in_dim + (rows if self.bias is not None else 0)

    def export(self) -> nn.Linear:
        """Return one plain linear layer with its own copy of the active weights."""
        rows = self.stacks * self.out_dim.active
        plain_linear = nn.Linear(self.in_dim.active, rows, self.bias is not None, device="meta")
        return filled(self, plain_linear, self.active_weights())

    def extra_repr(self) -> str:
        return f"{self.in_dim.brief()} -> {self.stacks} x {self.out_dim.brief()}, bias={self.bias is not None}"


class PrivateStack(nn.Module):
    """q, k, v of which some have a copy for each head count, joined into one weight for one matrix product.

    Shapes: (..., D) -> (..., stacks * d), the stacks being `parts`.
    Cost: stacks * tokens * D * d MACs; the bias is not counted.
    Source: public ViTAS code (Su et al., July 2021), where q and k are private and v is shared.

    Args:
        parts: "qkv" or "kv".
        heads: Widths and head counts; where the head width is fixed, a private copy has just the rows that it needs.
        own: Those of the parts that are private, the first or the last ones.
        bias: Whether there is a bias.
    """

    def __init__(self, parts: str, heads: Heads, own: str, bias: bool) -> None:
        super().__init__()
        self.dim = heads.dim
        shared = parts.replace(own, "")
        for name in (own, shared) if parts.startswith(own) else (shared, own):
            stacks = len(name)
            common = StackedLinear(heads.dim, heads.qkv_dim, stacks, bias) if name == shared else None
            self.add_module(name, common or _copies(heads, stacks, bias))

    def active_weights(self) -> dict[str, Tensor]:
        """Return the weight (stacks * d, D) and bias (stacks * d,) in use: the chosen copies and the shared part, joined."""
        first, second = (layer.active_weights() for layer in self.children())  # type: ignore[operator]
        return {name: torch.cat([first[name], second[name]]) for name in first}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the active part.

        Raises:
            ShapeError: x does not have D channels.
        """
        check_channels(x, self.dim)
        return F.linear(x, **self.active_weights())

    def cost(self, tokens: Cost) -> Cost:
        """Return stacks * tokens * D * d."""
        return sum((cost_of(layer, tokens) for layer in self.children()), Cost())

    def param_count(self) -> Cost:
        """Return the parameters of the chosen copies and of the shared part."""
        return sum((params_of(layer) for layer in self.children()), Cost())

    def export(self) -> nn.Linear:
        """Return one plain linear layer with its own copy of the active weights."""
        weights = self.active_weights()
        rows, columns = weights["weight"].shape
        return filled(self, nn.Linear(columns, rows, "bias" in weights, device="meta"), weights)


def _head_dim(dim: Dim, heads: Choice[int]) -> int:
    if dim.largest % heads.largest:
        raise ChoiceError(f"num_heads: {heads.largest} heads do not divide {dim.largest} channels; give head_dim or qkv_dim")
    return dim.largest // heads.largest


def _head_widths(qkv_dim: Dim, heads: Choice[int]) -> set[int]:
    """Return d / h for every combination, which has to be whole."""
    for h in heads.values:
        for d in qkv_dim.values:
            if d % h:
                fitting = [n for n in range(1, qkv_dim.smallest + 1) if all(width % n == 0 for width in qkv_dim.values)]
                raise ChoiceError(
                    f"{heads.label}: {h} heads do not divide a qkv_dim of {d}; these divide every width:"
                    f" {', '.join(map(str, fitting))}"
                )
    return {d // h for d in qkv_dim.values for h in heads.values}

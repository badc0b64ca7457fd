"""Multi-head self-attention with searchable heads and a searchable width of q, k and v."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitas import plain
from vitas.choice import Choice, Dim
from vitas.cost import Cost, cost_of
from vitas.errors import ChoiceError
from vitas.nn.heads import as_heads, unfit
from vitas.nn.layer import Elastic
from vitas.nn.linear import CyclicLinear, check_axes
from vitas.nn.stacked import stacked


class ElasticAttention(Elastic, plain.Attention):
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

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that heads do not divide a width, where they do not."""
        return unfit(self.num_heads, self.qkv_dim)

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

    def plain_sizes(self) -> dict[str, Any]:
        """Return the number of heads in use."""
        return {"num_heads": self.heads()}

"""Attention to a coarser map, with searchable heads and width."""

from typing import Any

from torch import Tensor

from vitas import plain
from vitas.checks import as_count
from vitas.choice import Choice, Dim
from vitas.cost import Cost, Map, as_map, cost_of
from vitas.errors import ShapeError
from vitas.nn.conv import ElasticConv2d
from vitas.nn.heads import as_heads, unfit
from vitas.nn.layer import Elastic
from vitas.nn.linear import CyclicLinear, check_axes
from vitas.nn.norm import ElasticLayerNorm
from vitas.nn.stacked import stacked


class ElasticSubsampledAttention(Elastic, plain.SubsampledAttention):
    """Attention of all positions to a map that is `sr_ratio` times coarser; heads and width follow the active subnet.

    With plain ints this is timm's `GlobalSubSampleAttn` for maps (B, H, W, D).

    Shapes: (B, H, W, D) -> (B, H, W, D), D = dim.active.
    Cost: 2 * N * D * d + 2 * S * D * d + 2 * N * S * d + S * R^2 * D^2 MACs, N = H * W, S = (H // R) * (W // R), R the
    ratio; the last term falls away for R = 1. Norm, softmax, scaling and bias are not counted.
    Source: global sub-sampled attention, Chu et al. (Twins), arXiv:2104.13840v4, section 3.2; a searched width
    regrouped into the active heads as in ElasticAttention.

    Args:
        dim: Channels, an int or a Dim shared with the layers around.
        num_heads: Number of heads, an int or a Choice.
        sr_ratio: How many times coarser keys and values are, in each direction.
        head_dim: Channels of each head; None (and no `qkv_dim`): dim.largest // num_heads.largest.
        qkv_dim: Width d of q, equal to that of k and of v; an int or a Dim. Excludes `head_dim`.
        private: None; "qk": a copy of q and k for each head count, v shared; "v": the converse.
        qkv_bias: Whether q, k, v have a bias.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.
        norm_eps: Added to the variance in the norm of the coarser map.

    Raises:
        ChoiceError: as ElasticAttention; a ratio that is not a positive int.
    """

    holds = ("sr_ratio",)

    def __init__(
        self,
        dim: int | Dim,
        num_heads: int | Choice[int],
        sr_ratio: int = 1,
        *,
        head_dim: int | None = None,
        qkv_dim: int | Dim | None = None,
        private: str | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        sr_ratio = as_count(sr_ratio, "sr_ratio")
        heads = as_heads(dim, num_heads, head_dim, qkv_dim)
        super().__init__(
            stacked("q", heads, private, qkv_bias),
            stacked("kv", heads, private, qkv_bias),
            CyclicLinear(heads.qkv_dim, heads.dim),
            heads.num_heads.largest,
            ElasticConv2d(heads.dim, heads.dim, sr_ratio, sr_ratio) if sr_ratio > 1 else None,
            ElasticLayerNorm(heads.dim, norm_eps) if sr_ratio > 1 else None,
            attn_drop,
            proj_drop,
        )
        self.num_heads: Choice[int] = heads.num_heads  # type: ignore[assignment]
        self.dim, self.qkv_dim, self.sr_ratio = heads.dim, heads.qkv_dim, sr_ratio

    def heads(self) -> int:
        """Return the number of heads in use."""
        return self.num_heads.active

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that heads do not divide a width, where they do not."""
        return unfit(self.num_heads, self.qkv_dim)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Attend; with a size (H, W), x holds the positions of such a map as tokens, (B, H * W, D).

        Raises:
            ShapeError: x is not (B, H, W, D), or smaller than one position of the coarser map.
        """
        if size is not None:
            return super().forward(x, size)
        check_axes(x, self.dim, "batch", "height", "width")
        if min(x.shape[1:3]) < self.sr_ratio:
            raise ShapeError(
                f"{self.dim.label}: expected a map with sides of at least {self.sr_ratio}, got {tuple(x.shape)}"
            )
        return super().forward(x)

    def cost(self, tokens: Cost) -> Cost:
        """Return 2 * N * D * d + 2 * S * D * d + 2 * N * S * d + S * R^2 * D^2.

        Args:
            tokens: The map, a vitas.cost.Map.
        """
        size = as_map(tokens)
        coarse = Map(size.height // self.sr_ratio, size.width // self.sr_ratio)
        cost = (size * coarse * self.qkv_dim * 2).named("matmul")
        for name, positions in (("q", size), ("kv", coarse), ("proj", size), ("sr", coarse)):
            layer = getattr(self, name)
            if layer is not None:
                cost += cost_of(layer, positions).under(name)
        return cost

    def plain_sizes(self) -> dict[str, Any]:
        """Return the number of heads in use."""
        return {"num_heads": self.heads()}

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads.brief()}, sr_ratio={self.sr_ratio}"

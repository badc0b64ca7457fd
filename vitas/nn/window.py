"""Self-attention inside the windows of a map, with searchable heads, width and window."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vitas import plain
from vitas.checks import as_count
from vitas.choice import Choice, Dim, as_choice, compiling
from vitas.cost import Cost, as_map, cost_of
from vitas.nn.heads import as_heads, unfit
from vitas.nn.layer import Elastic
from vitas.nn.linear import CyclicLinear, check_axes
from vitas.nn.stacked import stacked


class ElasticWindowAttention(Elastic, plain.WindowAttention):
    """Self-attention inside square windows, whose heads and width follow the active subnet.

    The map is padded with zeros to whole windows, as in timm, so any input size fits. With plain ints this is timm's
    `LocallyGroupedAttn` for maps (B, H, W, D).

    Shapes: (B, H, W, D) -> (B, H, W, D), D = dim.active.
    Cost: 3 * T * D * d + 2 * T * w^2 * d + H * W * D * d MACs, T the positions of the padded map, w the side of a window;
    softmax, scaling and bias are not counted.
    Source: locally-grouped attention, Chu et al. (Twins), arXiv:2104.13840v4, section 3.2; a searched width regrouped
    into the active heads as in ElasticAttention.

    Args:
        dim: Channels, an int or a Dim shared with the layers around.
        num_heads: Number of heads, an int or a Choice.
        window_size: Side of a window in positions, an int or a Choice.
        head_dim: Channels of each head; None (and no `qkv_dim`): dim.largest // num_heads.largest.
        qkv_dim: Width d of q, equal to that of k and of v; an int or a Dim. Excludes `head_dim`.
        private: None; "qk": a copy of q and k for each head count, v shared; "v": the converse.
        qkv_bias: Whether q, k, v have a bias.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.

    Raises:
        ChoiceError: as ElasticAttention; windows that are not positive ints.
    """

    def __init__(
        self,
        dim: int | Dim,
        num_heads: int | Choice[int],
        window_size: int | Choice[int] = 7,
        *,
        head_dim: int | None = None,
        qkv_dim: int | Dim | None = None,
        private: str | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        heads, windows = as_heads(dim, num_heads, head_dim, qkv_dim), as_choice(window_size, "window_size")
        for window in windows.values:
            as_count(window, windows.name or "window_size")
        qkv, proj = stacked("qkv", heads, private, qkv_bias), CyclicLinear(heads.qkv_dim, heads.dim)
        super().__init__(qkv, proj, heads.num_heads.largest, windows.largest, attn_drop, proj_drop)
        self.num_heads: Choice[int] = heads.num_heads  # type: ignore[assignment]
        self.window_size: Choice[int] = windows  # type: ignore[assignment]
        self.dim, self.qkv_dim = heads.dim, heads.qkv_dim

    def heads(self) -> int:
        """Return the number of heads in use."""
        return self.num_heads.active

    def window(self) -> int:
        """Return the side of a window."""
        return self.window_size.active

    def _padded(self, x: Tensor, side: int) -> Tensor:
        """Pad a map to whole windows; compiled, one graph serves maps that need padding and those that do not."""
        if not compiling():
            return super()._padded(x, side)
        height, width = ((length + side - 1) // side * side for length in x.shape[1:3])
        return _sized(x, height, width)

    def _unpadded(self, x: Tensor, height: int, width: int) -> Tensor:
        """Take the padding off again, in one graph too."""
        return _sized(x, height, width) if compiling() else super()._unpadded(x, height, width)

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that heads do not divide a width, where they do not."""
        if choice is self.window_size and value < 1:
            return "needs windows of at least one position"
        return unfit(self.num_heads, self.qkv_dim)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Attend; with a size (H, W), x holds the positions of such a map as tokens, (B, H * W, D).

        Raises:
            ShapeError: x is not (B, H, W, D).
        """
        if size is not None:
            return super().forward(x, size)
        check_axes(x, self.dim, "batch", "height", "width")
        return super().forward(x)

    def cost(self, tokens: Cost) -> Cost:
        """Return 3 * T * D * d + 2 * T * w^2 * d + H * W * D * d.

        Args:
            tokens: The map, a vitas.cost.Map.
        """
        size = as_map(tokens)

        def padded(window: int) -> int:
            return -(-size.height // window) * -(-size.width // window) * window**2

        positions = Cost.table(self.window_size, map(padded, self.window_size.values))
        pairs = Cost.table(self.window_size, (padded(window) * window**2 for window in self.window_size.values))
        matmul = (pairs * self.qkv_dim * 2).named("matmul")
        return cost_of(self.qkv, positions).under("qkv") + matmul + cost_of(self.proj, size).under("proj")

    def plain_sizes(self) -> dict[str, Any]:
        """Return heads and window in use."""
        return {"num_heads": self.heads(), "window_size": self.window()}

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads.brief()}, window_size={self.window_size.brief()}"


def _sized(x: Tensor, height: int, width: int) -> Tensor:
    """Pad or cut a map; unlike a slice the result is contiguous whatever is cut, which a graph would be specialised to."""
    return F.pad(x, (0, 0, 0, width - x.shape[2], 0, height - x.shape[1]))

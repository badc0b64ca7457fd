"""Linear layer between the active channels of two dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.choice import Dim, as_dim
from vitas.cost import Cost
from vitas.errors import ShapeError
from vitas.memory import refuse_huge
from vitas.nn.layer import Axes, Elastic


class CyclicLinear(Elastic, nn.Linear):
    """Linear layer of which every subnet uses the rows and columns that its widths use.

    Shapes: (..., I) -> (..., O), I = in_features.active, O = out_features.active.
    Cost: tokens * I * O MACs; the bias is not counted.
    Source: weight sharing over widths as in ViTAS (Su et al., ECCV 2022); which channels a width uses: vitas.sharing.

    Args:
        in_features: Input channels, an int or a Dim shared with the layers around.
        out_features: Output channels, likewise.
        bias: Whether to add a learned bias.
        device: As in torch.nn.Linear.
        dtype: As in torch.nn.Linear.

    Raises:
        ChoiceError: channels that are neither a positive int nor a Dim.
    """

    def __init__(
        self,
        in_features: int | Dim,
        out_features: int | Dim,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_dim, out_dim = as_dim(in_features, "in_features"), as_dim(out_features, "out_features")
        refuse_huge((out_dim.largest, in_dim.largest), "CyclicLinear: a weight", device)
        super().__init__(in_dim.largest, out_dim.largest, bias, device, dtype)
        self.in_dim, self.out_dim = in_dim, out_dim

    def axes(self) -> Axes:
        """Return output and input channels of the weight (O, I) and the bias (O,)."""
        return {"weight": (self.out_dim, self.in_dim), "bias": (self.out_dim,)}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the active part.

        Raises:
            ShapeError: x does not have I channels.
        """
        check_channels(x, self.in_dim)
        return F.linear(x, **self.active_weights())

    def cost(self, tokens: Cost) -> Cost:
        """Return tokens * I * O."""
        return (tokens * self.in_dim * self.out_dim).named("linear")

    def extra_repr(self) -> str:
        return f"{self.in_dim.brief()} -> {self.out_dim.brief()}, bias={self.bias is not None}"


def check_channels(x: Tensor, dim: Dim, axis: int = -1) -> None:
    """Refuse an input of another width with the name of the dimension.

    Raises:
        ShapeError: `x` does not have dim.active channels along `axis`.
    """
    if x.ndim < -axis or x.shape[axis] != dim.active:
        raise ShapeError(
            f"{dim.label}: expected {dim.active} channels along axis {axis}, got shape {tuple(x.shape)};"
            " layers that must agree hold the same Dim object"
        )


def check_axes(x: Tensor, dim: Dim, *axes: str) -> None:
    """Refuse an input that has not just the axes `axes` and then the channels of `dim`.

    Raises:
        ShapeError: `x` has more axes or fewer.
    """
    if x.ndim != len(axes) + 1:
        raise ShapeError(f"{dim.label}: expected shape ({', '.join(axes)}, {dim.active}), got {tuple(x.shape)}")

"""2-D convolution between the active channels of two dimensions, dense or depth-wise."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vitas.choice import Dim, as_dim
from vitas.cost import Cost
from vitas.errors import ChoiceError, shown
from vitas.memory import refuse_huge
from vitas.nn.layer import Axes, Elastic
from vitas.nn.linear import check_channels


class ElasticConv2d(Elastic, nn.Conv2d):
    """Convolution of which every subnet uses the filters and channels that its widths use.

    Shapes: (B, I, H, W) -> (B, O, H', W'), I = in_channels.active, O = out_channels.active.
    Cost: H' * W' * kernel * I * O MACs, without I when depth-wise; the bias is not counted.
    Source: weight sharing over widths as in ViTAS (Su et al., ECCV 2022).

    Args:
        in_channels: Input channels, an int or a Dim shared with the layers around.
        out_channels: Output channels, likewise.
        kernel_size: As in torch.nn.Conv2d.
        stride: As in torch.nn.Conv2d.
        padding: As in torch.nn.Conv2d.
        dilation: As in torch.nn.Conv2d.
        groups: As in torch.nn.Conv2d; with searchable channels 1, or the Dim that is both input and output (depth-wise).
        bias: As in torch.nn.Conv2d.
        padding_mode: As in torch.nn.Conv2d.
        device: As in torch.nn.Conv2d.
        dtype: As in torch.nn.Conv2d.

    Raises:
        ChoiceError: channels that are neither a positive int nor a Dim; groups that searchable channels cannot have.
    """

    holds = ("depthwise",)

    def __init__(
        self,
        in_channels: int | Dim,
        out_channels: int | Dim,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int | Dim = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        in_dim, out_dim = as_dim(in_channels, "in_channels"), as_dim(out_channels, "out_channels")
        largest_groups = groups.largest if isinstance(groups, Dim) else groups
        searchable = not (in_dim.fixed and out_dim.fixed)
        depthwise = searchable and in_dim is out_dim and largest_groups == in_dim.largest
        if searchable and not depthwise and groups != 1:
            raise ChoiceError(f"groups: with searchable channels 1, or the one Dim of input and output, got {shown(groups)}")
        kernel = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
        shape = (out_dim.largest, in_dim.largest // largest_groups, *kernel)
        refuse_huge(shape, "ElasticConv2d: a weight", device)
        super().__init__(
            in_dim.largest,
            out_dim.largest,
            kernel_size,
            stride,
            padding,
            dilation,
            largest_groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        self.in_dim, self.out_dim, self.depthwise = in_dim, out_dim, depthwise

    def axes(self) -> Axes:
        """Return output and input channels of the weight (O, I / groups, kernel) and the bias (O,)."""
        columns = None if self.depthwise or self.groups > 1 else self.in_dim
        return {"weight": (self.out_dim, columns), "bias": (self.out_dim,)}

    def active_groups(self) -> int:
        """Return the number of groups in use."""
        return self.in_dim.active if self.depthwise else self.groups

    def forward(self, x: Tensor) -> Tensor:
        """Apply the active part.

        Raises:
            ShapeError: x does not have I channels.
        """
        check_channels(x, self.in_dim, axis=-3)
        padding = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        weights = self.active_weights()
        return F.conv2d(
            x,
            weights["weight"],
            weights.get("bias"),
            self.stride,
            padding,
            self.dilation,
            self.active_groups(),
        )

    def cost(self, tokens: Cost) -> Cost:
        """Return tokens * kernel * I * O / groups, `tokens` being the number of output positions."""
        return (tokens * self.count_of("weight")).named("conv")

    def plain_sizes(self) -> dict[str, Any]:
        """Return the channels and groups in use."""
        sizes = {"in_channels": self.in_dim.active, "out_channels": self.out_dim.active}
        return {**sizes, "groups": self.active_groups()}

    def extra_repr(self) -> str:
        return f"{self.in_dim.brief()} -> {self.out_dim.brief()}, kernel_size={self.kernel_size}, stride={self.stride}"

"""Layer norm and layer scale over the channels that the active subnet uses."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Dim, as_dim
from vitas.cost import Cost
from vitas.nn.layer import Axes, Elastic
from vitas.nn.linear import check_channels


class ElasticLayerNorm(Elastic, nn.LayerNorm):
    """Layer norm over the K active channels of `dim`; gain and bias are shared by every subnet.

    Shapes: (B, N, K) -> (B, N, K), K = dim.active.
    Cost: 0 MACs; norms stay out of the count (fvcore counts 5 per element).
    Source: Ba et al., arXiv:1607.06450v1, section 3; which channels a width uses: vitas.sharing.

    Args:
        dim: Channels, an int or a Dim shared with the layers around.
        eps: Added to the variance.
        elementwise_affine: Whether there is a gain.
        bias: Whether there is a bias beside the gain.
        device: As in torch.nn.LayerNorm.
        dtype: As in torch.nn.LayerNorm.

    Raises:
        ChoiceError: channels that are neither a positive int nor a Dim.
    """

    def __init__(
        self,
        dim: int | Dim,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dim = as_dim(dim, "dim")
        super().__init__(dim.largest, eps, elementwise_affine, bias, device, dtype)
        self.dim = dim

    def axes(self) -> Axes:
        """Return the channels of gain and bias, (K,) each."""
        return {"weight": (self.dim,), "bias": (self.dim,)}

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the active channels.

        Raises:
            ShapeError: x does not have K channels.
        """
        check_channels(x, self.dim)
        return F.layer_norm(x, (self.dim.active,), **self.active_weights(), eps=self.eps)

    def cost(self, tokens: Cost) -> Cost:
        """Return nothing: norms are listed as not counted."""
        return Cost()

    def extra_repr(self) -> str:
        return f"{self.dim.brief()}, eps={self.eps}"


class LayerScale(Elastic, plain.LayerScale):
    """A learned gain for each of the K active channels of `dim`.

    Shapes: (B, N, K) -> (B, N, K), K = dim.active.
    Cost: 0 MACs; scaling is listed as not counted.
    Source: Touvron et al., arXiv:2103.17239v2, section 2.

    Args:
        dim: Channels, an int or a Dim shared with the layers around.
        init_values: Starting value of every gain.

    Raises:
        ChoiceError: channels that are neither a positive int nor a Dim.
    """

    def __init__(self, dim: int | Dim, init_values: float = 1e-5) -> None:
        dim = as_dim(dim, "dim")
        super().__init__(dim.largest, init_values)
        self.dim = dim

    def axes(self) -> Axes:
        """Return the channels of the gains, (K,)."""
        return {"gamma": (self.dim,)}

    def forward(self, x: Tensor) -> Tensor:
        """Scale the active channels.

        Raises:
            ShapeError: x does not have K channels.
        """
        check_channels(x, self.dim)
        return x * self.active_weights()["gamma"]

    def plain_sizes(self) -> dict[str, Any]:
        """Return nothing: the gains alone say how many there are."""
        return {}

    def cost(self, tokens: Cost) -> Cost:
        """Return nothing: scaling is listed as not counted."""
        return Cost()

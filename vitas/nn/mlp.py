"""MLP with a searchable hidden width."""

from torch import nn

from vitas import plain
from vitas.choice import Dim
from vitas.cost import Cost, cost_of
from vitas.nn.layer import Elastic
from vitas.nn.linear import CyclicLinear


class ElasticMlp(Elastic, plain.Mlp):
    """Two CyclicLinear layers that share the hidden dimension, with an activation between.

    Shapes: (B, N, D) -> (B, N, D), D = dim.active; inside (B, N, H), H = hidden_dim.active.
    Cost: 2 * tokens * D * H MACs; bias and activation are not counted.
    Source: Dosovitskiy et al., arXiv:2010.11929v2, section 3.1; one hidden width a block as in ViTAS.

    Args:
        dim: Channels, an int or a Dim shared with the layers around.
        hidden_dim: Hidden channels, an int or a Dim; `ratio * dim` ties them to `dim`. None: as many as `dim`.
        act_layer: Class of the activation.
        bias: Whether the linear layers have a bias.
        drop: Dropout after each linear layer.

    Raises:
        ChoiceError: channels that are neither a positive int nor a Dim.
    """

    def __init__(
        self,
        dim: int | Dim,
        hidden_dim: int | Dim | None = None,
        act_layer: type[nn.Module] = nn.GELU,
        bias: bool = True,
        drop: float = 0.0,
    ) -> None:
        hidden_dim = dim if hidden_dim is None else hidden_dim
        super().__init__(CyclicLinear(dim, hidden_dim, bias), CyclicLinear(hidden_dim, dim, bias), act_layer(), drop)

    def cost(self, tokens: Cost) -> Cost:
        """Return 2 * tokens * D * H."""
        return cost_of(self.fc1, tokens).under("fc1") + cost_of(self.fc2, tokens).under("fc2")

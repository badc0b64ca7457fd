"""Several linear layers in one weight, as q, k and v are; with a copy for each head count where they are private."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.choice import Dim, as_dim, take
from vitas.cost import Cost, cost_of
from vitas.errors import ChoiceError, is_one_of, one_of, shown
from vitas.memory import refuse_huge
from vitas.nn.heads import Heads
from vitas.nn.layer import Axes, Elastic, Stack, filled
from vitas.nn.linear import check_channels
from vitas.nn.private import Private


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


class StackedLinear(Elastic, nn.Linear):
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

    holds = ("stacks",)

    def __init__(self, in_features: int | Dim, out_features: int | Dim, stacks: int, bias: bool = True) -> None:
        in_dim, out_dim = as_dim(in_features, "in_features"), as_dim(out_features, "out_features")
        refuse_huge((stacks * out_dim.largest, in_dim.largest), "q, k, v: a weight")
        super().__init__(in_dim.largest, stacks * out_dim.largest, bias)
        self.in_dim, self.out_dim, self.stacks = in_dim, out_dim, stacks

    def axes(self) -> Axes:
        """Return output channels, in parts, and input channels of the weight (stacks * O, I) and the bias (stacks * O,)."""
        rows = Stack(self.stacks, self.out_dim)
        return {"weight": (rows, self.in_dim), "bias": (rows,)}

    def active_weights(self) -> dict[str, Tensor]:
        """Return the weight (stacks * O, I) and bias (stacks * O,) in use; nothing else slices."""
        shape = (self.stacks, self.out_dim.largest)
        weight, bias = self.stored("weight"), self.stored("bias")
        assert weight is not None
        rows = None if bias is None else bias.view(shape)
        parts = take(weight=(weight.view(*shape, -1), None, self.out_dim, self.in_dim), bias=(rows, None, self.out_dim))
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

    def extra_repr(self) -> str:
        return f"{self.in_dim.brief()} -> {self.stacks} x {self.out_dim.brief()}, bias={self.bias is not None}"


class PrivateStack(Elastic):
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

    def export(self) -> nn.Linear:
        """Return one plain linear layer with its own copy of the active weights."""
        weights = self.active_weights()
        rows, columns = weights["weight"].shape
        return filled(self, nn.Linear(columns, rows, "bias" in weights, device="meta"), weights)

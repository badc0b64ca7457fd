"""The sizes of a row of blocks that can be searched, and the choices that take their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vitas.choice import Choice, Dim
from vitas.nn import CyclicLinear


class Sizes(NamedTuple):
    """The sizes that can be searched of a row of blocks; `unit` has to divide its widths."""

    prefix: str  # of the names of its choices
    embed_dim: int
    unit: int
    num_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    mlp_dim: tuple[int, ...]
    stacks: tuple[int, ...]  # parts of the first layer of each MLP: 2 where it makes values and gates
    pool_mlp_dim: int | None = None  # of attention pooling; not searched

    @classmethod
    def of(cls, prefix: str, embed_dim: int, unit: int, blocks: Iterable[Any]) -> Sizes:
        """Return the sizes of `blocks`, in the active subnet if they are searchable."""
        rows = []
        for block in blocks:
            given = block.attn.num_heads
            count = given.active if isinstance(given, Choice) else given
            rows.append((count, width_into(block.attn.proj) // count, width_into(block.mlp.fc2), stacks_of(block.mlp)))
        heads, widths, hidden, stacks = zip(*rows, strict=True)
        return cls(prefix, embed_dim, unit, heads, widths, hidden, stacks)


class Row(NamedTuple):
    """The choices of a row of blocks: its width, how many run, and heads and hidden width of the MLP of each."""

    width: Dim
    depth: Choice[int]
    heads: Sequence[Dim]
    hidden: Sequence[Dim]


def width_into(linear: Any) -> int:
    """Return the input channels of a linear layer, those in use where it is searchable."""
    return linear.in_dim.active if isinstance(linear, CyclicLinear) else linear.in_features


def stacks_of(mlp: Any) -> int:
    """Return the parts of the first layer of an MLP: 2 where it makes values and gates."""
    return mlp.fc1.out_features // mlp.fc2.in_features if "fc1" in mlp._modules else 1

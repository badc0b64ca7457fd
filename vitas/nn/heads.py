"""How the width of q, k and v follows from the heads, or is regrouped into them."""

from __future__ import annotations

from typing import NamedTuple

from vitas.checks import as_count
from vitas.choice import Choice, Dim, as_choice, as_dim
from vitas.errors import ChoiceError


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


def unfit(num_heads: Choice[int], qkv_dim: Dim) -> str | None:
    """Say which heads do not divide which width of q, k and v; None: all do."""
    for d in qkv_dim.values if num_heads not in qkv_dim.bases else ():
        for h in num_heads.values:
            if h < 1 or d % h:
                return f"has a qkv_dim of {d} channels, which {h} heads do not divide"
    return "needs at least one head" if num_heads.smallest < 1 else None

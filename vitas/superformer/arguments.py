"""What the arguments of superformers become: one value is fixed, several make a choice."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TypeVar

from vitas.checks import MOST_VALUES, are_several
from vitas.choice import Choice, Dim, as_choice
from vitas.errors import ChoiceError, is_one_of, one_of, shown
from vitas.sharing import Sharing

Count = int | Iterable[int] | Choice[int]
Width = int | Iterable[int] | Dim
Ratio = float | Iterable[float] | Choice[float]
Patterns = Sharing | Mapping[str, Sharing]
KINDS = ("embed_dim", "qkv_dim", "num_heads", "mlp_dim")
MOST_BLOCKS = 1024
T = TypeVar("T")
V = TypeVar("V", int, float)


def choice_of(values: "V | Iterable[V] | Choice[V]", name: str) -> "Choice[V]":
    """Return a Choice of one or several values; one that was given is used as it is."""
    return Choice(values, name=name) if are_several(values) else as_choice(values, name)  # type: ignore[arg-type]


def patterns_of(sharing: Patterns, qkv_dim: object, mlp_dim: object) -> dict[str, Sharing]:
    """Return the sharing pattern of each of `KINDS`: one for all, or from a mapping, which leaves the others at "cyclic".

    Args:
        sharing: What the superformer was given.
        qkv_dim: Its widths of q, k and v; None: they are a number of channels for each head, and follow the heads.
        mlp_dim: Its hidden widths; None: they are a ratio of the residual stream, and follow that.

    Raises:
        ChoiceError: a kind that does not exist, or one that follows another here and has no pattern of its own.
    """
    if not isinstance(sharing, Mapping):
        return dict.fromkeys(KINDS, sharing)
    for kind in sharing:
        if not is_one_of(KINDS, kind) or kind is None:
            raise ChoiceError(f"sharing: unknown kind of choice, {one_of(KINDS, kind)}")
    for kind, values, leader in (("qkv_dim", qkv_dim, "num_heads"), ("mlp_dim", mlp_dim, "embed_dim")):
        if kind in sharing and values is None:
            raise ChoiceError(f"sharing: {kind} follows {leader} where it is not given; name {leader}, or give {kind}")
    return {**dict.fromkeys(KINDS, "cyclic"), **sharing}


def dim_of(values: "int | Iterable[int] | Choice[int]", name: str, sharing: Sharing) -> Dim:
    """Return a Dim of one or several counts; one that was given is used as it is."""
    if isinstance(values, Choice):
        return values  # type: ignore[return-value]
    return Dim(values if are_several(values) else [values], sharing=sharing, name=name)  # type: ignore[list-item]


def depths_of(depth: int | Iterable[int], name: str = "depth") -> tuple[int, int, int]:
    """Return the smallest number of blocks, the largest, and the step from one to the next.

    Raises:
        ChoiceError: depths that are not positive ints a constant step apart, or a Choice, whose law would be lost.
    """
    if isinstance(depth, Choice):
        raise ChoiceError(f"{name}: expected an int or several, got {depth}; depth_p is the place for its law")
    values = choice_of(depth, name).values
    if values[-1] > MOST_BLOCKS:
        raise ChoiceError(f"{name}: expected at most {MOST_BLOCKS} blocks, got {shown(values[-1])}")
    step = values[1] - values[0] if len(values) > 1 else 1
    ints = all(isinstance(value, int) for value in values)
    if not ints or values[0] < 1 or list(values) != list(range(values[0], values[-1] + 1, step)):
        raise ChoiceError(f"{name}: expected positive ints without gaps, or in equal steps, got {shown(list(values))}")
    return values[0], values[-1], step


def reusable(values: T) -> T:
    """Return a list in place of an iterator, since every block reads it; more values than a choice takes are cut off."""
    return list(islice(values, MOST_VALUES + 1)) if are_several(values) else values  # type: ignore[return-value]

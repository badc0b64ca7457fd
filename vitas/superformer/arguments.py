"""What the arguments of superformers become: one value is fixed, several make a choice."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from vitas.checks import MOST_VALUES, are_several
from vitas.choice import Choice, Dim, as_choice
from vitas.errors import ChoiceError, is_one_of, listed, one_of, shown
from vitas.sharing import Sharing
from vitas.space import named

Count = int | Iterable[int] | Choice[int]
Width = int | Iterable[int] | Dim
Ratio = float | Iterable[float] | Choice[float]
Counts = Count | Sequence[Count] | Mapping[str, Count]
Widths = Width | None | Sequence[Width | None] | Mapping[str, Width | None]
Ratios = Ratio | Sequence[Ratio] | Mapping[str, Ratio]
"""The same for all blocks, or for each, see `for_each_block`."""

Patterns = Sharing | Mapping[str, Sharing]
KINDS = ("embed_dim", "qkv_dim", "num_heads", "mlp_dim")
MOST_BLOCKS = 256  # of a network, as in files: more than any known one has
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


def read_again(value: Any, levels: int = 3) -> Any:
    """Return an argument that can be read twice: a list in place of each iterator, also of those of a stage or a block."""
    if isinstance(value, Iterator):
        value = reusable(value)
    if not levels:
        return value
    if isinstance(value, Mapping):
        return {key: read_again(entry, levels - 1) for key, entry in value.items()}
    return type(value)(read_again(entry, levels - 1) for entry in value) if type(value) in (list, tuple) else value


def for_each_block(what: str, given: Any, blocks: Sequence[str], word: str) -> list[Any]:
    """Return what each block is given: all the same, an entry of a list each, or from a mapping what first matches its name.

    Args:
        what: Name of the argument.
        given: Values; a list of which some entry is not one value, an entry for each block; or a mapping from names and
            globs of blocks to values.
        blocks: Names of the blocks, such as "stages.1.blocks.0".
        word: Last word of the names of their choices, with which a block may be named too.

    Raises:
        ChoiceError: more entries or fewer than blocks, a name of no block, a name that comes too late, a block that is left.
    """
    if isinstance(given, Mapping):
        return _matched(what, given, blocks, word)
    given = reusable(given)
    if not are_several(given) or not any(map(_is_entry, given)):
        return [given] * len(blocks)
    entries = [reusable(entry) for entry in given]
    if len(entries) != len(blocks):
        raise ChoiceError(
            f"{what}: expected one entry for each of the {len(blocks)} blocks, or values for all, got {len(entries)}"
        )
    return entries


def for_blocks_of_stages(what: str, given: Mapping[Any, Any], blocks: Sequence[Sequence[str]], word: str) -> list[Any]:
    """Return, for each stage, what a mapping says of each of its blocks; see `for_each_block`, whose mapping this is.

    Args:
        what: Name of the argument.
        given: From names and globs of blocks to values.
        blocks: The names of the blocks of each stage.
        word: Last word of the names of their choices.

    Raises:
        ChoiceError: as `for_each_block`.
    """
    each = iter(_matched(what, given, [block for own in blocks for block in own], word))
    return [{block: next(each) for block in own} for own in blocks]


def _is_entry(value: object) -> bool:
    auto = isinstance(value, str) and value == "auto"
    return auto or value is None or isinstance(value, Choice) or are_several(value)


def _matched(what: str, given: Mapping[Any, Any], blocks: Sequence[str], word: str) -> list[Any]:
    names = [*blocks, *(f"{block}.{word}" for block in blocks)]
    found: dict[str, Any] = {}
    for pattern, values in given.items():
        values = reusable(values)
        own = {name.removesuffix(f".{word}"): values for name in named(what, pattern, names, "block")}
        if own.keys() <= found.keys():
            raise ChoiceError(
                f"{what}: {shown(pattern)} comes after names of the same blocks; the first that matches counts"
            )
        found = {**own, **found}
    if left := [block for block in blocks if block not in found]:
        raise ChoiceError(f"{what}: nothing is said of {listed(left)}; end on the rest, such as {{..., '*': values}}")
    return [found[block] for block in blocks]

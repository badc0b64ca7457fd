"""What the arguments of `wrap` become: numbers and percentages of what a model has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, nextafter
from typing import Any, NamedTuple

from vitas.checks import are_several, as_count, as_number, as_percentage, is_int
from vitas.errors import ChoiceError, shown
from vitas.superformer.arguments import for_blocks_of_stages, for_each_block, reusable

Values = Any
"""None, "auto", or several numbers and percentages such as "50%"."""


class Settled(NamedTuple):
    """What each choice is to be, by its name; any other is the model's own: for a subnet that is known beforehand."""

    values: Mapping[str, Any]


class EachBlock(NamedTuple):
    """What each block of a stage is given."""

    values: tuple[Values, ...]


def for_blocks(what: str, given: Values, blocks: Sequence[Sequence[str]], word: str) -> list[EachBlock]:
    """Return, for each stage, what each of its blocks is given, see `for_each_block`.

    Args:
        what: Name of the argument.
        given: The same for all, an entry for each stage, or a mapping from names and globs of blocks.
        blocks: The names of the blocks of each stage.
        word: Last word of the names of their choices.
    """
    mapping = isinstance(given, Mapping)
    stages = for_blocks_of_stages(what, given, blocks, word) if mapping else for_each_stage(what, given, len(blocks))
    return [EachBlock(tuple(for_each_block(what, own, names, word))) for own, names in zip(stages, blocks, strict=True)]


def constructor_arguments(own: Any, gates: bool = True) -> dict[str, int | float]:
    """Return the sizes of a row of blocks in the words of timm's VisionTransformer; with `gates` the ratio counts them.

    Blocks of convolutions have no heads, or no MLP: then these words are not there.
    """
    dim = own.embed_dim
    words: dict[str, int | float] = {"embed_dim": dim, "depth": own.depth}
    words |= {"num_heads": own.num_heads[0]} if own.num_heads else {}
    for hidden, stacks in zip(own.mlp_dim[:1], own.stacks, strict=False):
        product = hidden * (stacks if gates else 1)
        ratio = product / dim
        words["mlp_ratio"] = ratio if int(dim * ratio) == product else nextafter(ratio, inf)  # timm rounds it down
    return words


def for_each_stage(what: str, given: Values, n: int) -> list[Values]:
    """Return what each of `n` stages is given: an entry each where some entry is not one value, else all the same."""
    if isinstance(given, Mapping):
        raise ChoiceError(f"{what}: expected values, or a list with an entry for each stage, got {shown(given)}")
    given = reusable(given)
    if n == 1 or not are_several(given):
        return [given] * n
    entries = [reusable(entry) for entry in given]
    if not any(entry is None or _is_several(entry) for entry in entries):
        return [entries] * n
    if len(entries) != n:
        raise ChoiceError(f"{what}: expected one entry for each of the {n} stages, or values for all, got {len(entries)}")
    return entries


def _is_several(value: Values) -> bool:
    return value == "auto" if isinstance(value, str) else are_several(value)


def counts_of(name: str, given: Values, own: int, least: int | None = None) -> list[int]:
    """Return numbers of heads or, from `least`, of blocks."""

    def part(percentage: str) -> int:
        count = own * _percent(name, percentage) / 100
        if abs(count - round(count)) > own / 2000 or round(count) < 1:  # "33.3%" of 3 is meant to be 1
            fitting = ", ".join(f"{100 * n / own:.4g}%" for n in range(1, own + 1))
            raise ChoiceError(f"{name}: {shown(percentage)} of {own} is no whole number; these are: {fitting}")
        return round(count)

    auto = _steps(own) if least is None else list(range(least, own + 1))
    return _settled(name, given, own, auto, part, lambda number: number)


def widths_of(name: str, given: Values, own: int, unit: int) -> list[int]:
    """Return widths of the residual stream, multiples of `unit`."""
    auto = [width for width in _steps(own) if 2 * width >= own and width % unit == 0]
    widths = _settled(name, given, own, auto, lambda p: round(own * _percent(name, p) / 100), lambda number: number)
    for width in widths:
        if width % unit:
            raise ChoiceError(f"{name}: attention pooling has heads of {unit} channels, which do not divide {width}")
    return widths


def hidden_of(name: str, given: Values, own: int, per_ratio: float) -> list[int]:
    """Return hidden widths of an MLP; a number is a multiple of the model's width, as in timm's mlp_ratio."""

    def width(ratio: Any) -> Any:
        if not 0 < as_number(ratio, name) * per_ratio < own + 1:
            raise ChoiceError(
                f'{name}: expected an mlp_ratio in (0, {own / per_ratio:g}], "auto" or percentages, got {shown(ratio)}'
            )
        return int(ratio * per_ratio)

    return _settled(name, given, own, _steps(own), lambda p: round(own * _percent(name, p) / 100), width)


def _settled(
    name: str, given: Values, own: int, auto: list[int], part: Callable[[str], int], number: Callable[[Any], Any]
) -> list[int]:
    """Return the values in ascending order, the model's own the largest."""
    if given is None:
        return [own]
    if isinstance(given, Settled):
        return sorted({as_count(given.values.get(name, own), name, 1, own), own})
    if isinstance(given, str) and given == "auto":
        return auto
    several = list(given) if are_several(given) else [given]
    if any(isinstance(value, str) and value == "auto" for value in several):
        raise ChoiceError(f'{name}: "auto" stands for all values and not among them, got {shown(several)}')
    values = [part(value) if isinstance(value, str) else number(value) for value in several]
    for value in values:
        if not is_int(value, 1, own):
            raise ChoiceError(f'{name}: expected ints in 1..{own}, percentages such as "50%", or "auto", got {shown(value)}')
    if max(values, default=0) != own:
        listed = ", ".join(map(str, sorted(values))) or "nothing"
        raise ChoiceError(f"{name}: the largest has to be the model's own {own}, whose weights all share, got {listed}")
    return sorted(int(value) for value in values)


def _percent(name: str, text: str) -> float:
    percent = as_percentage(text)
    if not percent:
        raise ChoiceError(f'{name}: expected "auto" or a percentage in (0, 100] such as "50%", got {shown(text)}')
    return percent


def _steps(own: int) -> list[int]:
    """Return equal steps up to `own`: quarters, thirds or halves where they divide it, else rounded quarters."""
    steps = next((n for n in (4, 3, 2) if own % n == 0), 4)
    return sorted({max(1, round(own * i / steps)) for i in range(1, steps + 1)})


def block_numbers(name: str, blocks: Iterable[Any] | None, n: int) -> set[int]:
    """Return the numbers of the blocks that can be searched; None: all of `n`.

    Raises:
        ChoiceError: not ints from 0 to n - 1.
    """
    if blocks is None:
        return set(range(n))
    if not are_several(blocks):
        raise ChoiceError(f"{name}: expected several numbers in 0..{n - 1}, got {shown(blocks)}")
    numbers = list(blocks)
    for number in numbers:
        if not is_int(number, 0, n - 1):
            raise ChoiceError(f"{name}: expected numbers in 0..{n - 1}, got {shown(number)}")
    return {int(number) for number in numbers}

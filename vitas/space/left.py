"""What is held and what is left: `fixed` and `only`, as people type them, as the numbers of the values that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

from vitas.checks import MOST_VALUES, are_several
from vitas.errors import ChoiceError, one_of, shown, unknown
from vitas.space.walk import AnyChoice
from vitas.tables import pattern_of

Left = tuple[tuple[int, ...], ...]
"""For each choice of a space the numbers of the values that are left, ascending; never none."""


def restricted(
    choices: Mapping[str, AnyChoice], left: Left, fixed: Mapping[str, Any] | None, only: Mapping[str, Any] | None
) -> Left:
    """Return what `fixed` and `only` leave of what was left; all that they say holds at once.

    Args:
        choices: Name -> choice, in the order of `left`.
        left: What was left before.
        fixed: Name or glob -> a value that was left before, "largest" or "smallest" of these.
        only: Name or glob -> several of these.

    Raises:
        ChoiceError: no such mapping, a name or glob of no choice, a value that was not left before, nothing left.
    """
    before = dict(zip(choices, left, strict=True))
    after, said = dict(before), dict.fromkeys(choices, "")
    for what, asked in (("fixed", fixed), ("only", only)):
        for name, pattern, values in spoken_of(what, asked, choices):
            numbers = {_number(f"{what}: {name}", choices[name], before[name], value) for value in values}
            after[name] = tuple(number for number in after[name] if number in numbers)
            kept = ", ".join(str(choices[name].values[number]) for number in sorted(numbers))
            said[name] += f"{', ' if said[name] else ''}{what}[{shown(pattern)}] leaves {kept}"
            if not after[name]:
                raise ChoiceError(f"{name}: no value is left: {said[name]}")
    return tuple(after.values())


def spoken_of(what: str, asked: Any, choices: Mapping[str, AnyChoice]) -> list[tuple[str, str, Sequence[Any]]]:
    """Return for each choice that is spoken of its name, the name or glob that was given, and the values.

    Raises:
        ChoiceError: no such mapping, a name or glob of no choice, no values.
    """
    example = "{'depth': 6}" if what == "fixed" else "{'blocks.*.num_heads': [2, 4]}"
    if asked is None:
        return []
    if not isinstance(asked, Mapping):
        raise ChoiceError(f"{what}: expected names and values such as {example}, got {shown(asked)}")
    found: list[tuple[str, str, Sequence[Any]]] = []
    for pattern, values in asked.items():
        if what == "fixed":
            values = [values]
        elif not are_several(values) or isinstance(values, Mapping):
            instead = "; fixed= takes one" if what == "only" else ""
            raise ChoiceError(f"{what}: {shown(pattern, 40)}: expected several values, got {shown(values, 40)}{instead}")
        else:
            values = list(islice(values, MOST_VALUES + 1))
            if len(values) > MOST_VALUES:
                raise ChoiceError(f"{what}: {shown(pattern)}: expected at most {MOST_VALUES} values, got more")
            if not values:
                raise ChoiceError(f"{what}: {shown(pattern)}: expected at least one value, got none")
        found += [(name, pattern, values) for name in named(what, pattern, list(choices))]
    return found


def is_glob(name: Any) -> bool:
    """Say whether a name can stand for several."""
    return isinstance(name, str) and any(sign in name for sign in "*?[")


def named(what: str, pattern: Any, names: list[str], kind: str = "choice") -> list[str]:
    """Return the names that a name or a glob stands for, whose star also stands for dots.

    Raises:
        ChoiceError: neither a name nor a glob of any, with the nearest.
    """
    if not isinstance(pattern, str):
        raise ChoiceError(f"{what}: expected the name of a {kind} or a glob, got {shown(pattern)}")
    if pattern in names:
        return [pattern]
    matching = [name for name in names if fnmatchcase(name, pattern)]
    if matching:
        return matching
    if is_glob(pattern):
        globs = list(dict.fromkeys(pattern_of(name) for name in names))
        raise ChoiceError(f"{what}: no {kind} matches this glob: {one_of(globs, pattern)}")
    if kind == "choice":
        raise ChoiceError(f"{what}: {unknown(kind, names, pattern, 'search_space(model).choices')}")
    short = [name for name in names if name.rpartition(".")[2].isdigit()]
    raise ChoiceError(f"{what}: {unknown(kind, short, pattern, f'{short[0]} to {short[-1]}')}")


def _number(where: str, choice: AnyChoice, left: Sequence[int], value: Any) -> int:
    """Return the number of a value that is left."""
    if isinstance(value, str) and value in ("largest", "smallest"):
        return left[-1 if value == "largest" else 0]
    with suppress(ChoiceError):
        number = choice.index_of(value)
        if number in left:
            return number
    raise ChoiceError(f"{where}: {one_of([choice.values[number] for number in left], value)}")

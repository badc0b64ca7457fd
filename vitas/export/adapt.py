"""A superformer's file in a model of other values: what the values that both have use of the weights is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vitas.checks import is_int, is_number
from vitas.choice import Depth, Dim
from vitas.errors import ChoiceError, FileError, listed, shown
from vitas.export.files import check
from vitas.nn.images import SizedImages, searched_size
from vitas.space import Number, SearchSpace, held, search_space


@dataclass(frozen=True)
class Adapted:
    """How the values of a model differ from those of the file that it has loaded; nothing in it: not at all.

    Attributes:
        new: Name of a choice -> values that the file's weights were not trained with.
        gone: Name of a choice -> values of the file that the model does not have.
    """

    new: dict[str, tuple[Number, ...]]
    gone: dict[str, tuple[Number, ...]]


Values = tuple[Number, ...]


def adapt_choices(
    space: SearchSpace, saved: Mapping[str, Any], path: Path, sizes: Mapping[str, tuple[Values, Values]]
) -> Adapted:
    """Let the values that a model and a file have use what they used in the file's model.

    Args:
        space: The space of the model, whose choices are adapted.
        saved: That of the file.
        path: The file.
        sizes: Name -> the sizes of images here and in the file, where only one of both searches them, see `sizes_apart`.

    Raises:
        FileError: other choices; no value in common; blocks that leave in another order; channels that do not fit.
    """
    if differing := sorted((saved.keys() ^ space.choices.keys()) - sizes.keys()):
        raise FileError(f"{path}: another search space; choices that only one of both has: {listed(differing)}")
    new, gone = {}, {}
    for name, (here, in_file) in sizes.items():
        new[name] = tuple(value for value in here if value not in in_file)
        gone[name] = tuple(value for value in in_file if value not in here)
    for name, choice in space.choices.items():
        if name in sizes:
            continue
        where, there = f"{path}: space: {name}", saved[name]
        check(isinstance(there, dict) and isinstance(there.get("values"), list), where, "an object with values", there)
        values = there["values"]
        check(all(map(is_number, values)), where, "numbers", values)
        if max(values, default=0) > choice.largest:
            raise FileError(
                f"{path}: {name}: values up to {shown(max(values), 20)}, here up to {choice.largest}; build a model with the"
                " file's values, load it, then vitas.narrow it"
            )
        if not set(values) & set(space.values[name]):
            raise FileError(f"{path}: {name}: the values {listed(map(str, values))} have none in common with those here")
        if isinstance(choice, Depth) and there.get("turns") != (None if choice.from_the_end else list(choice.turns)):
            raise FileError(f"{path}: {name}: its blocks leave in another order, so that equal depths are other networks")
        if isinstance(choice, Dim):
            _adopt(choice, values, there.get("runs"), where)
        new[name] = tuple(value for value in space.values[name] if value not in values)
        gone[name] = tuple(value for value in values if value not in space.values[name])
    return Adapted({name: own for name, own in new.items() if own}, {name: own for name, own in gone.items() if own})


def sizes_apart(inner: nn.Module, saved: Mapping[str, Any], size: Any) -> dict[str, tuple[Values, Values]]:
    """Return name -> the sizes of images of a model and of a file, where the size is searched in only one of both.

    Args:
        inner: The model.
        saved: The space of the file.
        size: Height and width of the file's largest images; None: it does not tell, as for models without positions.
    """
    if not isinstance(inner, SizedImages):
        return {}
    here, there = search_space(inner), tuple(size[:1]) if isinstance(size, list) and len(set(map(str, size))) == 1 else ()
    if (choice := searched_size(inner)) is not None:
        name = next(name for name, own in here.choices.items() if own is choice)
        return {} if name in saved else {name: (here.values[name], there)}
    told = saved.get("img_size")
    if told is None or "img_size" in here.choices or len(set(inner.img_size)) > 1:  # searched sizes are squares
        return {}
    values = told.get("values") if isinstance(told, dict) else None
    if not isinstance(values, list) or not all(is_int(value, 1) for value in values):
        return {}
    return {"img_size": (inner.img_size[:1], tuple(values))}


def adapt_products(model: nn.Module, derived: Mapping[str, Any] | None, path: Path) -> None:
    """Let widths that follow other choices use what they used in the file's model.

    Args:
        model: The model, whose choices are adapted.
        derived: Module path -> the runs in the file, of this model alone; None: an older file, which does not say.
        path: The file.

    Raises:
        FileError: channels that do not fit, or are not said.
    """
    adapted: set[Dim] = set()
    for place, part in model.named_modules():
        for name, choice in held(part):
            if not isinstance(choice, Dim) or choice.fixed or choice.bases == (choice,) or name.startswith("_"):
                continue
            runs = (derived or {}).get(f"{place}.{name}")
            if runs is None:
                raise FileError(f"{path}: {place}.{name}: which channels a width that follows others uses is not said")
            if choice not in adapted:
                check(isinstance(runs, list) and runs != [], f"{path}: {place}.{name}", "runs", runs)
                _adopt(choice, None, runs, f"{path}: {place}.{name}")
                adapted.add(choice)


def _adopt(dim: Dim, widths: list[int] | None, sides: Any, where: str) -> None:
    """Take over the runs of a file, for each side a list of (start, length); widths None: the lengths."""
    pairs = isinstance(sides, list) and all(isinstance(side, list) and len(side) == len(sides[0]) for side in sides)
    fits = pairs and all(
        isinstance(run, list) and len(run) == 2 and all(is_int(number, 0) for number in run)
        for side in sides
        for run in side
    )
    check(fits and sides != [], where, "runs of (start, length)", sides)
    widths = [length for _, length in sides[0]] if widths is None else widths
    check(len(widths) == len(sides[0]), where, f"{len(widths)} runs", sides)
    try:
        dim.adopt({width: [(start, length) for start, length in runs] for width, *runs in zip(widths, *sides, strict=True)})
    except ChoiceError as error:
        raise FileError(f"{where}: {error}; a model of the same sharing can take them") from None

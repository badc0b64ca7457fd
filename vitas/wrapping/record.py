"""Records: one line of text for each class says what the axes of its parameters and its attributes are.

    qkv: 3 h d, w; gate: h d, w; proj: w, h d; num_heads = h; attn_dim = h d

Entries stand between semicolons. There are six forms:

    NAMES: AXES              parameters, or layers and then the axes of their weight; an axis is a product of letters and
                             numbers: `3 h d` are three stacks of h heads of d channels, `_` leaves an axis whole
    NAMES = LETTERS          attributes that follow: `num_heads = h`, `num_heads = w / head_dim` (a number that is held
                             there); `embed_dims = w*` is the list over all stages; of a tuple the one that follows,
                             `bias_shape = _, _, h`
    rows PATH                the blocks in a row whose number is searched; a `*` stands for the number of the stage
    stages PATHS             lists whose i-th part belongs to stage i
    whole PATHS              parts that stay as they are but for what is named in them; `.` is the module itself
    fixed LETTERS            w, n, h: widths, numbers of blocks, heads that cannot be searched

An entry may end on `if PATH` or `unless PATH`: it holds where a module has such a part (an Identity is none) or an attribute
that is true, or where it has none.

Letters: w width of the residual stream (of the stage), u of the stage before, v of the next one, w0 w1 ... of each stage,
h heads, d channels of a head, m hidden width of an MLP, n blocks that run; any other letter is a size that stays. The h of a
part is that of all parts inside it. What a letter counts is read off the shapes by division. A name may be a path,
`patch_embed.proj`; numbers in it may count from the end. What a class of a library lacks is passed over: that nothing is
forgotten is checked on the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from vitas.errors import WrapError, one_of, shown


class Axis(NamedTuple):
    """An axis: so many stacks of a product of letters; no letters leave it whole."""

    stacks: int
    letters: tuple[str, ...]

    @property
    def word(self) -> str:
        """The letters as one word, "h d"."""
        return " ".join(self.letters)


class Attribute(NamedTuple):
    """What an attribute is: so many times a product of letters, perhaps divided by another attribute, or a list of it."""

    axis: Axis
    per: str | None
    each: bool  # a list, an entry for each stage
    at: int | None = None  # the place in a tuple


class Record(NamedTuple):
    """What a class of layers or models holds."""

    axes: dict[str, tuple[Axis, ...]]
    attributes: dict[str, Attribute]
    rows: str | None
    stages: tuple[str, ...]
    whole: tuple[str, ...]
    fixed: tuple[str, ...] = ()


_NAME = re.compile(r"[A-Za-z_]\w*(\.-?\w+)*")
_LETTER = re.compile(r"[a-z]\d*")
_CONDITION = re.compile(r"(.*?)(?:\s(if|unless)\s+(\S+))?\s*$", re.DOTALL)


def record_of(text: str, module: nn.Module) -> Record:
    """Return what a record says of a module: entries whose condition fails are left out.

    Raises:
        WrapError: an entry in none of the forms.
    """
    entries = [_CONDITION.match(entry) for entry in text.split(";")]
    true = [found[1] for found in entries if found and _holds(module, found[2], found[3])]
    return parsed("; ".join(true), type(module).__name__)


def check_names(text: str, modules: Sequence[nn.Module]) -> None:
    """Refuse a record that names what no module of its class has, but for entries with a condition.

    Raises:
        WrapError: with the names that there are.
    """
    of = type(modules[0]).__name__
    record = parsed("; ".join(one[1] for one in map(_CONDITION.match, text.split(";")) if one and not one[2]), of)
    rows = () if record.rows is None else (record.rows.replace("*", "0"),)
    for name in (*record.axes, *record.attributes, *record.whole, *record.stages, *rows):
        missing = [_missing(module, name) for module in modules] if name != "." else [None]
        if None not in missing and missing[0] is not None:
            raise _fault(of, name, one_of(missing[0][1], missing[0][0]))


def _missing(module: nn.Module, path: str) -> tuple[str, list[str]] | None:
    """Return the first name of a path that is not there, and those that are; None where all are."""
    *owners, last = path.split(".")
    for number, name in enumerate((*owners, last)):
        own = {**module._modules, **module._parameters, **module._buffers}
        names = [*own, *(key for key in vars(module) if number == len(owners) and not key.startswith("_"))]
        step = str(len(module._modules) + int(name)) if name.startswith("-") else name
        if step not in names:
            return name, names
        if number < len(owners) and not isinstance(own[step], nn.Module):
            return None if own[step] is None else (owners[number], names)
        module = own.get(step)  # type: ignore[assignment]
    return None


def _holds(module: nn.Module, word: str | None, path: str | None) -> bool:
    if word is None or path is None:
        return True
    part = part_at(module, path)
    there = bool(vars(module).get(path)) if part is None else not isinstance(part, nn.Identity)
    return there == (word == "if")


@cache
def parsed(text: str, of: str) -> Record:
    """Read a record.

    Args:
        text: The line.
        of: The name of the class, for errors.

    Raises:
        WrapError: an entry in none of the forms.
    """
    record = Record({}, {}, None, (), ())
    for entry in filter(None, map(str.strip, text.split(";"))):
        word, *rest = entry.split()
        if word in ("stages", "whole", "fixed") and rest and not {":", "="} & set(entry):
            more: dict[str, Any] = {word: (*getattr(record, word), *rest)}
            record = record._replace(**more)
        elif word == "rows" and len(rest) == 1:
            record = record._replace(rows=rest[0])
        elif ":" in entry:
            names, _, axes = entry.partition(":")
            record.axes.update(dict.fromkeys(_names(names, entry, of), tuple(_axis(a, entry, of) for a in axes.split(","))))
        elif "=" in entry:
            names, _, letters = entry.partition("=")
            record.attributes.update(dict.fromkeys(_names(names, entry, of), _attribute(letters, entry, of)))
        else:
            raise _fault(
                of, entry, 'expected "NAMES: AXES", "NAMES = LETTERS", or a line that starts with rows, stages, whole, fixed'
            )
    return record


def _fault(of: str, entry: str, what: str) -> WrapError:
    return WrapError(f"record of {of}: {shown(entry)}: {what}")


def _names(text: str, entry: str, of: str) -> list[str]:
    names = text.split()
    if not names or not all(map(_NAME.fullmatch, names)):
        raise _fault(of, entry, f"expected names of parameters, layers or attributes, got {shown(text.strip())}")
    return names


def _axis(text: str, entry: str, of: str) -> Axis:
    words = text.split()
    if words == ["_"]:
        return Axis(1, ())
    stacks = int(words[0]) if words and words[0].isdigit() else None
    letters = tuple(words if stacks is None else words[1:])
    if stacks == 0 or any(word.isdigit() for word in letters):
        raise _fault(of, entry, f'expected a number from 1 on, in front ("3 h d", else "h e"), got {shown(text.strip())}')
    if not letters or not all(map(_LETTER.fullmatch, letters)):
        raise _fault(of, entry, f'expected letters and numbers such as "3 h d", or "_", got {shown(text.strip())}')
    return Axis(1 if stacks is None else stacks, letters)


def _attribute(text: str, entry: str, of: str) -> Attribute:
    if "," in text:
        axes = [_axis(axis, entry, of) for axis in text.split(",")]
        places = [place for place, axis in enumerate(axes) if axis.letters]
        if len(places) != 1:
            raise _fault(of, entry, 'expected one place that follows, "_" for the others')
        return Attribute(axes[places[0]], None, False, places[0])
    product, _, per = (part.strip() for part in text.partition("/"))
    return Attribute(_axis(product.removesuffix("*"), entry, of), per or None, product.endswith("*"))


def part_at(module: nn.Module, path: str) -> nn.Module | Tensor | None:
    """Return the part, parameter or buffer at a path of a record; None where there is none."""
    found: nn.Module | Tensor | None = module
    for name in path.split("."):
        if not isinstance(found, nn.Module):
            return None
        if name.startswith("-"):
            name = str(len(found._modules) + int(name))
        found = next((own[name] for own in (found._modules, found._parameters, found._buffers) if name in own), None)
    return found


def shape_at(module: nn.Module, path: str) -> tuple[int, ...]:
    """Return the shape of what a record names: of a parameter, or of a layer's weight; () where there is none."""
    found = part_at(module, path)
    weight = found if isinstance(found, Tensor) or found is None else weight_of(found)
    return () if weight is None else tuple(weight.shape)


def weight_of(layer: nn.Module) -> Tensor | None:
    """Return the parameter with the most axes that a layer holds itself."""
    own = [weight for weight in layer._parameters.values() if weight is not None]
    return max(own, key=lambda weight: weight.ndim, default=None)


def sizes_of(module: nn.Module, record: Record, known: dict[str, int]) -> dict[str, int]:
    """Return the size of each letter of a record: those that are known, those of attributes, the rest by division.

    Raises:
        WrapError: an axis that its letters do not divide, or that has another size.
    """
    of, sizes = type(module).__name__, dict(known)
    for name, what in record.attributes.items():
        plain = what.at is None and what.axis.stacks == 1 and len(what.axis.letters) == 1 and not what.per and not what.each
        if plain and isinstance(vars(module).get(name), int):
            sizes.setdefault(what.axis.letters[0], vars(module)[name])
    lengths = [
        (name, axis, size)
        for name, axes in record.axes.items()
        for axis, size in zip(axes, shape_at(module, name), strict=False)
    ]
    whole = {name: what for name, what in record.attributes.items() if what[1:] == (None, False, None)}
    lengths += [(name, what.axis, size) for name, what in whole.items() if isinstance(size := vars(module).get(name), int)]
    again = True
    while again:
        again = False
        for name, axis, size in lengths:
            unknown = [letter for letter in axis.letters if letter not in sizes]
            if len(unknown) == 1:
                times = axis.stacks * prod(sizes[letter] for letter in axis.letters if letter in sizes)
                if size % times:
                    raise _fault(of, f"{name}: {axis.stacks} {axis.word}", f"{times} does not divide the {size} there are")
                sizes[unknown[0]], again = size // times, True
    for name, axes in record.axes.items():
        shape = shape_at(module, name)
        if shape and len(axes) < len(shape):
            raise _fault(of, name, f"expected {len(shape)} axes, got {len(axes)}")
        for number, (axis, size) in enumerate(zip(axes, shape, strict=False)):
            if axis.letters and all(letter in sizes for letter in axis.letters):
                expected = axis.stacks * prod(sizes[letter] for letter in axis.letters)
                if expected != size:
                    text = f"{axis.stacks} {axis.word}" if axis.stacks > 1 else axis.word
                    raise _fault(of, f"{name}: {text}", f"axis {number} has {size} channels, the letters say {expected}")
    for name, (axis, per, _, _) in record.attributes.items():
        if isinstance(value := vars(module).get(name), int) and all(letter in sizes for letter in axis.letters):
            expected = axis.stacks * prod(sizes[letter] for letter in axis.letters) // (vars(module)[per] if per else 1)
            if value != expected:
                raise _fault(of, f"{name} = {axis.word}", f"it is {value}, the letters say {expected}")
    return sizes

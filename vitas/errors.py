"""What vitas raises for users' mistakes: the name, the value received, what was expected, the nearest legal value."""

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

__all__ = [
    "BudgetError",
    "CheckpointError",
    "ChoiceError",
    "ExportError",
    "FileError",
    "SearchError",
    "ShapeError",
    "UnknownChoice",
    "VitasError",
    "WrapError",
]


class VitasError(Exception):
    """Base of every error that vitas raises on purpose; its message has no control characters, whatever it quotes.

    Example:
        >>> try:
        ...     vitas.create_superformer("deit_mikro")
        ... except vitas.VitasError as error:
        ...     print(error)
        unknown superformer 'deit_mikro'; did you mean 'deit_micro'? (14 superformers: list_superformers())
    """

    def __str__(self) -> str:
        text = super().__str__()
        if text.isprintable():
            return text
        return "".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text)


class ChoiceError(VitasError, ValueError):
    """A choice, or a value of one, does not fit the search space.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> try:
        ...     vitas.sample_subnet(model, fixed={"dept": 3})
        ... except vitas.ChoiceError as error:
        ...     print(error)
        fixed: unknown choice 'dept'; did you mean 'depth'? (21 choices: search_space(model).choices)
    """


class UnknownChoice(ChoiceError, KeyError):
    """A subnet has no value of that name; a KeyError too, as mappings raise."""

    __str__ = Exception.__str__


class BudgetError(VitasError, ValueError):
    """A budget that cannot be read or that no subnet meets.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> try:
        ...     vitas.sample_subnet(model, flops=1000)
        ... except vitas.BudgetError as error:
        ...     print(error)
        no subnet has flops from 0 to 1,000: the subnets reach from 165,248 to 33,695,808, nearest: 165,248 above
    """


class SearchError(VitasError, ValueError):
    """A search that cannot start or go on: its objectives, limits or storage, or what `evaluate` returned."""


class ShapeError(VitasError, ValueError):
    """A tensor whose shape does not fit the active subnet."""


class ExportError(VitasError, RuntimeError):
    """A model, or a part of one, that cannot be exported as asked."""


class WrapError(VitasError, TypeError):
    """A model that `wrap` cannot make searchable."""


class FileError(VitasError, ValueError):
    """A file that cannot be written, or whose content is not what it should be."""


class CheckpointError(VitasError, RuntimeError):
    """Gradient checkpointing that would recompute another subnet than the one that ran."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import inside what an extra of the package installs; say how to get it where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise VitasError(f'{error.name} is not installed: pip install "vitas[{extra}]"') from None


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 60, 200, 60
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 12

    def repr_int(self, x: int, level: int) -> str:
        """Longer ints cannot be written out (Python refuses beyond 4,300 digits)."""
        return repr(x) if x.bit_length() <= 256 else f"{'-' if x < 0 else ''}2**{x.bit_length() - 1} or more"


_short = _Short()


def shown(value: object, most: int = 60) -> str:
    """Return a value as messages show it: its repr, cut where it is long; never fails, whatever the value."""
    shape = getattr(value, "shape", ()) if type(value).__module__.partition(".")[0] == "torch" else ()
    if shape:
        return f"tensor of shape {tuple(shape)}"
    text = _short.repr(value)
    text = text if text.isprintable() else _in_one_line(text)
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _in_one_line(text: str) -> str:
    """Return a text with single spaces and escaped control characters, which would colour or clear a terminal."""
    return "".join(it if it.isprintable() else repr(it)[1:-1] for it in " ".join(text.split()))


def fault_of_name(name: object, most: int) -> str | None:
    """Return why this is no name, that is a string of 1 to `most` characters that every file and database takes."""
    if not isinstance(name, str):
        return f"expected a string, got {shown(name)}"
    if not 0 < len(name) <= most:
        return f"expected a string of 1 to {most} characters, got {shown(name)}"
    if "\0" in name or (not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name)):
        return f"expected a string that UTF-8 can write, without NUL, got {shown(name)}"
    return None


def brief(error: Exception, most: int = 80, kind: bool = False) -> str:
    """Return in one line what another library's error says, cut where it is long; its kind first, or alone."""
    text = _in_one_line(str(error)) or type(error).__name__
    text = f"{type(error).__name__}: {text}" if kind else text
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def is_one_of(values: Sequence[object], got: object) -> bool:
    """Say whether `got` is among words (and None); arrays and tensors, which compare element by element, never are."""
    return isinstance(got, (str, type(None))) and got in values


_LONG = 90
"""Characters of legal values that a message shows; of more it shows the nearest one and how many there are."""


def one_of(values: Sequence[object], got: object, where: str = "") -> str:
    """Return "expected one of 2, 4, got 3 (nearest: 4)" for a value that is not among `values`; of many the nearest first.

    Args:
        values: What is legal.
        got: What came.
        where: Where a reader finds them all, where they are too many to be shown.
    """
    listing, near = ", ".join(str(value) for value in values), _nearest(values, got)
    if len(listing) <= _LONG:
        wanted = f"one of {listing}" if len(values) > 1 else listing
        return f"expected {wanted}, got {shown(got)}" + (f" (nearest: {near})" if near is not None else "")
    at = f": {where}" if where else f" from {values[0]} to {values[-1]}"
    if near is not None:
        return f"{shown(got, 50)}: did you mean {near!r}? ({len(values)} are legal{at})"
    return f"expected one of {len(values)}{at}, got {shown(got, 50)}"


def unknown(what: str, names: Sequence[str], got: object, where: str) -> str:
    """Return "unknown choice 'dept'; did you mean 'depth'? (21 choices: search_space(model).choices)".

    Args:
        what: What it is that has names, such as "choice".
        names: Those that are known.
        got: What came.
        where: Where a reader finds them all.
    """
    near = _nearest(names, got)
    meant = f"; did you mean {near!r}?" if near is not None else ""
    number = f"{len(names)} {what}s" if len(names) != 1 else f"1 {what}"
    return f"unknown {what} {shown(got, 50)}{meant} ({number}: {where})"


def _nearest(values: Sequence[object], got: object) -> object:
    """Return the legal value that is most like what came; None: none is."""
    if isinstance(got, str):
        named = {str(value): value for value in values}
        alike = [
            name for name in named if name.rpartition(".")[2] in (got, _SAME.get(got))
        ]  # "blocks.0.mlp_dim" for "mlp_dim"
        alike = alike or difflib.get_close_matches(got[:100].lower(), named, n=1)
        return named[alike[0]] if alike else None
    if isinstance(got, bool) or not isinstance(got, (int, float)) or got != got:
        return None
    numbers = [value for value in values if isinstance(value, (int, float))]
    return min(numbers, key=lambda value: abs(value - clipped(got)), default=None)


_SAME = {"width": "embed_dim", "widths": "embed_dim", "dim": "embed_dim", "heads": "num_heads", "hidden_dim": "mlp_dim"}
"""What people call a choice -> what the field's models call it."""


def clipped(number: float) -> float:
    """Return a number, or the end of what a float can hold that is next to it: longer ints cannot be made floats."""
    return min(max(number, -(2**1000)), 2**1000)


def listed(names: Iterable[str], most: int = 8) -> str:
    """Return up to `most` names, of long ones fewer, and how many more there are."""
    names = list(names)
    first = [name if len(name) <= 80 and name.isprintable() else shown(name) for name in names[:most]]
    while len(first) > 1 and len(", ".join(first)) > _LONG:
        first.pop()
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return ", ".join(first) + more

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
    "VitasError",
    "WrapError",
]


class VitasError(Exception):
    """Base of every error that vitas raises on purpose; its message has no control characters, whatever it quotes."""

    def __str__(self) -> str:
        text = super().__str__()
        if text.isprintable():
            return text
        return "".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text)


class ChoiceError(VitasError, ValueError):
    """A choice, or a value of one, does not fit the search space."""


class BudgetError(VitasError, ValueError):
    """A budget that cannot be read or that no subnet meets."""


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
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, 80, 200, 80
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 12

    def repr_int(self, x: int, level: int) -> str:
        """Longer ints cannot be written out (Python refuses beyond 4,300 digits)."""
        return repr(x) if x.bit_length() <= 256 else f"{'-' if x < 0 else ''}2**{x.bit_length() - 1} or more"


_short = _Short()


def shown(value: object, most: int = 200) -> str:
    """Return a value as messages show it: its repr, cut where it is long; never fails, whatever the value."""
    shape = getattr(value, "shape", ()) if type(value).__module__.partition(".")[0] == "torch" else ()
    if shape:
        return f"tensor of shape {tuple(shape)}"
    text = _short.repr(value)
    text = text if text.isprintable() else " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def fault_of_name(name: object, most: int) -> str | None:
    """Return why this is no name, that is a string of 1 to `most` characters that every file and database takes."""
    if not isinstance(name, str):
        return f"expected a string, got {shown(name)}"
    if not 0 < len(name) <= most:
        return f"expected a string of 1 to {most} characters, got {shown(name)}"
    if "\0" in name or (not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name)):
        return f"expected a string that UTF-8 can write, without NUL, got {shown(name)}"
    return None


def brief(error: Exception, most: int = 300) -> str:
    """Return what another library's error says, cut where it is long."""
    text = str(error)
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def is_one_of(values: Sequence[object], got: object) -> bool:
    """Say whether `got` is among words (and None); arrays and tensors, which compare element by element, never are."""
    return isinstance(got, (str, type(None))) and got in values


def one_of(values: Sequence[object], got: object, most: int = 20) -> str:
    """Return "expected one of 2, 4, got 3 (nearest: 4)" for a value that is not among `values`."""
    listing = ", ".join(str(value) for value in values[:most])
    if len(values) > most:
        listing += f", ... {values[-1]} ({len(values)} values)"
    wanted = f"one of {listing}" if len(values) > 1 else listing
    return f"expected {wanted}, got {shown(got)}{_nearest(values, got)}"


def _nearest(values: Sequence[object], got: object) -> str:
    if isinstance(got, str):
        close = difflib.get_close_matches(got[:100].lower(), [str(value) for value in values], n=1)
        return f" (nearest: {close[0]})" if close else ""
    if isinstance(got, bool) or not isinstance(got, (int, float)) or got != got:
        return ""
    numbers = [value for value in values if isinstance(value, (int, float))]
    return f" (nearest: {min(numbers, key=lambda value: abs(value - clipped(got)))})" if numbers else ""


def clipped(number: float) -> float:
    """Return a number, or the end of what a float can hold that is next to it: longer ints cannot be made floats."""
    return min(max(number, -(2**1000)), 2**1000)


def listed(names: Iterable[str], most: int = 8) -> str:
    """Return up to `most` names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= 80 else shown(name) for name in names[:most]) + more

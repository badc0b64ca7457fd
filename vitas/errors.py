"""What vitas raises for users' mistakes: the name, the value received, what was expected, the nearest legal value."""

import difflib
from collections.abc import Iterable, Sequence


class VitasError(Exception):
    """Base of every error that vitas raises on purpose."""


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


def one_of(values: Sequence[object], got: object, most: int = 20) -> str:
    """Return "expected one of 2, 4, got 3 (nearest: 4)" for a value that is not among `values`."""
    shown = ", ".join(str(value) for value in values[:most])
    if len(values) > most:
        shown += f", ... {values[-1]} ({len(values)} values)"
    wanted = f"one of {shown}" if len(values) > 1 else shown
    return f"expected {wanted}, got {got!r}{_nearest(values, got)}"


def _nearest(values: Sequence[object], got: object) -> str:
    if isinstance(got, str):
        close = difflib.get_close_matches(got.lower(), [str(value) for value in values], n=1)
        return f" (nearest: {close[0]})" if close else ""
    if isinstance(got, bool) or not isinstance(got, (int, float)) or got != got:
        return ""
    numbers = [value for value in values if isinstance(value, (int, float))]
    return f" (nearest: {min(numbers, key=lambda value: abs(value - got))})" if numbers else ""


def listed(names: Iterable[str], most: int = 8) -> str:
    """Return up to `most` names and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

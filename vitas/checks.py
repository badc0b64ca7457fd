"""Checks of arguments: what people type in place of a number, a flag or a name, refused with what was expected."""

import math
import sys
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from vitas.errors import ChoiceError, fault_of_name, shown

LONGEST_NAME = 500


MOST_VALUES = 2**14


_MOST = sys.float_info.max


MOST_CHANNELS = 2**24  # far beyond any network, and small enough for costs to stay below 64 bits


def as_count(count: object, what: str, least: int = 1) -> int:
    """Return an int, numpy's made Python's.

    Raises:
        ChoiceError: not an int of at least `least`, or one beyond any network; bools are none.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < least:
        wanted = "a positive int" if least == 1 else f"an int of at least {least}"
        raise ChoiceError(f"{what}: expected {wanted}, got {shown(count)}")
    if count > MOST_CHANNELS:
        raise ChoiceError(f"{what}: expected an int of at most {MOST_CHANNELS}, got {shown(count)}")
    return int(count)


def plain_number(value: object, what: str) -> int | float:
    """Return an int or float for any real number, numpy's included.

    Raises:
        ChoiceError: bools, NaN, infinities, strings, tensors, ints that floats do not hold.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or abs(value) == math.inf:
        raise ChoiceError(f"{what}: expected an int or a float, got {shown(value)}")
    if abs(value) > _MOST:
        raise ChoiceError(f"{what}: expected a number that floats can hold, got {shown(value)}")
    return value


def is_name(name: object) -> TypeGuard[str]:
    """Say whether this can be the name of a choice."""
    return fault_of_name(name, LONGEST_NAME) is None


def are_several(values: object) -> TypeGuard[Iterable[Any]]:
    """Say whether these are values to go through; text is one value, and so are tensors and arrays of no axis."""
    return isinstance(values, Iterable) and not isinstance(values, (str, bytes)) and getattr(values, "ndim", 1) > 0


def check_numbers(**numbers: float | None) -> None:
    """Refuse what is no number where one is optional: the starting gain of LayerScale, the epsilon of a norm.

    Raises:
        ChoiceError: with the name of the argument.
    """
    for name, number in numbers.items():
        if number is not None and not abs(plain_number(number, name)) < 1e30:
            raise ChoiceError(f"{name}: expected a number that float32 holds, got {shown(number)}")


def check_flags(**flags: bool) -> None:
    """Refuse what is neither True nor False: a word such as "no" would count as true.

    Raises:
        ChoiceError: with the name of the argument.
    """
    for name, flag in flags.items():
        if not isinstance(flag, (bool, np.bool_)):
            raise ChoiceError(f"{name}: expected True or False, got {shown(flag)}")


def check_rates(**rates: float) -> None:
    """Refuse what is no number in [0, 1): rates of dropout, probabilities of an identity.

    Raises:
        ChoiceError: with the name of the rate.
    """
    for name, rate in rates.items():
        if not 0 <= plain_number(rate, name) < 1:
            raise ChoiceError(f"{name}: expected a number in [0, 1), got {shown(rate)}")

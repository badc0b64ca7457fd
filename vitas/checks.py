"""Checks of arguments: what people type in place of a number, a flag or a name, refused with what was expected.

Numpy's ints, floats and bools are taken wherever Python's are, and made Python's. A bool is not taken for a number, and
NaN and infinities by `as_real` alone. `what` is the name of the argument, `error` what is raised in that part of the
library.
"""

import math
import sys
from collections.abc import Iterable
from typing import Any, TypeGuard

import numpy as np

from vitas.errors import ChoiceError, VitasError, fault_of_name, shown

LONGEST_NAME = 500
MOST_VALUES = 2**14
ANY_INT = math.inf  # no bound: seeds and steps
MOST_CHANNELS = 2**24  # far beyond any network, and small enough for costs to stay below 64 bits


def is_int(value: object, least: float = -math.inf, most: float = math.inf) -> TypeGuard[int]:
    """Say whether this is an int, Python's or numpy's, from `least` to `most`."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(least <= value <= most)


def is_number(value: object) -> TypeGuard[int | float]:
    """Say whether this is a real number, Python's or numpy's, that a float can hold."""
    if isinstance(value, np.generic):
        value = value.item()
    # The comparison is false for NaN and infinities too.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_count(
    count: object, what: str, least: int = 1, most: float = MOST_CHANNELS, error: type[VitasError] = ChoiceError
) -> int:
    """Return an int from `least` to `most`.

    Raises:
        VitasError: `error`, anything else.
    """
    if not is_int(count, least):
        wanted = "a positive int" if least == 1 else f"an int of at least {least}"
        raise error(f"{what}: expected {wanted}, got {shown(count)}")
    if count > most:
        raise error(f"{what}: expected an int of at most {most}, got {shown(count)}")
    return int(count)


def as_real(
    value: object, what: str, error: type[VitasError] = ChoiceError, wanted: str = "an int or a float"
) -> int | float:
    """Return a real number as an int or a float; NaN and infinities are such floats.

    Raises:
        VitasError: `error`, bools, strings, tensors: `wanted` was expected; ints that floats do not hold.
    """
    if is_int(value):
        if not is_number(value):
            raise error(f"{what}: expected a number that floats can hold, got {shown(value)}")
        return int(value)
    if not isinstance(value, (float, np.floating)):
        raise error(f"{what}: expected {wanted}, got {shown(value)}")
    return float(value)


def as_number(value: object, what: str, error: type[VitasError] = ChoiceError) -> int | float:
    """Return a real number as an int or a float.

    Raises:
        VitasError: `error`, bools, NaN, infinities, strings, tensors, ints that floats do not hold.
    """
    number = as_real(value, what, error)
    if not math.isfinite(number):
        raise error(f"{what}: expected an int or a float, got {shown(value)}")
    return number


def as_flag(flag: object, what: str, error: type[VitasError] = ChoiceError) -> bool:
    """Return a bool: a word such as "no" would count as true.

    Raises:
        VitasError: `error`, anything else.
    """
    if not isinstance(flag, (bool, np.bool_)):
        raise error(f"{what}: expected True or False, got {shown(flag)}")
    return bool(flag)


def as_percentage(text: str) -> float | None:
    """Return the 60.0 of "60%"; None for text that is not a percentage from 0 to 100."""
    number = text.strip().removesuffix("%")
    try:
        share = float(number) if number != text.strip() else math.nan
    except ValueError:
        return None
    return share if 0 <= share <= 100 else None


def is_name(name: object) -> TypeGuard[str]:
    """Say whether this can be the name of a choice."""
    return fault_of_name(name, LONGEST_NAME) is None


def are_several(values: object) -> TypeGuard[Iterable[Any]]:
    """Say whether these are values to go through; text is one value, and so are tensors and arrays of no axis."""
    return isinstance(values, Iterable) and not isinstance(values, (str, bytes)) and getattr(values, "ndim", 1) > 0


def check_flags(**flags: object) -> None:
    """Refuse anything but True and False.

    Raises:
        ChoiceError: with the name of the argument.
    """
    for name, flag in flags.items():
        as_flag(flag, name)


def check_rates(**rates: object) -> None:
    """Refuse anything but a number in [0, 1): rates of dropout, probabilities of an identity.

    Raises:
        ChoiceError: with the name of the rate.
    """
    for name, rate in rates.items():
        if not 0 <= as_number(rate, name) < 1:
            raise ChoiceError(f"{name}: expected a number in [0, 1), got {shown(rate)}")


def check_numbers(**numbers: object) -> None:
    """Refuse anything but a number where one is optional: the starting gain of LayerScale, the epsilon of a norm.

    Raises:
        ChoiceError: with the name of the argument.
    """
    for name, number in numbers.items():
        if number is not None and not abs(as_number(number, name)) < 1e30:
            raise ChoiceError(f"{name}: expected a number that float32 holds, got {shown(number)}")

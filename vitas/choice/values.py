"""The values of a choice and their probabilities, checked and put in order; which of them are left."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np

from vitas.checks import MOST_CHANNELS, MOST_VALUES, are_several, as_number, is_int, is_number
from vitas.errors import ChoiceError, shown

_MOST_INT = 2**31  # of a Choice: an empty tensor of that size has to exist


V = TypeVar("V", int, float)


def refuse_too_many(channels: float, what: str) -> None:
    """Refuse more channels than any network has.

    Raises:
        ChoiceError: more than 2**24.
    """
    if channels > MOST_CHANNELS:
        raise ChoiceError(f"{what}: expected at most {MOST_CHANNELS} channels, got {shown(channels)}")


def in_order(values: Iterable[V], p: Sequence[float] | None) -> tuple[Iterable[V], Sequence[float] | None]:
    """Return values in ascending order and their probabilities with them; values that are not numbers are refused later."""
    if p is None or not are_several(values) or not are_several(p):
        return values, p
    weights = list(islice(p, MOST_VALUES + 2))
    listed = [value.item() if isinstance(value, np.generic) else value for value in islice(values, MOST_VALUES + 1)]
    if not all(isinstance(value, (int, float)) for value in listed):
        return listed, weights
    order = sorted(range(len(listed)), key=lambda i: listed[i])
    return [listed[i] for i in order], [weights[i] for i in order] if len(weights) == len(listed) else weights


def checked_values(values: Iterable[V], what: str, least: float) -> tuple[V, ...]:
    """Return the values of a choice as ascending numbers, numpy's made Python's.

    Raises:
        ChoiceError: no values, repeated ones, values below `least`, or values that are not numbers.
    """
    if not are_several(values):
        raise ChoiceError(f"{what}: expected several values, got {shown(values)}")
    if isinstance(values, Mapping):
        raise ChoiceError(f"{what}: expected values, got a mapping; probabilities have an argument of their own, p=")
    numbers = [as_number(value, what) for value in islice(values, MOST_VALUES + 1)]
    if len(numbers) > MOST_VALUES:
        raise ChoiceError(f"{what}: expected at most {MOST_VALUES} values, got more")
    if not numbers:
        raise ChoiceError(f"{what}: expected at least one value, got none")
    if len(set(numbers)) < len(numbers):
        twice = Counter(numbers).most_common(1)[0][0]
        raise ChoiceError(f"{what}: {twice} is given twice in {shown(numbers)}")
    if any(isinstance(number, int) and number > _MOST_INT for number in numbers):
        raise ChoiceError(f"{what}: expected ints of at most {_MOST_INT}, got {shown(max(numbers))}")
    if min(numbers) < least:
        wanted = "positive values" if least else "values of at least 0"
        raise ChoiceError(f"{what}: expected {wanted}, got {min(numbers)}")
    if isinstance(values, tuple) and _is_low_high_step(numbers):
        low, high, step = numbers
        raise ChoiceError(f"{what}: lowest, highest and step are range({low}, {high + 1}, {step}), got {shown(numbers)}")
    return tuple(sorted(numbers))  # type: ignore[arg-type]


def _is_low_high_step(numbers: Sequence[int | float]) -> bool:
    """Say whether a tuple is what other libraries call a range; as values it would be sorted, and mean something else."""
    if len(numbers) != 3 or not all(isinstance(number, int) for number in numbers):
        return False
    low, high, step = numbers
    return 0 < step < low < high and (high - low) % step == 0


def fractions_of(largest: int, fractions: Iterable[float], what: str) -> list[int]:
    """Return round(largest * fraction) for each fraction.

    Raises:
        ChoiceError: `largest` is not a channel count; fractions outside (0, 1].
    """
    if not is_int(largest, 1):
        raise ChoiceError(f"{what}: expected a positive int, got {shown(largest)}")
    refuse_too_many(largest, what)
    if not are_several(fractions):
        raise ChoiceError(f"{what}: expected several fractions, got {shown(fractions)}")
    listed = [f.item() if isinstance(f, np.generic) else f for f in islice(fractions, MOST_VALUES + 1)]
    for fraction in listed:
        if not is_number(fraction) or not 0 < fraction <= 1:
            raise ChoiceError(f"{what}: fractions lie in (0, 1], got {shown(fraction)}")
    return [round(int(largest) * fraction) for fraction in listed]


def checked_p(p: Sequence[float] | None, n: int, what: str) -> tuple[float, ...]:
    """Return `n` probabilities that add up to 1; None: equal ones.

    Raises:
        ChoiceError: another number of them, negative ones, or all 0.
    """
    if p is None:
        return (1 / n,) * n
    if not are_several(p):
        raise ChoiceError(f"p of {what}: expected {n} probabilities, got {shown(p)}")
    weights = [float(as_number(weight, f"p of {what}")) for weight in islice(p, MOST_VALUES + 1)]
    if len(weights) != n:
        raise ChoiceError(f"p of {what}: expected {n} probabilities, one for each value, got {len(weights)}")
    if min(weights) < 0 or not 0 < (total := sum(weights)) < math.inf:
        raise ChoiceError(f"p of {what}: expected probabilities of at least 0 that are not all 0, got {shown(weights)}")
    return tuple(weight / total for weight in weights)


def conditioned(p: tuple[float, ...], left: Sequence[int]) -> tuple[float, ...]:
    """Return probabilities given that a value is among those numbered in `left`; equal ones where `p` gives them nothing."""
    if len(left) == len(p):
        return p
    weights = np.zeros(len(p))
    weights[list(left)] = np.array(p)[list(left)]
    if not weights.any():
        weights[list(left)] = 1.0
    return tuple((weights / weights.sum()).tolist())


def checked_new(values: Iterable[V], known: Sequence[V], what: str) -> list[V]:
    """Return those of some values that are not known yet, ascending.

    Raises:
        ChoiceError: a fraction where all are ints; more values than a choice may have.
    """
    new = sorted(set(values) - set(known))
    if all(isinstance(value, int) for value in known) and not all(isinstance(value, int) for value in new):
        raise ChoiceError(f"{what}: expected ints, as its values are, got {shown(new)}")
    if len(known) + len(new) > MOST_VALUES:
        raise ChoiceError(f"{what}: expected at most {MOST_VALUES} values, got more")
    return new


def joined_p(p: Sequence[float], known: Sequence[V], values: Sequence[V], what: str) -> tuple[float, ...]:
    """Return the probabilities of `values`: a new one is as likely as the known ones are on average."""
    if len(set(p)) == 1:
        return checked_p(None, len(values), what)
    before = dict(zip(known, p, strict=True))
    return checked_p([before.get(value, 1 / len(known)) for value in values], len(values), what)

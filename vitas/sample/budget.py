"""Budgets as people type them, made into windows of whole numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from vitas.checks import as_percentage, as_real
from vitas.errors import BudgetError, shown

_BEYOND_ALL_COSTS = 2**63 - 1


class Window(NamedTuple):
    """Costs from `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low:,} to {self.high:,}"


def window_of(budget: Any, what: str, largest: int) -> Window:
    """Return the window of a budget.

    Args:
        budget: A number, an upper bound; (low, high), either may be None; percentages of the largest cost are strings
            such as "60%".
        what: "flops" or "params", for errors.
        largest: Cost of the costliest subnet, to which percentages refer.

    Raises:
        BudgetError: NaN, negative, reversed or empty bounds, a fraction where a percentage was meant, other types.
    """
    if isinstance(budget, (tuple, list)):
        if len(budget) != 2:
            raise BudgetError(f"{what}: expected (low, high), got {shown(budget)}")
        low, high = (_bound(bound, what, largest) for bound in budget)
        if low is None and high is None:
            raise BudgetError(f"{what}: got {shown(budget)}, which bounds nothing; leave {what} out")
    else:
        low, high = None, _bound(budget, what, largest)
    least = math.ceil(low) if low is not None else 0
    window = Window(least, math.floor(high) if high is not None else max(least, largest))
    if low is not None and high is not None and low > high:
        raise BudgetError(f"{what}: the lower bound {low:,} is above the upper bound {high:,}; they read (low, high)")
    return window


def _bound(bound: Any, what: str, largest: int) -> float | None:
    if bound is None:
        return None
    if isinstance(bound, str):
        return _percentage(bound, what) * largest / 100
    number = as_real(bound, what, BudgetError, "a number, (low, high) or a percentage such as '60%'")
    if not number >= 0:  # NaN too
        raise BudgetError(f"{what}: expected a number of at least 0, got {shown(number)}")
    if isinstance(number, float) and 0 < number < 2:
        raise BudgetError(f"{what}: got {shown(number)}; {_meant(number)}")
    return None if number == math.inf else min(number, _BEYOND_ALL_COSTS)


def _meant(bound: float) -> str:
    """Guess what was meant by a float that is too small to be a count."""
    if bound <= 1:
        return f"a share of the costliest subnet is written as a string, '{100 * bound:g}%'"
    return f"counts are written out: {bound:g}e9 for {bound:g} billion"


def _percentage(text: str, what: str) -> float:
    share = as_percentage(text)
    if share is None:
        raise BudgetError(f"{what}: expected a number such as 1.3e9 or a percentage from '0%' to '100%', got {shown(text)}")
    return share

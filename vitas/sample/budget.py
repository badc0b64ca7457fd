"""Budgets as people type them, made into windows of whole numbers.

A budget is a Cost with a window. Multiply-adds and parameters are costs that a model states, nanoseconds one that a latency
table states.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from vitas.checks import as_real
from vitas.cost import Cost, learned_cost, stated_cost, stated_params
from vitas.errors import BudgetError, shown
from vitas.space import SearchSpace

_BEYOND_ALL_COSTS = 2**63 - 1


class Measure(NamedTuple):
    """What a budget bounds, and how its numbers are written."""

    units: Mapping[str, int]
    """What may follow a number that is typed -> how many it stands for."""
    unit: str = ""
    """What follows a number that is shown, and what a bare number means."""
    example: str = "1.3G"

    @property
    def is_count(self) -> bool:
        """Whether it counts things, of which there are no fractions."""
        return not self.unit

    def value(self, amount: int) -> int | float:
        """Return a cost in the unit in which it is typed."""
        return int(amount) if self.is_count else int(amount) / self.units[self.unit]

    def said(self, amount: int) -> str:
        """Return a cost as messages show it."""
        if self.is_count:
            return f"{amount:,}"
        return f"{Decimal(int(amount)) / self.units[self.unit]:,f} {self.unit}"

    def span(self, window: Window) -> str:
        """Return a window as messages show it."""
        return f"from {self.said(window.low)} to {self.said(window.high)}"


_COUNT = Measure({"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12})

MEASURES = {
    "flops": _COUNT,
    "params": _COUNT,
    "latency": Measure({"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9}, "ms", "8 ms"),
}
"""What can be bounded, by the names of the arguments."""


class Window(NamedTuple):
    """Costs from `low` to `high`, both included."""

    low: int
    high: int


@runtime_checkable
class Timing(Protocol):
    """What knows how long subnets take, such as a LatencyTable."""

    def nanoseconds(self, space: SearchSpace) -> Cost:
        """Return how long the subnets of a space take."""


class Budget(NamedTuple):
    """What was asked of one measure."""

    typed: Any
    """A bound, (low, high), percentages."""
    cost: Callable[[], Cost | None]
    """What subnets cost, as the model or the table says now; None: only running each of them can tell."""


def budgets_of(
    model: nn.Module,
    space: SearchSpace,
    *,
    flops: Any = None,
    params: Any = None,
    latency: Any = None,
    inputs: Any = None,
) -> dict[str, Budget]:
    """Return the budgets that were given, by measure.

    Args:
        model: The model, without wrappers.
        space: Its search space.
        flops: A budget; None: there is none.
        params: Likewise.
        latency: Likewise (table, budget).
        inputs: On which a model that states no cost is run to learn of its FLOPs; None: it states them.

    Raises:
        BudgetError: a latency that is not such a pair.
    """
    stated: dict[str, tuple[Any, Callable[[], Cost | None]]] = {
        "flops": (flops, partial(flops_of, model, inputs)),
        "params": (params, partial(stated_params, model)),
    }
    budgets = {name: Budget(typed, cost) for name, (typed, cost) in stated.items() if typed is not None}
    if latency is not None:
        if not isinstance(latency, (tuple, list)) or len(latency) != 2 or not isinstance(latency[0], Timing):
            raise BudgetError(
                f"latency: expected (table, budget) such as (latency_table(model, x), 8.0), got {shown(latency, 60)}"
            )
        table, typed = latency
        budgets["latency"] = Budget(typed, partial(table.nanoseconds, space.whole))
    return budgets


def flops_of(model: nn.Module, inputs: Any = None) -> Cost | None:
    """Return what a model states of its FLOPs; with `inputs`, what runs on them tell, None where they do not.

    Raises:
        VitasError: a model that states no cost, without `inputs`.
    """
    return stated_cost(model) if inputs is None else learned_cost(model, inputs)


def window_of(budget: Any, what: str, largest: int) -> Window:
    """Return the window of a budget.

    Args:
        budget: A number, an upper bound; (low, high), either may be None; percentages of the largest cost and numbers with
            a unit are strings such as "60%", "1.3G", "8 ms".
        what: "flops", "params" or "latency".
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
        first, second = (shown(bound) for bound in budget)
        raise BudgetError(f"{what}: the lower bound {first} is above the upper bound {second}; they read (low, high)")
    return window


def _bound(bound: Any, what: str, largest: int) -> float | Decimal | None:
    """Return a bound in whole numbers of the measure, or between them; None where there is none."""
    if bound is None:
        return None
    measure = MEASURES[what]
    if isinstance(bound, str):
        return _read(bound, what, largest)
    number = as_real(bound, what, BudgetError, f"a number, (low, high), or text such as '60%' or '{measure.example}'")
    if not number >= 0:  # NaN too
        raise BudgetError(f"{what}: expected a number of at least 0, got {shown(number)}")
    if measure.is_count and isinstance(number, float) and 0 < number < 2:
        raise BudgetError(f"{what}: got {shown(number)}; {_meant(number)}")
    if number == math.inf:
        return None
    return min(number if measure.is_count else _exactly(number) * measure.units[measure.unit], _BEYOND_ALL_COSTS)


def _exactly(number: float) -> Decimal:
    """Return the decimal that was typed, not the float next to it."""
    return Decimal(repr(number))


def _meant(bound: float) -> str:
    """Guess what was meant by a float that is too small to be a count."""
    if bound <= 1:
        return f"a share of the costliest subnet is written as a string, '{100 * bound:g}%'"
    return f"counts are written out: {bound:g}e9 or '{bound:g}G' for {bound:g} billion"


_NUMBER = r"(\d{1,30}(\.\d{0,30})?|\.\d{1,30})(e[+-]?\d{1,3})?"
_TEXT = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>[^\d\s]*)\s*", re.IGNORECASE)


def _read(text: str, what: str, largest: int) -> float | Decimal:
    measure, found = MEASURES[what], _TEXT.fullmatch(text)
    number, unit = (found["number"], found["unit"].lower()) if found else ("", "")
    if found and unit == "%" and float(number) <= 100:
        return float(number) * largest / 100
    times = measure.units.get(unit or measure.unit)
    if not found or times is None:
        raise BudgetError(f"{what}: expected a number, '{measure.example}' or a share such as '60%', got {shown(text, 40)}")
    if measure.is_count and unit == "" and float(number) <= 100:
        meant = _meant(float(number)) if float(number) <= 1 else f"a share of the costliest subnet is written '{number}%'"
        raise BudgetError(f"{what}: got {shown(text)}; {meant}")
    return min(Decimal(number) * times, Decimal(_BEYOND_ALL_COSTS))

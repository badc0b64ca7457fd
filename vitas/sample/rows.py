"""What the decisions made so far can cost: a row for each state of the chain, with the lattice of its costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitas.sample.budget import Window
from vitas.sample.chain import Chain, Floats, Ints

_FAR = np.iinfo(np.int64).max // 4


@dataclass
class Rows:
    """Where the costs so far of each row lie, and the bounds of their bins.

    Attributes:
        low, high: Least and greatest cost so far, (measures, rows); low > high where a row cannot be reached or is lost.
        gcd: Of the differences of the costs so far, (measures, rows); 0 for a single cost.
        width, bins: Width and number of bins, (measures, rows).
        flat, start: Bounds of all bins in one array, and where those of each row begin.
    """

    low: Ints
    high: Ints
    gcd: Ints
    width: Ints = field(init=False)
    bins: Ints = field(init=False)
    start: Ints = field(init=False)
    flat: Floats = field(init=False)

    def block(self, row: int) -> Floats:
        """Return the bounds of one row, one axis a measure."""
        return self.flat[self.start[row] : self.start[row + 1]].reshape(self.bins[:, row])


def reach(chain: Chain) -> list[Rows]:
    """Return where the costs so far of each row lie, before each step and at the end."""
    start = chain.start[:, None]
    rows = [Rows(start.copy(), start.copy(), np.zeros_like(start))]
    for step in chain.steps:
        before, shape = rows[-1], (len(start), step.rows)
        low, high, gcd = np.full(shape, _FAR), np.full(shape, -_FAR), np.zeros(shape, dtype=np.int64)
        row, value = np.nonzero((step.weight > 0) & np.all(before.low <= before.high, axis=0)[:, None])
        target, cost = step.target[row, value], step.cost[:, row, value]
        for measure in range(len(start)):
            least = before.low[measure, row] + cost[measure]
            np.minimum.at(low[measure], target, least)
            np.maximum.at(high[measure], target, before.high[measure, row] + cost[measure])
            np.gcd.at(gcd[measure], target, np.gcd(before.gcd[measure, row], least - low[measure, target]))
        rows.append(Rows(low, high, gcd))
    return rows


def extremes(chain: Chain) -> tuple[Ints, Ints]:
    """Return the least and the greatest cost of all subnets, (measures,) each."""
    last = reach(chain)[-1]
    return last.low[:, 0], last.high[:, 0]


def as_array(windows: Sequence[Window]) -> Ints:
    """Return the ends of windows, (2, windows): low ones, then high ones."""
    return np.array([list(window) for window in windows], dtype=np.int64).reshape(-1, 2).T


def narrowed(chain: Chain, windows: Sequence[Window]) -> list[Rows]:
    """Return where the costs so far lie from which the windows can be reached, before each step and at the end."""
    rows, window = reach(chain), as_array(windows)
    lows, highs = window[:, :, None]  # of what the cost so far may be, (measures, rows)
    for t in reversed(range(len(chain.steps) + 1)):
        here = rows[t]
        if t < len(chain.steps):
            step = chain.steps[t]
            lost = (step.weight <= 0) | np.any(rows[t + 1].low > rows[t + 1].high, axis=0)[step.target]
            lows = np.where(lost, _FAR, lows[:, step.target] - step.cost).min(axis=2)
            highs = np.where(lost, -_FAR, highs[:, step.target] - step.cost).max(axis=2)
        gcd = np.maximum(here.gcd, 1)
        reached = here.low <= here.high
        low = here.low + np.where(reached, -((np.minimum(here.low - lows, 0)) // gcd) * gcd, 0)
        high = np.minimum(here.high, highs)
        high = np.where(high >= low, low + (high - low) // gcd * gcd, low - 1)
        lost_rows = np.any(~reached | (low > high), axis=0)
        here.low, here.high = np.where(lost_rows, 0, low), np.where(lost_rows, -1, high)
    return rows


def points_of(rows: Rows) -> Any:
    """Return how many costs the lattice of each row has, (rows,); 0 for rows that are lost."""
    return np.where(rows.low[0] <= rows.high[0], (rows.high[0] - rows.low[0]) // np.maximum(rows.gcd[0], 1) + 1, 0)


def additions_in(chain: Chain, rows: Sequence[Rows]) -> float:
    """Return how many costs are met in all steps, for every value."""
    steps = zip(rows, chain.steps, strict=False)
    return sum(float((points_of(here) * (step.weight > 0).sum(axis=1)).sum()) for here, step in steps)

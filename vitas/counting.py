"""How many subnets lie inside windows of cost: exact where that can be had, else an estimate that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from vitas.budget import Window
from vitas.conditional import Conditional, Rows, narrowed
from vitas.elimination import Chain, Step, TooManyRows

_FEW = 10**6
"""So many subnets, or costs of subnets, may be remembered one by one."""


class SubnetCount(int):
    """A number of subnets, an int.

    Attributes:
        exact: Whether it is the number itself; else an estimate by sampling.
        standard_error: Of the estimate; 0.0 where exact.
    """

    exact: bool
    standard_error: float

    def __new__(cls, number: int, standard_error: float | None = None) -> SubnetCount:
        """Make a count; with a standard error it is an estimate."""
        count = super().__new__(cls, number)
        count.exact = standard_error is None
        count.standard_error = standard_error or 0.0
        return count

    def __getnewargs__(self) -> tuple[Any, ...]:
        return int(self), None if self.exact else self.standard_error

    def __repr__(self) -> str:
        if self.exact:
            return f"{int(self):,}"
        return f"about {Decimal(int(self)):.4e} (estimated, standard error {self.standard_error:.1e})"

    __str__ = __repr__


def count_inside(chain: Chain, windows: Sequence[Window], *, work: float = 4e10, seed: int = 0) -> SubnetCount:
    """Return the number of subnets inside all windows.

    Args:
        chain: The decisions of the space, made with counting=True.
        windows: One for each measure of the chain.
        work: Bytes that exact counting may touch before an estimate is made instead.
        seed: Of the estimate.
    """
    rows = narrowed(chain, windows)
    if chain.space.size <= _FEW:  # then going through them one by one may be quicker, and always ends
        work = min(work, 1e4 * chain.space.size)
    if len(windows) == 1 and _work(chain, rows) <= work:
        return SubnetCount(_dense(chain, rows, windows[0]) * chain.times)
    if (len(windows) != 1 or chain.space.size <= _FEW) and (found := _sparse(chain, rows)) is not None:
        return SubnetCount(found * chain.times)
    return _estimate(chain, windows, seed)


# -- exact, one measure: a row's counts are the digits of one long int -----------------------------------------------


def _points(rows: Rows) -> Any:
    """Return how many costs the lattice of each row has, (rows,); 0 for rows that are lost."""
    return np.where(rows.low[0] <= rows.high[0], (rows.high[0] - rows.low[0]) // np.maximum(rows.gcd[0], 1) + 1, 0)


def _digit_bytes(chain: Chain) -> int:
    return (chain.space.size.bit_length() + 8) // 8


def _work(chain: Chain, rows: Sequence[Rows]) -> float:
    """Return the bytes that `_dense` goes through."""
    return _additions(chain, rows) * _digit_bytes(chain)


def _additions(chain: Chain, rows: Sequence[Rows]) -> float:
    """Return how many costs are met in all steps, for every value."""
    steps = zip(rows, chain.steps, strict=False)
    return sum(float((_points(here) * (step.weight > 0).sum(axis=1)).sum()) for here, step in steps)


def _dense(chain: Chain, rows: Sequence[Rows], window: Window) -> int:
    """Count backwards: for each row and each cost so far, in how many ways the rest ends inside the window.

    The counts of a row, one digit for each cost of its lattice, make one Python int, so that adding the counts of the
    next row a cost further is one shift and one addition.
    """
    size = _digit_bytes(chain)
    counts: list[int] = []
    for t in reversed(range(len(chain.steps))):
        here, step = rows[t], chain.steps[t]
        if t + 1 == len(chain.steps):
            counts = [_inside(here, step, row, window, size) for row in range(len(step.weight))]
        else:
            counts = [_ahead(here, step, row, rows[t + 1], counts, size) for row in range(len(step.weight))]
    return counts[0] if chain.steps else int(window.low <= chain.start[0] <= window.high)


def _inside(here: Rows, step: Step, row: int, window: Window, size: int) -> int:
    """Return the counts of a row before the last step."""
    n = int(_points(here)[row])
    costs = here.low[0, row] + np.arange(n) * here.gcd[0, row]
    ways = np.zeros(n, dtype=np.int64)
    for weight, cost in zip(step.weight[row], step.cost[0, row], strict=True):
        ways += int(weight) * ((costs + cost >= window.low) & (costs + cost <= window.high))
    digits = np.zeros((n, max(size, 8)), dtype=np.uint8)
    digits[:, :8] = ways.astype("<i8").view(np.uint8).reshape(n, 8)
    return int.from_bytes(digits[:, :size].tobytes(), "little")


def _ahead(here: Rows, step: Step, row: int, after: Rows, counts: Sequence[int], size: int) -> int:
    """Return the counts of a row from those of the next ones."""
    n, total = int(_points(here)[row]), 0
    if not n:
        return 0
    for value in np.flatnonzero(step.weight[row]):
        target = int(step.target[row, value])
        if not counts[target]:
            continue
        unit = int(max(after.gcd[0, target], 1))
        first = int(here.low[0, row] + step.cost[0, row, value] - after.low[0, target]) // unit
        stride = int(here.gcd[0, row]) // unit
        ahead = counts[target] >> (8 * size * first) if first >= 0 else counts[target] << (8 * size * -first)
        if n > 1 and stride > 1:
            length = max((ahead.bit_length() + 7) // 8, 1)
            digits = -(-length // size)
            strided = np.frombuffer(ahead.to_bytes(digits * size, "little"), np.uint8).reshape(digits, size)[::stride]
            ahead = int.from_bytes(strided.tobytes(), "little")
        total += int(step.weight[row, value]) * ahead
    return total & ((1 << (8 * size * n)) - 1)


# -- exact, one measure: which costs there are; a row's costs so far are the bits of one long int --------------------------


def outermost(chain: Chain, window: Window, side: int, *, work: float = 2e8) -> int | None:
    """Return the least (side 1) or the greatest (side -1) cost inside a window; None where there is none.

    Args:
        chain: The decisions of the space, with one measure.
        window: Least and greatest cost.
        side: Which end of the window the cost is to be near: 1 the low one, -1 the high one.
        work: Bytes that may be touched.

    Raises:
        TooManyRows: more than that would be.
    """
    rows = narrowed(chain, [window])
    if _additions(chain, rows) > 8 * work:
        raise TooManyRows("too many costs to go through")
    reached = [int(_points(rows[0])[0] > 0)]
    ends = [int(chain.start[0])] if reached[0] and not chain.steps else []
    for t, step in enumerate(chain.steps):
        here, after = rows[t], rows[t + 1]
        further = [0] * step.rows
        for row, value in zip(*np.nonzero(step.weight), strict=True):
            if not reached[row]:
                continue
            first, unit = int(here.low[0, row] + step.cost[0, row, value]), int(max(here.gcd[0, row], 1))
            if t + 1 == len(chain.steps):
                ends += _outermost_bit(reached[row], first, unit, window, side)
                continue
            target = int(step.target[row, value])
            finer = int(max(after.gcd[0, target], 1))
            place = (first - int(after.low[0, target])) // finer
            bits = _spread(reached[row], unit // finer)
            further[target] |= bits << place if place >= 0 else bits >> -place
        points = _points(after).tolist()
        reached = [bits & ((1 << n) - 1) for bits, n in zip(further, points, strict=True)]
    return (min(ends) if side > 0 else max(ends)) if ends else None


def _spread(bits: int, stride: int) -> int:
    """Return bits with `stride - 1` zeros after each."""
    if stride <= 1 or bits <= 1:
        return bits
    n = (bits.bit_length() + 7) // 8
    single = np.unpackbits(np.frombuffer(bits.to_bytes(n, "little"), np.uint8), bitorder="little")
    apart = np.zeros(len(single) * stride, dtype=np.uint8)
    apart[::stride] = single
    return int.from_bytes(np.packbits(apart, bitorder="little").tobytes(), "little")


def _outermost_bit(bits: int, first: int, unit: int, window: Window, side: int) -> list[int]:
    """Return the cost inside the window, if any, of the outermost of bits that stand for first, first + unit, ..."""
    begin = max(0, -((first - window.low) // unit))
    bits = bits >> begin << begin
    bits &= (1 << max(0, (window.high - first) // unit + 1)) - 1
    if not bits:
        return []
    place = (bits & -bits).bit_length() - 1 if side > 0 else bits.bit_length() - 1
    return [first + unit * place]


# -- exact, several measures, small spaces ---------------------------------------------------------------------------


def _sparse(chain: Chain, rows: Sequence[Rows], most: int = _FEW) -> int | None:
    """Count forwards: for each row how many subnets cost how much so far; None where that is too much to remember."""
    counts: list[dict[tuple[int, ...], int]] = [{tuple(chain.start.tolist()): 1}]
    for step, after in zip(chain.steps, rows[1:], strict=True):
        further: list[dict[tuple[int, ...], int]] = [{} for _ in range(step.rows)]
        least, greatest = after.low.T.tolist(), after.high.T.tolist()
        for row, value in zip(*np.nonzero(step.weight), strict=True):
            times, target, cost = (
                int(step.weight[row, value]),
                int(step.target[row, value]),
                step.cost[:, row, value].tolist(),
            )
            there = further[target]
            for so_far, ways in counts[row].items():
                ends = tuple(a + b for a, b in zip(so_far, cost, strict=True))
                if all(a <= c <= b for a, c, b in zip(least[target], ends, greatest[target], strict=True)):
                    there[ends] = there.get(ends, 0) + ways * times
        counts = further
        if sum(map(len, counts)) > most:
            return None
    return sum(counts[0].values())


# -- an estimate -----------------------------------------------------------------------------------------------------


def _estimate(chain: Chain, windows: Sequence[Window], seed: int, enough: int = 4000, most: int = 400_000) -> SubnetCount:
    """Return the bound on the number of subnets times the share of proposals that arrive."""
    conditional = Conditional(chain, windows)
    if not conditional.bound:
        return SubnetCount(0)
    rng = np.random.default_rng(seed)
    arrived = proposals = 0
    while proposals < most and arrived < enough:
        arrived += len(conditional.propose(4000, rng)[0])
        proposals += 4000
    share = arrived / proposals
    bound = Decimal(conditional.log_bound).exp() * chain.times
    error = math.sqrt(max(share * (1 - share), 1 / proposals) / proposals)
    return SubnetCount(int(bound * Decimal(share)), float(bound * Decimal(error)))

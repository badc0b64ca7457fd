"""How many subnets lie inside windows of cost: exact where that can be had, else an estimate that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from vitas.sample.budget import Window
from vitas.sample.chain import Chain, Step
from vitas.sample.conditional import Conditional
from vitas.sample.lattice import Lattice, additions_in, narrowed

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
    lattices = narrowed(chain, windows)
    if chain.space.size <= _FEW:  # then going through them one by one may be quicker, and always ends
        work = min(work, 1e4 * chain.space.size)
    if len(windows) == 1 and additions_in(chain, lattices) * _digit_bytes(chain) <= work:
        return SubnetCount(_dense(chain, lattices, windows[0]) * chain.times)
    if (len(windows) != 1 or chain.space.size <= _FEW) and (found := _sparse(chain, lattices)) is not None:
        return SubnetCount(found * chain.times)
    return _estimate(chain, windows, seed)


def _digit_bytes(chain: Chain) -> int:
    return (chain.space.size.bit_length() + 8) // 8


def _dense(chain: Chain, lattices: Sequence[Lattice], window: Window) -> int:
    """Count backwards: for each node and each cost so far, in how many ways the rest ends inside the window.

    The counts of a node, one digit for each cost of its lattice, make one Python int, so that adding the counts of the
    next node a cost further is one shift and one addition.
    """
    size = _digit_bytes(chain)
    counts: list[int] = []  # of each node, before the step that was looked at last
    for t in reversed(range(len(chain.steps))):
        here, step = lattices[t], chain.steps[t]
        nodes = range(len(step.weight))
        if t + 1 == len(chain.steps):
            counts = [_inside(here, step, node, window, size) for node in nodes]
        else:
            counts = [_ahead(here, step, node, lattices[t + 1], counts, size) for node in nodes]
    return counts[0] if chain.steps else int(window.low <= chain.start[0] <= window.high)


def _inside(here: Lattice, step: Step, node: int, window: Window, size: int) -> int:
    """Return the counts of a node before the last step."""
    n = int(here.points()[node])
    costs = here.low[0, node] + np.arange(n) * here.gcd[0, node]  # (n,)
    order = np.argsort(step.cost[0, node])
    cost = step.cost[0, node, order]  # (V,)
    up_to = np.concatenate([[0], np.cumsum(step.weight[node, order].astype(np.int64))])  # (V + 1,)
    high = min(window.high, int(here.high[0, node] + cost[-1]))
    ends, begins = np.searchsorted(cost, high - costs, "right"), np.searchsorted(cost, window.low - costs, "left")  # (n,)
    ways = up_to[ends] - up_to[begins]
    digits = np.zeros((n, max(size, 8)), dtype=np.uint8)  # of 8 bits, `size` to a count, the least first
    digits[:, :8] = ways.astype("<i8").view(np.uint8).reshape(n, 8)
    return int.from_bytes(digits[:, :size].tobytes(), "little")


def _ahead(here: Lattice, step: Step, node: int, after: Lattice, counts: Sequence[int], size: int) -> int:
    """Return the counts of a node from those of the next ones."""
    n, total = int(here.points()[node]), 0
    if not n:
        return 0
    for value in np.flatnonzero(step.weight[node]):
        target = int(step.target[node, value])
        if not counts[target]:
            continue
        unit = int(max(after.gcd[0, target], 1))
        first = int(here.low[0, node] + step.cost[0, node, value] - after.low[0, target]) // unit
        stride = int(here.gcd[0, node]) // unit
        ahead = counts[target] >> (8 * size * first) if first >= 0 else counts[target] << (8 * size * -first)
        if n > 1 and stride > 1:
            ahead = _strided(ahead, stride, size)
        total += int(step.weight[node, value]) * ahead
    return total & ((1 << (8 * size * n)) - 1)


def _strided(counts: int, stride: int, size: int) -> int:
    """Return every `stride`-th of counts of `size` bytes each."""
    length = max((counts.bit_length() + 7) // 8, 1)
    n = -(-length // size)
    digits = np.frombuffer(counts.to_bytes(n * size, "little"), np.uint8).reshape(n, size)[::stride]
    return int.from_bytes(digits.tobytes(), "little")


def _sparse(chain: Chain, lattices: Sequence[Lattice], most: int = _FEW) -> int | None:
    """Count forwards: for each node how many subnets cost how much so far; None where that is too much to remember."""
    counts: list[dict[tuple[int, ...], int]] = [{tuple(chain.start.tolist()): 1}]  # of each node: costs (M,) -> ways
    for step, after in zip(chain.steps, lattices[1:], strict=True):
        further: list[dict[tuple[int, ...], int]] = [{} for _ in range(step.nodes_after)]
        least, greatest = after.low.T.tolist(), after.high.T.tolist()
        for node, value in zip(*np.nonzero(step.weight), strict=True):
            times, target = int(step.weight[node, value]), int(step.target[node, value])
            cost, there = step.cost[:, node, value].tolist(), further[target]
            for so_far, ways in counts[node].items():
                ends = tuple(a + b for a, b in zip(so_far, cost, strict=True))
                if all(a <= c <= b for a, c, b in zip(least[target], ends, greatest[target], strict=True)):
                    there[ends] = there.get(ends, 0) + ways * times
        counts = further
        if sum(map(len, counts)) > most:
            return None
    return sum(counts[0].values())


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

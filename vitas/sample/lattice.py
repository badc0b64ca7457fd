"""What the decisions made so far can cost: for each node of a chain the lattice low, low + gcd, ... high of its costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitas.sample.budget import Window
from vitas.sample.chain import Chain
from vitas.sample.decisions import Ints

_FAR = np.iinfo(np.int64).max // 4


class Lattice(NamedTuple):
    """Where the costs so far of each node lie, before one step; a cost of the lattice need not occur.

    Attributes:
        low, high: Least and greatest cost so far, (M, N); low > high where a node cannot be reached or is lost.
        gcd: Greatest common divisor of the differences of the costs so far, (M, N); 0 for a single cost.
    """

    low: Ints
    high: Ints
    gcd: Ints

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Which nodes can be reached and are not lost, (N,)."""
        return np.all(self.low <= self.high, axis=0)  # type: ignore[no-any-return]

    def points(self) -> Ints:
        """Return how many costs of the first measure the lattice of each node has, (N,); 0 for nodes that are lost."""
        steps = (self.high[0] - self.low[0]) // np.maximum(self.gcd[0], 1)
        return np.where(self.low[0] <= self.high[0], steps + 1, 0)


def reach(chain: Chain) -> list[Lattice]:
    """Return where the costs so far of each node lie, before each step and at the end."""
    start = chain.start[:, None]  # (M, 1)
    lattices = [Lattice(start, start, np.zeros_like(start))]
    for step in chain.steps:
        before, shape = lattices[-1], (len(start), step.nodes_after)
        low, high, gcd = np.full(shape, _FAR), np.full(shape, -_FAR), np.zeros(shape, dtype=np.int64)
        node, value = np.nonzero((step.weight > 0) & before.alive[:, None])  # (K,) each: the values that can be taken
        target, cost = step.target[node, value], step.cost[:, node, value]  # (K,), (M, K)
        for m in range(len(start)):
            least = before.low[m, node] + cost[m]  # (K,)
            np.minimum.at(low[m], target, least)
            np.maximum.at(high[m], target, before.high[m, node] + cost[m])
            np.gcd.at(gcd[m], target, np.gcd(before.gcd[m, node], least - low[m, target]))
        lattices.append(Lattice(low, high, gcd))
    return lattices


def extremes(chain: Chain) -> tuple[Ints, Ints]:
    """Return the least and the greatest cost of all subnets, (M,) each."""
    end = reach(chain)[-1]
    return end.low[:, 0], end.high[:, 0]


def ends_of(windows: Sequence[Window]) -> Ints:
    """Return the ends of windows, (2, M): low ones, then high ones."""
    return np.array([list(window) for window in windows], dtype=np.int64).reshape(-1, 2).T


def narrowed(chain: Chain, windows: Sequence[Window]) -> list[Lattice]:
    """Return where the costs so far lie from which the windows can be reached, before each step and at the end."""
    lattices, ends = reach(chain), ends_of(windows)
    least, most = ends[:, :, None]  # what the cost so far may be, (M, N); N = 1 at the end
    lattices[-1] = _cut(lattices[-1], least, most)
    for t in reversed(range(len(chain.steps))):
        step, after = chain.steps[t], lattices[t + 1]
        lost = (step.weight <= 0) | ~after.alive[step.target]  # (N, V)
        least = np.where(lost, _FAR, least[:, step.target] - step.cost).min(axis=2)
        most = np.where(lost, -_FAR, most[:, step.target] - step.cost).max(axis=2)
        lattices[t] = _cut(lattices[t], least, most)
    return lattices


def _cut(lattice: Lattice, least: Ints, most: Ints) -> Lattice:
    """Return the part of a lattice from `least` to `most`, (M, N) each; nodes of which nothing is left are lost."""
    gcd, reached = np.maximum(lattice.gcd, 1), lattice.low <= lattice.high
    low = lattice.low + np.where(reached, -(np.minimum(lattice.low - least, 0) // gcd) * gcd, 0)
    high = np.minimum(lattice.high, most)
    high = np.where(high >= low, low + (high - low) // gcd * gcd, low - 1)
    lost = np.any(~reached | (low > high), axis=0)  # (N,)
    return Lattice(np.where(lost, 0, low), np.where(lost, -1, high), lattice.gcd)


def additions_in(chain: Chain, lattices: Sequence[Lattice]) -> float:
    """Return how many costs are met in all steps, for every value."""
    steps = zip(lattices, chain.steps, strict=False)
    return sum(float((lattice.points() * (step.weight > 0).sum(axis=1)).sum()) for lattice, step in steps)

"""The prior of a search space conditioned on windows of cost: exact draws without waiting for lucky ones.

Going back over the steps of a Chain, every node keeps, for bins of the cost so far, an upper bound on the probability of
ending inside the windows (bins.py). Going forward with exact costs, each value is taken in proportion to its prior times the
bound that follows; what is missing to the bound that was promised rejects the draw. So the draws that arrive follow the
conditioned prior exactly, however coarse the bins; the bins only decide how many arrive. A bound of 0 at the start proves
that the windows are empty. A worked example stands in chain.py.

Source: ours; rejection against a dynamic-programming bound, as in perfect sampling from graphical models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vitas.sample.bins import Bins, add_bounds, add_inside, widths
from vitas.sample.budget import Window
from vitas.sample.chain import Chain
from vitas.sample.decisions import Ints
from vitas.sample.lattice import ends_of, narrowed

BINS = {1: 4096, 2: 96, 3: 24}
"""How many bins a node has along each measure, by the number of measures."""


class Conditional:
    """The prior of the subnets inside all windows at once.

    Args:
        chain: The decisions and their costs.
        windows: One for each measure of the chain.
        bins: How many bins a node may have along each measure; None: as many as BINS says.
        memory: How many bounds may be kept in all.

    Attributes:
        bins: The bins before each step; their bounds are scaled so that the greatest before a step is 1.
        scales: What the bounds before each step were divided by.
        bound: Upper bound on the share of the prior that lies inside the windows; 0 proves them empty.
        log_bound: Its logarithm, which does not underflow.
    """

    def __init__(
        self, chain: Chain, windows: Sequence[Window], *, bins: int | None = None, memory: int = 25_000_000
    ) -> None:
        self.chain = chain
        self._ends = ends_of(windows)
        lattices = narrowed(chain, windows)
        measures = max(1, len(windows))
        affordable = memory / sum(lattice.low.shape[1] for lattice in lattices)
        most = max(8, int(min(bins or BINS[measures], affordable ** (1 / measures))))
        self.bins: list[Bins] = []
        self.scales: list[float] = []
        after: Bins | None = None
        for lattice, step in zip(reversed(lattices[:-1]), reversed(chain.steps), strict=True):
            here = Bins.empty(lattice, widths(lattice, step, after, most))
            if after is None:
                add_inside(here, step, self._ends)
            else:
                add_bounds(here, step, after)
            self.scales.append(here.bound.max(initial=0.0) or 1.0)
            here.bound[...] /= self.scales[-1]
            self.bins.append(here)
            after = here
        self.bins.reverse()
        self.scales.reverse()
        if chain.steps:
            self._promised = float(self.bins[0].bound[0]) if self.bins[0].bound.size else 0.0
        else:
            self._promised = float(lattices[0].alive.all())
        self.log_bound = math.log(self._promised) + sum(map(math.log, self.scales)) if self._promised else -math.inf
        self.bound = math.exp(min(self.log_bound, 0.0))

    def propose(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Make `n` proposals and return those that arrive.

        Returns:
            Numbers of the values of all choices that the chain decides, (arrived, choices), and costs, (arrived, M).
        """
        chain = self.chain
        codes = np.zeros((n, len(chain.space)), dtype=np.int64)
        costs = np.repeat(chain.start[:, None], n, axis=1)  # so far, (M, n)
        node = np.zeros(n, dtype=np.int64)
        if not self._promised:
            return codes[:0], costs.T[:0]
        promised = np.full(n, self._promised)
        for t, step in enumerate(chain.steps):
            target = step.target[node]  # (n, V)
            ahead = costs[:, :, None] + step.cost[:, node]  # (M, n, V)
            if t + 1 < len(chain.steps):
                bound = self.bins[t + 1].at(target, ahead)  # (n, V)
            else:
                low, high = self._ends[:, :, None, None]
                bound = ((ahead >= low) & (ahead <= high)).all(axis=0).astype(float)
            mass = np.cumsum(step.weight[node] * bound, axis=1)  # (n, V)
            uniform = rng.random(n) * promised * self.scales[t]
            value = (mass <= uniform[:, None]).sum(axis=1)  # (n,); V: rejected
            kept = np.flatnonzero(value < mass.shape[1])
            value = value[kept]
            n = len(kept)
            codes, node = codes[kept], target[kept, value]
            costs, promised = ahead[:, kept, value], bound[kept, value]
            if step.adds:
                codes[:, step.entry] += value
            else:
                codes[:, step.entry] = value
        return codes, costs.T

"""The prior of a search space conditioned on windows of cost: exact draws without waiting for lucky ones.

Going back over the steps of a Chain, every row keeps, for bins of the cost so far, an upper bound on the probability of
ending inside the windows. Going forward with exact costs, each value is taken in proportion to its prior times the bound
that follows; what is missing to the bound that was promised rejects the draw. So the draws that arrive follow the
conditioned prior exactly, however coarse the bins; the bins only decide how many arrive. A bound of 0 at the start proves
that the windows are empty. Where the costs of a row form a lattice that is small enough, a bin is a point of it.

Source: ours; rejection against a dynamic-programming bound, as in perfect sampling from graphical models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitas.sample.budget import Window
from vitas.sample.chain import Chain, Floats, Ints, Step
from vitas.sample.rows import Rows, as_array, narrowed

BINS = {1: 4096, 2: 96}
"""How many bins a row has along each measure, by the number of measures."""


class Conditional:
    """The prior of the subnets inside all windows at once.

    Args:
        chain: The decisions and their costs.
        windows: One for each measure of the chain.
        bins: How many bins a row may have along each measure; None: 4,096 for one measure, 96 for two.
        memory: How many bounds may be kept in all.

    Attributes:
        bound: Upper bound on the share of the prior that lies inside the windows; 0 proves them empty.
        log_bound: Its logarithm, which does not underflow.
    """

    def __init__(
        self, chain: Chain, windows: Sequence[Window], *, bins: int | None = None, memory: int = 25_000_000
    ) -> None:
        self.chain = chain
        self._window = as_array(windows)
        self._rows = narrowed(chain, windows)
        measures = max(1, len(windows))
        affordable = memory / sum(rows.low.shape[1] for rows in self._rows)
        most = max(8, int(min(bins or BINS[measures], affordable ** (1 / measures))))
        self._scales: list[float] = []
        for t in reversed(range(len(chain.steps))):
            self._set_bounds(t, most)
        self._scales.reverse()
        first = self._rows[0]
        self._promised = float(first.flat[0]) if chain.steps and first.flat.size else 0.0
        if not chain.steps:
            self._promised = float((first.low <= first.high).all())
        self.log_bound = math.log(self._promised) + sum(map(math.log, self._scales)) if self._promised else -math.inf
        self.bound = math.exp(min(self.log_bound, 0.0))

    # -- backward: bounds --------------------------------------------------------------------------------------------

    def _set_bounds(self, t: int, most: int) -> None:
        step, rows, after = self.chain.steps[t], self._rows[t], self._rows[t + 1]
        final = t + 1 == len(self.chain.steps)
        alive = np.all(rows.low <= rows.high, axis=0)
        rows.width = _widths(rows, alive, None if final else after, step, most)
        rows.bins = np.where(alive, (rows.high - rows.low) // rows.width + 1, 0)
        sizes = rows.bins.prod(axis=0)
        rows.start = np.concatenate([[0], np.cumsum(sizes)])
        rows.flat = np.zeros(int(rows.start[-1]))
        slack = np.where(rows.bins == 1, rows.high - rows.low, rows.width - np.gcd(rows.gcd, rows.width))
        if final:
            self._add_window(step, rows, slack)
        else:
            _add_shifted(step, rows, slack, after)
        scale = rows.flat.max(initial=0.0)
        self._scales.append(scale or 1.0)
        if scale:
            rows.flat /= scale

    def _add_window(self, step: Step, rows: Rows, slack: Ints) -> None:
        """Add the weight of each value to the bins whose costs may end inside the windows."""
        for row, value in zip(*np.nonzero(step.weight > 0), strict=True):
            block = rows.block(row)
            inside: NDArray[np.bool_] = np.array(True)
            for measure, (low, high) in enumerate(self._window.T):
                first = rows.low[measure, row] + step.cost[measure, row, value]
                lowest = first + rows.width[measure, row] * np.arange(block.shape[measure])
                inside = inside[..., None] & (lowest <= high) & (lowest + slack[measure, row] >= low)
            block += step.weight[row, value] * inside

    # -- forward: draws ----------------------------------------------------------------------------------------------

    def propose(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Make `n` proposals and return those that arrive.

        Returns:
            Numbers of the values of all entries that the chain decides, (arrived, entries), and costs, (arrived, measures).
        """
        chain = self.chain
        codes = np.zeros((n, len(chain.space)), dtype=np.int64)
        costs = np.repeat(chain.start[:, None], n, axis=1)
        row = np.zeros(n, dtype=np.int64)
        if not self._promised:
            return codes[:0], costs.T[:0]
        promised = np.full(n, self._promised)
        for t, step in enumerate(chain.steps):
            after = self._rows[t + 1]
            target = step.target[row]
            ahead = costs[:, :, None] + step.cost[:, row]
            if t + 1 < len(chain.steps):
                bins = after.bins[:, target]
                place = (ahead - after.low[:, target]) // after.width[:, target]
                inside = ((place >= 0) & (place < bins)).all(axis=0)
                index = np.zeros_like(target)
                for measure in range(len(place)):
                    index = index * bins[measure] + place[measure]
                bound = np.where(inside, after.flat[np.where(inside, after.start[target] + index, 0)], 0.0)
            else:
                low, high = self._window[:, :, None, None]
                bound = ((ahead >= low) & (ahead <= high)).all(axis=0).astype(float)
            mass = np.cumsum(step.weight[row] * bound, axis=1)
            uniform = rng.random(n) * promised * self._scales[t]
            value = (mass <= uniform[:, None]).sum(axis=1)
            kept = np.flatnonzero(value < mass.shape[1])
            value = value[kept]
            n = len(kept)
            codes, row = codes[kept], target[kept, value]
            costs, promised = ahead[:, kept, value], bound[kept, value]
            if step.added:
                codes[:, step.entry] += value
            else:
                codes[:, step.entry] = value
        return codes, costs.T


def _widths(rows: Rows, alive: NDArray[np.bool_], after: Rows | None, step: Step, most: int) -> Ints:
    """Return the width of each row's bins: of the rows that follow, doubled until the bins are few enough."""
    width = np.maximum(rows.gcd, 1)
    if after is not None:
        there = np.where((step.weight > 0) & (after.bins.prod(axis=0) > 0)[step.target], after.width[:, step.target], 0)
        widest = there.max(axis=2)
        width = np.where((widest > 0) & (width % np.maximum(widest, 1) != 0), widest, width)
    bins = (rows.high - rows.low) // width + 1
    doublings = np.ceil(np.log2(np.maximum(bins / most, 1.0))).astype(np.int64)
    return np.where(alive, width << doublings, 1)


def _add_shifted(step: Step, rows: Rows, slack: Ints, after: Rows) -> None:
    """Add to each bin the weight of each value times the greatest bound of the bins where its costs go."""
    target = step.target
    n, bins = rows.bins[:, :, None], after.bins[:, target]
    width, wide = rows.width[:, :, None], after.width[:, target]
    offset = rows.low[:, :, None] + step.cost - after.low[:, target]
    begin, rest = np.divmod(offset, wide)
    regular = (n == 1) | (width % wide == 0)  # the bins of the next row are hit at equal distances
    stride = np.maximum(width // wide, 1)
    span = np.where(regular, rest + slack[:, :, None], slack[:, :, None] + wide - 1) // wide + 1
    lead = span - 1  # bins before the first that still reach into it
    low = np.maximum(-((begin + lead) // stride), 0)
    high = np.minimum((bins - 1 - begin) // stride + 1, n)
    useful = (step.weight > 0) & (n > 0).all(axis=0) & (bins > 0).all(axis=0)
    useful &= ((low < high) | ~regular).all(axis=0)
    maxima: dict[tuple[int, tuple[int, ...]], Floats] = {}
    for row, value in zip(*np.nonzero(useful), strict=True):
        key = (int(target[row, value]), tuple(span[:, row, value].tolist()))
        if key not in maxima:
            maxima[key] = _sliding_maxima(after.block(key[0]), key[1])
        source: tuple[slice, ...] = ()
        table = maxima[key]
        for measure in range(len(n)):
            at = (measure, row, value)
            if regular[at]:
                here = slice(low[at], high[at])
                first = begin[at] + low[at] * stride[at] + lead[at]
                there = slice(first, first + (high[at] - low[at] - 1) * stride[at] + 1, stride[at])
            else:
                index = (offset[at] + width[measure, row, 0] * np.arange(n[measure, row, 0])) // wide[at]
                here = slice(*np.searchsorted(index, [-lead[at], bins[at]]))
                there = index[here] + lead[at]
            source += (here,)
            table = table[(slice(None),) * measure + (there,)]
        rows.block(row)[source] += step.weight[row, value] * table


def _sliding_maxima(table: Floats, spans: Sequence[int]) -> Floats:
    """Return the greatest of each `span` bounds in a row along each axis, beginning `span - 1` before the first."""
    for axis, span in enumerate(spans):
        if span > 1:
            padded = np.pad(table, [(span - 1, span - 1) if other == axis else (0, 0) for other in range(table.ndim)])
            n = table.shape[axis] + span - 1
            window = [slice(None)] * table.ndim
            table = padded[(*window[:axis], slice(0, n))]
            for shift in range(1, span):
                table = np.maximum(table, padded[(*window[:axis], slice(shift, shift + n))])
    return table

"""Upper bounds on the probability of ending inside windows, for bins of the cost so far.

A bin of a node stands for the costs low + i * width, ... of its lattice. Its bound is the sum, over the values that come
next, of the value's weight times the greatest bound among the bins of the next step that it can lead into. Where the lattice
has few points a bin is one point and the bound is the probability itself. Widths double going back, so that the bins of
neighbouring steps meet at equal distances and the sums run over plain slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitas.sample.chain import Step
from vitas.sample.decisions import Floats, Ints
from vitas.sample.lattice import Lattice


@dataclass(frozen=True)
class Bins:
    """The bins of every node before one step.

    Attributes:
        low: Where the first bin begins, (M, N).
        width, number: Of the bins, (M, N); number 0 for nodes that are lost.
        slack: How far above the begin of its bin a cost can lie, (M, N).
        start: Where the bounds of each node begin, (N + 1,).
        bound: Bounds of all bins of all nodes, one after another, (start[N],).
    """

    low: Ints
    width: Ints
    number: Ints
    slack: Ints
    start: Ints
    bound: Floats

    @classmethod
    def empty(cls, lattice: Lattice, width: Ints) -> Bins:
        """Return bins of these widths, (M, N), over a lattice; every bound is 0."""
        number = np.where(lattice.alive, (lattice.high - lattice.low) // width + 1, 0)
        slack = np.where(number == 1, lattice.high - lattice.low, width - np.gcd(lattice.gcd, width))
        start = np.concatenate([[0], np.cumsum(number.prod(axis=0))])
        return cls(lattice.low, width, number, slack, start, np.zeros(int(start[-1])))

    def block(self, node: int) -> Floats:
        """Return the bounds of one node, an axis a measure."""
        return self.bound[self.start[node] : self.start[node + 1]].reshape(self.number[:, node])

    def at(self, node: Ints, cost: Ints) -> Floats:
        """Return the bounds at nodes, (n, V), for costs so far, (M, n, V) -> (n, V); 0 outside of all bins."""
        number = self.number[:, node]
        position = (cost - self.low[:, node]) // self.width[:, node]
        inside = ((position >= 0) & (position < number)).all(axis=0)
        index = np.zeros_like(node)
        for m in range(len(position)):
            index = index * number[m] + position[m]
        return np.where(inside, self.bound[np.where(inside, self.start[node] + index, 0)], 0.0)


def widths(lattice: Lattice, step: Step, after: Bins | None, most: int) -> Ints:
    """Return the width of each node's bins, (M, N): of those that follow, doubled until there are at most about `most`."""
    width = np.maximum(lattice.gcd, 1)
    if after is not None:
        leads_on = (step.weight > 0) & (after.number.prod(axis=0) > 0)[step.target]  # (N, V)
        widest = np.where(leads_on, after.width[:, step.target], 0).max(axis=2)  # (M, N)
        width = np.where((widest > 0) & (width % np.maximum(widest, 1) != 0), widest, width)
    number = (lattice.high - lattice.low) // width + 1
    doublings = np.ceil(np.log2(np.maximum(number / most, 1.0))).astype(np.int64)
    return np.where(lattice.alive, width << doublings, 1)


def add_inside(bins: Bins, step: Step, ends: Ints) -> None:
    """Before the last step: add the weight of each value to the bins whose costs may end inside the windows.

    Args:
        bins: The bins before the step.
        step: The last step.
        ends: Low and high ends of the windows, (2, M).
    """
    for node, value in zip(*np.nonzero(step.weight > 0), strict=True):
        block = bins.block(node)  # one axis a measure
        inside: NDArray[np.bool_] = np.array(True)
        for m, (low, high) in enumerate(ends.T):
            first = bins.low[m, node] + step.cost[m, node, value]
            lowest = first + bins.width[m, node] * np.arange(block.shape[m])
            inside = inside[..., None] & (lowest <= high) & (lowest + bins.slack[m, node] >= low)
        block += step.weight[node, value] * inside


def add_bounds(bins: Bins, step: Step, after: Bins) -> None:
    """Before any other step: add to each bin the weight of each value times the greatest bound of the bins it leads into.

    Args:
        bins: The bins before the step.
        step: The step.
        after: The bins before the next step.
    """
    meeting = _Meeting.of(bins, step, after)
    maxima: dict[tuple[int, tuple[int, ...]], Floats] = {}
    for node, value in zip(*np.nonzero(meeting.useful), strict=True):
        key = (int(step.target[node, value]), tuple(meeting.span[:, node, value].tolist()))
        if key not in maxima:
            maxima[key] = _sliding_maxima(after.block(key[0]), key[1])
        table, source = maxima[key], []
        for m in range(len(bins.low)):
            here, there = meeting.slices(m, node, value)
            source.append(here)
            table = table[(slice(None),) * m + (there,)]
        bins.block(node)[tuple(source)] += step.weight[node, value] * table


class _Meeting(NamedTuple):
    """Where the bins of each node fall among those of the node that a value leads to; (M, N, V), some with V = 1.

    With the value's cost added, bin i of the node begins `offset` + i * `width` above the first bin of the next node, whose
    bins are `wide`. `regular`: each bin begins equally far inside one of the next, `stride` bins after the one before.
    """

    offset: Ints
    begin: Ints
    """Of the first bin: how many bins of the next node lie below it."""
    width: Ints
    wide: Ints
    number: Ints
    number_after: Ints
    regular: NDArray[np.bool_]
    stride: Ints
    span: Ints
    """How many bins in a row a bin can lead into."""
    first: Ints
    """Of the bins that lead anywhere, where they are regular."""
    end: Ints
    """After the last of them."""
    useful: NDArray[np.bool_]
    """(N, V) values that lead anywhere."""

    @classmethod
    def of(cls, bins: Bins, step: Step, after: Bins) -> _Meeting:
        number, number_after = bins.number[:, :, None], after.number[:, step.target]
        width, wide = bins.width[:, :, None], after.width[:, step.target]
        offset = bins.low[:, :, None] + step.cost - after.low[:, step.target]
        begin, rest = np.divmod(offset, wide)
        regular = (number == 1) | (width % wide == 0)
        slack = bins.slack[:, :, None]
        span = np.where(regular, rest + slack, slack + wide - 1) // wide + 1
        stride = np.maximum(width // wide, 1)
        first = np.maximum(-((begin + span - 1) // stride), 0)
        end = np.minimum((number_after - 1 - begin) // stride + 1, number)
        useful = (step.weight > 0) & ((number > 0) & (number_after > 0) & ((first < end) | ~regular)).all(axis=0)
        return cls(offset, begin, width, wide, number, number_after, regular, stride, span, first, end, useful)

    def slices(self, m: int, node: int, value: int) -> tuple[slice, Any]:
        """Return which bins of the node lead anywhere, and where each of them leads among the sliding maxima."""
        at = (m, node, value)
        lead = self.span[at] - 1  # bins before the first that still reach into it
        if self.regular[at]:
            first, stride = self.first[at], self.stride[at]
            begin = self.begin[at] + first * stride + lead
            return slice(first, self.end[at]), slice(begin, begin + (self.end[at] - first - 1) * stride + 1, stride)
        begins = (self.offset[at] + self.width[m, node, 0] * np.arange(self.number[m, node, 0])) // self.wide[at]
        here = slice(*np.searchsorted(begins, [-lead, self.number_after[at]]))
        return here, begins[here] + lead


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

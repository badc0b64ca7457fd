"""The least and the greatest cost inside a window: which costs there are, kept as the bits of long ints."""

from __future__ import annotations

import numpy as np

from vitas.sample.budget import Window
from vitas.sample.chain import Chain, TooManyRows
from vitas.sample.rows import additions_in, narrowed, points_of


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
    if additions_in(chain, rows) > 8 * work:
        raise TooManyRows("too many costs to go through")
    reached = [int(points_of(rows[0])[0] > 0)]
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
        points = points_of(after).tolist()
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

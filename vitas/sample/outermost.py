"""The least and the greatest cost inside a window: which costs there are, kept as the bits of long ints."""

from __future__ import annotations

import numpy as np

from vitas.errors import VitasError
from vitas.sample.budget import Window
from vitas.sample.chain import Chain
from vitas.sample.lattice import additions_in, narrowed

DOWN, UP = -1, 1


class TooManyCosts(VitasError):
    """So many costs that they cannot be gone through one by one."""


def outermost(chain: Chain, window: Window, way: int, *, work: float = 2e8) -> int | None:
    """Return the first cost of a subnet that is met inside a window; None where there is none.

    Args:
        chain: The decisions of the space, with one measure.
        window: Least and greatest cost.
        way: UP (1) from the low end of the window, which gives the least cost, DOWN (-1) from the high end.
        work: Bytes that may be touched.

    Raises:
        TooManyCosts: more than that would be.
    """
    lattices = narrowed(chain, [window])
    if additions_in(chain, lattices) > 8 * work:
        raise TooManyCosts("too many costs to go through")
    reached = [int(lattices[0].points()[0] > 0)]  # for each node a bit for each cost of its lattice: whether it occurs
    found = [int(chain.start[0])] if reached[0] and not chain.steps else []
    for t, step in enumerate(chain.steps):
        here, after = lattices[t], lattices[t + 1]
        further, points = [0] * step.nodes_after, after.points().tolist()
        for node, value in zip(*np.nonzero(step.weight), strict=True):
            if not reached[node]:
                continue
            first, unit = int(here.low[0, node] + step.cost[0, node, value]), int(max(here.gcd[0, node], 1))
            if t + 1 == len(chain.steps):
                found += _first_inside(reached[node], first, unit, window, way)
                continue
            target = int(step.target[node, value])
            finer = int(max(after.gcd[0, target], 1))
            shift = (first - int(after.low[0, target])) // finer
            further[target] |= _moved(reached[node], max(unit // finer, 1), shift, points[target])
        reached = further
    return (min(found) if way == UP else max(found)) if found else None


def _moved(bits: int, stride: int, shift: int, length: int) -> int:
    """Return bits with `stride - 1` zeros after each, `shift` places further up, of which the first `length` are kept.

    What is not kept is never made: it may lie so far up that no machine holds it.
    """
    lost = max(0, -(shift // stride))  # of those at the low end, which would come to lie below place 0
    kept = max(0, -((shift - length) // stride))  # from the low end
    bits, shift = (bits & ((1 << min(kept, bits.bit_length())) - 1)) >> lost, shift + lost * stride
    if stride > 1 and bits > 1:
        n = (bits.bit_length() + 7) // 8
        single = np.unpackbits(np.frombuffer(bits.to_bytes(n, "little"), np.uint8), bitorder="little")
        apart = np.zeros(bits.bit_length() * stride, dtype=np.uint8)
        apart[::stride] = single[: bits.bit_length()]
        bits = int.from_bytes(np.packbits(apart, bitorder="little").tobytes(), "little")
    return bits << shift if bits else 0


def _first_inside(bits: int, first: int, unit: int, window: Window, way: int) -> list[int]:
    """Return the cost inside the window, if any, that is met first, of bits that stand for first, first + unit, ..."""
    begin = max(0, -((first - window.low) // unit))
    bits = bits >> begin << begin
    bits &= (1 << min(bits.bit_length(), max(0, (window.high - first) // unit + 1))) - 1
    if not bits:
        return []
    number = (bits & -bits).bit_length() - 1 if way == UP else bits.bit_length() - 1
    return [first + unit * number]

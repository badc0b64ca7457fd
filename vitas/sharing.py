"""Which channels each width of a dimension uses, and how evenly that spreads: plain ints.

A dimension of `largest` channels is seen as a ring. A width of c channels uses one contiguous *run* of it, the channels
start, start + 1, ... start + c - 1 (mod largest), on one side or, in the bilateral pattern, on two sides in turn.

Sources: ordinal ("AutoSlim") and bilateral ("BCNet") as in the public ViTAS code (Su et al., last commit of July 2021). That
code has no cyclic sharing and the paper's offsets are not known here: the three cyclic patterns are reconstructions from the
definition in the abstract of arXiv:2106.13700v2 (each channel should serve about equally many widths); their
derivation is ours (docs/design.md).
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from vitas.errors import ChoiceError, one_of, shown

Run = tuple[int, int]
"""(start, length) on the ring."""

StartsRule = Callable[[Sequence[int], int, Sequence[float]], Sequence[int]]
"""(values, largest, p) -> the start of each value's run."""

Sharing = str | StartsRule
PATTERNS = ("ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired")


def runs_of(sharing: Sharing, values: Sequence[int], p: Sequence[float]) -> tuple[tuple[Run, ...], ...]:
    """Return the run of every width, once for each side: one side, two for "bilateral".

    Every pattern is turned so that the largest width starts at 0: a turn renumbers channels and changes nothing else, and
    the largest subnet needs no copy.

    Args:
        sharing: One of `PATTERNS`, or a rule (values, largest, p) -> starts.
        values: Widths in ascending order; the last one is the ring.
        p: Probability of each width.

    Raises:
        ChoiceError: unknown pattern, or a rule that does not give one channel number for each width.

    Warns:
        UserWarning: a rule, or the paired pattern under unequal probabilities, uses some channels far more than
            others (spread above max p).
    """
    largest = values[-1]
    if isinstance(sharing, str) and sharing == "bilateral":
        left = tuple((0, width) for width in values)
        return left, tuple((largest - width, width) for width in values)
    if isinstance(sharing, str):
        if sharing not in _RULES:
            raise ChoiceError(f"sharing: {one_of(PATTERNS, sharing)}")
        starts = _RULES[sharing](values, largest, p)
    else:
        if not callable(sharing):
            raise ChoiceError(f"sharing: {one_of((*PATTERNS, 'a function'), sharing)}")
        starts = _checked(sharing(values, largest, p), values)
    turn = starts[-1]
    runs = tuple(((start - turn) % largest, width) for start, width in zip(starts, values, strict=True))
    if sharing != "ordinal" and not _is_fair(runs, p):
        spread = _spread(runs, p) / max(p)
        warnings.warn(
            f"unfair sharing over widths {values[0]}..{largest}: some channels serve {spread:.3g} widths more than others,"
            " not 1; 'cyclic-chain' is always fair",
            stacklevel=4,
        )
    return (runs,)


def _ordinal(values: Sequence[int], largest: int, p: Sequence[float]) -> Sequence[int]:
    return [0] * len(values)


def _chain(values: Sequence[int], largest: int, p: Sequence[float]) -> Sequence[int]:
    """Lay the runs end to end, the most probable first: spread at most max p, for any widths."""
    order = sorted(range(len(values)), key=lambda k: (-p[k], k))
    ends = [0, *accumulate(values[k] for k in order)]
    starts = [0] * len(values)
    for k, start in zip(order, ends, strict=False):
        starts[k] = start % largest
    return starts


def _cyclic(values: Sequence[int], largest: int, p: Sequence[float]) -> Sequence[int]:
    """Start each width one step after the next smaller one (gap 1); lay a chain where that would be unfair."""
    starts = [0, *values[:-1]]
    return starts if _is_fair(list(zip(starts, values, strict=True)), p) else _chain(values, largest, p)


def _paired(values: Sequence[int], largest: int, p: Sequence[float]) -> Sequence[int]:
    """Let widths c and largest - c tile the ring exactly once; chain the widths that have no partner."""
    starts: dict[int, int] = {}
    for width in values:
        if 2 * width < largest and largest - width in values:
            starts[width] = width - values[0]
            starts[largest - width] = 2 * width - values[0]
    rest = [k for k, width in enumerate(values) if width not in starts]
    # The largest width covers the ring wherever it starts; led by it, the chain of the others begins at 0.
    rest = [rest[-1], *rest[:-1]]
    for k, start in zip(rest, _chain([values[k] for k in rest], largest, [p[k] for k in rest]), strict=True):
        starts[values[k]] = start
    return [starts[width] for width in values]


_RULES: dict[str, StartsRule] = {
    "ordinal": _ordinal,
    "cyclic": _cyclic,
    "cyclic-chain": _chain,
    "cyclic-paired": _paired,
}


def run_of_new(sharing: str, width: int, sides: Sequence[Sequence[Run]], p: Sequence[float]) -> tuple[Run, ...]:
    """Return the run, for each side, of a width that joins others whose runs stay as they are.

    Ordinal and bilateral widths start where all of theirs do, and in the paired pattern a width stands beside its
    complement. Else a width takes the channels that served the others least, of equal ones the first.

    Args:
        sharing: The pattern; that of a rule of one's own counts as another one.
        width: The new width.
        sides: The runs of the others for each side; the longest is the ring.
        p: How often each of the others is used.
    """
    largest = max(length for _, length in sides[0])
    if len(sides) > 1:
        return (0, width), (largest - width, width)
    complements = [(start + length) % largest for start, length in sides[0] if length == largest - width]
    if sharing == "ordinal":
        return ((0, width),)
    if sharing == "cyclic-paired" and complements:
        return ((complements[0], width),)
    uses = np.zeros(largest)
    for (start, length), weight in zip(sides[0], p, strict=True):
        uses[np.arange(start, start + length) % largest] += weight
    total = np.cumsum([0.0, *uses, *uses[:width]])
    served = (total[width : width + largest] - total[:largest]).round(9)
    return ((int(served.argmin()), width),)


def _checked(starts: Sequence[int], values: Sequence[int]) -> Sequence[int]:
    given = list(starts) if isinstance(starts, Iterable) else [starts]
    if len(given) != len(values) or not all(isinstance(start, (int, np.integer)) for start in given):
        raise ChoiceError(f"sharing: expected a rule that gives {len(values)} starts (ints), got {shown(starts)}")
    return [int(start) for start in given]


def _levels(runs: Sequence[Run], weights: Sequence[float], largest: int) -> list[float]:
    """Return the total weight over each stretch of the ring between two ends of runs."""
    change: dict[int, float] = {0: 0.0}
    for (start, length), weight in zip(runs, weights, strict=True):
        end = start + length
        change[start] = change.get(start, 0) + weight
        if end > largest:
            change[0] += weight
            end -= largest
        if end < largest:
            change[end] = change.get(end, 0) - weight
    return list(accumulate(change[at] for at in sorted(change)))


def _spread(runs: Sequence[Run], p: Sequence[float]) -> float:
    levels = _levels(runs, p, max(length for _, length in runs))
    return max(levels) - min(levels)


def _is_fair(runs: Sequence[Run], p: Sequence[float]) -> bool:
    return _spread(runs, p) <= max(p) + 1e-9


class _HasRuns(Protocol):
    @property
    def values(self) -> Sequence[int]: ...
    @property
    def p(self) -> Sequence[float]: ...
    @property
    def sides(self) -> Sequence[Sequence[Run]]: ...


@dataclass(frozen=True)
class Coverage:
    """How evenly the channels of a dimension serve its widths.

    "Uses" are expected uses in as many draws as there are widths: with equal probabilities, each width once. A
    bilateral width counts half for each of its two sides.

    Attributes:
        paths: (paths, L) bool: which channels each width uses, one row for each width and side.
        counts: (L,) uses of each channel.
        spread: Largest minus smallest count.
        pair_use: (L, L) uses of channel i together with channel j; the diagonal is `counts`.
        pair_sd: Standard deviation of `pair_use` over all pairs of different channels.
        pair_range: Smallest and largest `pair_use` of two different channels.
        adjacent_overlap: Channels that a width shares with the next larger one, summed over widths (mean of sides).
    """

    paths: NDArray[np.bool_]
    counts: NDArray[np.float64]
    spread: float
    pair_use: NDArray[np.float64]
    pair_sd: float
    pair_range: tuple[float, float]
    adjacent_overlap: float


def coverage(dim: _HasRuns) -> Coverage:
    """Return which channels of `dim` serve which widths, and how fair that is.

    Args:
        dim: A Dim, or anything with `values`, `p` and `sides`.

    Raises:
        ChoiceError: something else.
    """
    if not all(hasattr(dim, name) for name in ("values", "p", "sides")):
        raise ChoiceError(f"coverage: expected a Dim, got {shown(dim)}")
    largest, sides = max(dim.values), dim.sides
    paths = np.zeros((len(sides) * len(dim.values), largest), dtype=bool)
    for row, (start, length) in zip(paths, (run for side in sides for run in side), strict=True):
        row[np.arange(start, start + length) % largest] = True
    weights = np.tile(np.asarray(dim.p) * len(dim.values) / len(sides), len(sides))
    pair_use = paths.T.astype(float) @ (weights[:, None] * paths)
    counts = pair_use.diagonal().copy()
    pairs = pair_use[~np.eye(largest, dtype=bool)] if largest > 1 else np.zeros(1)
    per_side = rearrange(paths, "(side width) channel -> side width channel", side=len(sides))
    overlap = sum(int((a & b).sum()) for side in per_side for a, b in pairwise(side)) / len(sides)
    return Coverage(
        paths=paths,
        counts=counts,
        spread=float(np.ptp(counts)),
        pair_use=pair_use,
        pair_sd=float(pairs.std()),
        pair_range=(float(pairs.min()), float(pairs.max())),
        adjacent_overlap=float(overlap),
    )

"""The runs of widths whose set has changed: those that are known stay, the others are laid around them."""

from collections.abc import Mapping, Sequence

from vitas.errors import ChoiceError, shown
from vitas.sharing import Run, run_of_new

Sides = tuple[tuple[Run, ...], ...]
"""The run of every width, for each side."""


def scaled(sides: Sequence[Sequence[Run]], unit: int) -> Sides:
    """Return runs that are `unit` times as long and as far away."""
    return tuple(tuple((start * unit, length * unit) for start, length in side) for side in sides)


def fitting(
    runs: Mapping[int, Sequence[Run]], widths: Sequence[int], n: int, unit: int, what: str
) -> dict[int, tuple[Run, ...]]:
    """Return the runs of those of `widths` that `runs` names, checked.

    Args:
        runs: Width -> its run on each side.
        widths: All widths, the largest last: the ring.
        n: Number of sides.
        unit: What starts are multiples of.
        what: What errors call the Dim.

    Raises:
        ChoiceError: another number of sides, another length than the width, a start off the ring or between units.
    """
    largest = widths[-1]
    known = {width: tuple([(int(start), int(length)) for start, length in runs[width]]) for width in widths if width in runs}
    for width, sides in known.items():
        if len(sides) != n or not all(run[1] == width and run[0] in range(0, largest, unit) for run in sides):
            wanted = f"{n} run{'s' if n > 1 else ''} of {width} channels on a ring of {largest}"
            raise ChoiceError(f"{what}: expected {wanted}, got (start, length) {shown(list(sides), 30)}")
    return known


def laid_around(
    known: Mapping[int, Sequence[Run]], widths: Sequence[int], p: Sequence[float], sharing: str, n: int, unit: int
) -> Sides:
    """Return the runs of all widths: the known ones as they are, then the others, the smallest first (`run_of_new`).

    Args:
        known: Width -> its run on each side; the largest is the whole ring, known or not.
        widths: All widths, the largest last.
        p: The probability of each.
        sharing: The pattern.
        n: Number of sides.
        unit: What runs are multiples of.
    """
    weight = dict(zip(widths, p, strict=True))
    runs: dict[int, Sequence[Run]] = {widths[-1]: ((0, widths[-1]),) * n, **known}
    for width in widths:
        if width not in runs:
            sides = [
                [(start // unit, length // unit) for start, length in side] for side in zip(*runs.values(), strict=True)
            ]
            new = run_of_new(sharing, width // unit, sides, [weight.get(other, 0.0) for other in runs])
            runs[width] = scaled([new], unit)[0]
    return tuple(zip(*(runs[width] for width in widths), strict=True))

"""What can be reached beside an empty window, and how that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from vitas.sample.budget import MEASURES, Window
from vitas.sample.chain import Chain
from vitas.sample.conditional import Conditional
from vitas.sample.lattice import extremes
from vitas.sample.outermost import DOWN, UP, TooManyCosts, outermost


class Beside(NamedTuple):
    """What subnets cost beside an empty window."""

    low: int
    """Least cost of all subnets."""
    high: int
    """Greatest cost of all subnets."""
    below: int | None
    """A cost below the window that a subnet inside the other windows has; None: none was found."""
    above: int | None
    """Likewise above the window."""
    exact: bool
    """Whether these are the nearest costs; else nearer ones may exist."""


def is_empty(chain: Chain, windows: Sequence[Window]) -> bool:
    """Return whether no subnet at all is inside the windows, where that can be told."""
    with suppress(TooManyCosts):
        return len(windows) == 1 and outermost(chain, windows[0], UP) is None
    return False


def explain_empty(chain: Chain, windows: Mapping[str, Window], whole_rows: bool = False) -> str:
    """Say what can be reached instead of empty windows.

    Args:
        chain: The subnets.
        windows: What they shall cost.
        whole_rows: Whether the model has rows of blocks whose depth is not searched.
    """
    every = list(windows.values())
    found = [beside(chain, every, measure) for measure in range(len(every))]
    held = chain.space.whole is not chain.space
    said = (_said(name, *of, len(every) > 1, held) for name, of in zip(windows, zip(every, found, strict=True), strict=True))
    lower = whole_rows and any(window.high < near.low for window, near in zip(every, found, strict=True))
    cure = '; a searched depth reaches lower, in wrap depth="auto"' if lower else ""
    return f"no subnet has {'; '.join(said)}{cure}"


def _said(name: str, window: Window, found: Beside, several: bool, held: bool) -> str:
    measure = MEASURES[name]
    wanted = f"of at least {measure.said(window.low)}" if window.low > found.high else measure.span(window)
    inside = ", inside the other budget" if several else ""
    sides = (found.below, "below"), (found.above, "above")
    costs = [f"{measure.said(cost)} {where}" for cost, where in sides if cost is not None]
    reached = f", {'nearest' if found.exact else 'near'}: {' and '.join(costs)}" if costs else " none"
    subnets = "the subnets that fixed and only leave" if held else "the subnets"
    return f"{name} {wanted}: {subnets} reach {measure.span(Window(found.low, found.high))}{inside}{reached}"


def beside(chain: Chain, windows: Sequence[Window], measure: int) -> Beside:
    """Return what can be reached beside the window of one measure: the nearest for one window, unless there are too many."""
    low, high = (int(ends[measure]) for ends in extremes(chain))
    window = windows[measure]
    if len(windows) == 1:
        with suppress(TooManyCosts):
            below = _nearest(chain, min(window.low - 1, high), low, DOWN)
            above = _nearest(chain, max(window.high + 1, low), high, UP)
            return Beside(low, high, below, above, exact=True)
    return Beside(low, high, _near(chain, windows, measure, DOWN), _near(chain, windows, measure, UP), exact=False)


def _nearest(chain: Chain, edge: int, limit: int, way: int) -> int | None:
    """Return the first cost on the way DOWN or UP from `edge` to `limit`, exactly; None: there is none.

    Raises:
        TooManyCosts: too many costs to go through.
    """
    if (limit - edge) * way < 0:
        return None
    for part in (100, 10, 1):  # a zone near the edge is reached from fewer costs
        far = edge + (limit - edge) // part
        found = outermost(chain, Window(min(edge, far), max(edge, far)), way)
        if found is not None:
            return found
    return None


def _near(chain: Chain, windows: Sequence[Window], measure: int, way: int) -> int | None:
    """Return a cost near a window, DOWN or UP from it, inside the other windows; None: none was found.

    It is the nearest of those that are drawn; networks that are rare in the prior may lie nearer. A zone beside the window
    is widened until a draw from it arrives, and then closed in on.
    """
    window, (lows, highs) = windows[measure], extremes(chain)
    if any(other.low > high for other, high in zip(windows, highs, strict=True) if other is not window):
        return None
    limit, near = (int(lows[measure]), window.low - 1) if way == DOWN else (int(highs[measure]), window.high + 1)
    rounds, part = (60, 10**4) if len(windows) == 1 else (5, 64)  # two budgets at once cost much more
    width, rng = max(abs(limit - near) // part, 1), np.random.default_rng(0)
    best: int | None = None
    for _ in range(rounds):
        if (limit - near) * way < 0:
            break
        far = near + way * width
        zone = Window(max(far, 0), near) if way == DOWN else Window(near, far)
        conditional = Conditional(chain, [*windows[:measure], zone, *windows[measure + 1 :]])
        if not conditional.bound:
            if best is not None and (far - best) * way > 0:
                break
            near, width = far + way, width * 8
            continue
        costs = np.concatenate([conditional.propose(4096, rng)[1][:, measure] for _ in range(2)])
        if len(costs):
            best = int(costs.max() if way == DOWN else costs.min())
            width = max(abs(near - best) - 1, 0)
            if best == near:
                break
        else:
            width = max(width // 4, 1)
            if width == 1:
                break
    return best

"""What can be reached beside an empty window."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitas.sample.budget import Window
from vitas.sample.chain import Chain, TooManyRows
from vitas.sample.conditional import Conditional
from vitas.sample.outermost import outermost
from vitas.sample.rows import extremes


def is_empty(chain: Chain, windows: list[Window]) -> bool:
    """Return whether no subnet at all is inside the windows, where that can be told."""
    try:
        return len(windows) == 1 and outermost(chain, windows[0], 1) is None
    except TooManyRows:
        return False


def explain_empty(chain: Chain, windows: Mapping[str, Window]) -> str:
    """Say what can be reached instead of empty windows."""
    least, greatest = (ends.tolist() for ends in extremes(chain))
    parts = []
    for measure, (name, window) in enumerate(windows.items()):
        low, high = least[measure], greatest[measure]
        wanted = f"of at least {window.low:,}" if window.low > high else f"from {window}"
        part = f"{name} {wanted}: the subnets reach from {low:,} to {high:,}"
        try:
            if len(windows) > 1:
                part += ", inside the other budget"
                raise TooManyRows("two budgets")
            below = _nearest(chain, min(window.low - 1, high), low, -1)
            above = _nearest(chain, max(window.high + 1, low), high, 1)
            word = "nearest"
        except TooManyRows:
            below, above = (_near(chain, list(windows.values()), measure, side) for side in (-1, 1))
            word = "near"
        found = [f"{cost:,} {where}" for cost, where in ((below, "below"), (above, "above")) if cost is not None]
        parts.append(part + (f", {word}: {' and '.join(found)}" if found else " none"))
    return "no subnet has " + "; ".join(parts)


def _nearest(chain: Chain, edge: int, limit: int, side: int) -> int | None:
    """Return the cost nearest to `edge` on the way to `limit`, below (side -1) or above (1), exactly; None: there is none.

    Raises:
        TooManyRows: too many costs to go through.
    """
    if (limit - edge) * side < 0:
        return None
    for share in (100, 10, 1):  # a zone near the edge is reached from fewer costs
        far = edge + (limit - edge) // share
        found = outermost(chain, Window(min(edge, far), max(edge, far)), side)
        if found is not None:
            return found
    return None


def _near(chain: Chain, windows: list[Window], measure: int, side: int) -> int | None:
    """Return a cost near a window below (side -1) or above (1) it, inside the other windows; None: none was found.

    It is the nearest of those that are drawn; networks that are rare in the prior may lie nearer. A zone beside the window
    is widened until a draw from it arrives, and then closed in on.
    """
    window = windows[measure]
    limit = int(extremes(chain)[0 if side < 0 else 1][measure])
    edge = window.low - 1 if side < 0 else window.high + 1
    best: int | None = None
    rounds, part = (60, 10**4) if len(windows) == 1 else (5, 64)  # two budgets at once cost much more
    reach, rng = max(abs(limit - edge) // part, 1), np.random.default_rng(0)
    near = edge
    if any(w.low > high for w, high in zip(windows, extremes(chain)[1], strict=True) if w is not window):
        return None
    for _ in range(rounds):
        if (near < limit) if side < 0 else (near > limit):
            return best
        far = near + side * reach
        zone = Window(max(far, 0), near) if side < 0 else Window(near, far)
        conditional = Conditional(chain, [*windows[:measure], zone, *windows[measure + 1 :]])
        if not conditional.bound:
            if best is not None and (far < best if side < 0 else far > best):
                return best
            near, reach = far + side, reach * 8
            continue
        costs = np.concatenate([conditional.propose(4096, rng)[1][:, measure] for _ in range(2)])
        if not len(costs):
            reach = max(reach // 4, 1)
            if reach == 1:
                return best
            continue
        best = int(costs.max() if side < 0 else costs.min())
        if best == near:
            return best
        reach = max(abs(near - best) - 1, 0)
    return best

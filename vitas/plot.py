"""Pictures of searches, drawn on matplotlib axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitas.subnet import Subnet

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"  # told apart by colour-blind readers too


def figure(panels: int) -> Any:
    """Return a matplotlib Figure with a row of axes."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(4.6 * panels, 3.8), layout="constrained")
    for axes in np.atleast_1d(made.subplots(1, panels)):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return made


def progress(axes: Any, scores: NDArray[Any], allowed: NDArray[np.bool_], name: str, direction: str) -> None:
    """Draw every score in order, and the best so far among those that meet the limits.

    Shapes: scores, allowed (n,).
    """
    numbers = np.arange(1, len(scores) + 1)
    for which, colour, label in ((allowed, GREY, "a subnet"), (~allowed, ORANGE, "breaks a limit")):
        if which.any():
            axes.scatter(numbers[which], scores[which], s=7, color=colour, linewidths=0, label=label)
    if allowed.any():
        best = np.maximum if direction == "max" else np.minimum
        reached = best.accumulate(np.where(allowed, scores, -np.inf if direction == "max" else np.inf))
        axes.plot(numbers[np.isfinite(reached)], reached[np.isfinite(reached)], color=BLUE, label="best so far")
    axes.set_xlabel("evaluation")
    axes.set_ylabel(name)
    axes.set_title("Progress")
    if len(scores):
        axes.legend(frameon=False, fontsize="small")


def front(axes: Any, x: NDArray[Any], y: NDArray[Any], marked: NDArray[np.bool_], x_name: str, y_name: str) -> None:
    """Draw two values of every subnet against each other, those on the front marked.

    Shapes: x, y, marked (n,).
    """
    axes.scatter(x[~marked], y[~marked], s=7, color=GREY, linewidths=0, label="a subnet")
    order = np.argsort(x[marked], kind="stable")
    axes.plot(x[marked][order], y[marked][order], "o-", color=BLUE, markersize=5, linewidth=1, label="the best")
    axes.set_xlabel(x_name)
    axes.set_ylabel(y_name)
    axes.set_title(f"{y_name} against {x_name}")
    axes.legend(frameon=False, fontsize="small")


def widths(axes: Any, subnet: Subnet) -> None:
    """Draw what a subnet chooses in each block: a line for every word such as `mlp_dim`, one point a block."""
    single, words, rows = subnet._table()
    blocks = list(rows)
    for number, word in enumerate(words):
        places = [place for place, block in enumerate(blocks) if word in rows[block]]
        values = [rows[blocks[place]][word] for place in places]
        axes.plot(places, values, "o-", color=f"C{number}", markersize=4, linewidth=1, label=word)
    numbered = [block.rpartition(".")[2] for block in blocks]
    plain = all(block.startswith("blocks.") for block in blocks)
    axes.set_xticks(range(len(blocks)), numbered if plain else blocks, rotation=0 if plain else 90, fontsize="small")
    axes.set_xlabel("block")
    axes.set_yscale("log")
    axes.set_title(", ".join(f"{name} {value}" for name, value in single.items()), fontsize="medium")
    if blocks:
        axes.legend(frameon=False, fontsize="small")

"""Pictures of searches, sharing and training, drawn with matplotlib (extra `plot`)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from einops import reduce
from numpy.typing import NDArray

from vitas.checks import as_count
from vitas.choice import Dim
from vitas.errors import ChoiceError, brief, needs, shown
from vitas.plot.cards import Card, difference_card, space_card, subnet_card
from vitas.sharing import coverage

__all__ = ["Card", "coverage_map", "difference_card", "space_card", "subnet_card", "training_curves"]


BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"  # told apart by colour-blind readers too


def displayed(figure: Any) -> Any:
    """Let notebooks show a figure that pyplot knows nothing of, and return it."""
    figure._repr_png_ = partial(_png, figure)
    return figure


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def figure(panels: int) -> Any:
    """Return a matplotlib Figure with a row of axes.

    Raises:
        VitasError: matplotlib is not installed.
    """
    with needs("plot"):
        from matplotlib.figure import Figure

    made = Figure(figsize=(4.6 * panels, 3.8), layout="constrained")
    for axes in np.atleast_1d(made.subplots(1, panels)):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return displayed(made)


def progress(axes: Any, scores: NDArray[Any], allowed: NDArray[np.bool_], name: str, direction: str) -> None:
    """Draw every score in order, and the best so far among those that meet the limits.

    Shapes: scores, allowed (n,).
    """
    numbers = np.arange(1, len(scores) + 1)
    _clouds(axes, numbers, scores, allowed)
    if allowed.any():
        best = np.maximum if direction == "max" else np.minimum
        reached = best.accumulate(np.where(allowed, scores, -np.inf if direction == "max" else np.inf))
        known = np.isfinite(reached)
        axes.plot(numbers[known], reached[known], color=BLUE, drawstyle="steps-post", label="best so far")
    axes.set_xlabel("evaluation")
    _name_values(axes.yaxis, name)
    axes.set_title("Progress")
    _legend(axes)


def front(
    axes: Any,
    x: NDArray[Any],
    y: NDArray[Any],
    allowed: NDArray[np.bool_],
    marked: NDArray[np.bool_],
    x_name: str,
    y_name: str,
) -> None:
    """Draw two values of every subnet against each other, those that break a limit and those on the front marked.

    Shapes: x, y, allowed, marked (n,).
    """
    _clouds(axes, x, y, allowed)
    if marked.any():
        order = np.argsort(x[marked], kind="stable")
        axes.plot(x[marked][order], y[marked][order], "o-", color=BLUE, markersize=4, linewidth=1, label="the best")
    _name_values(axes.xaxis, x_name)
    _name_values(axes.yaxis, y_name)
    axes.set_title(f"{y_name} against {x_name}")
    _legend(axes)


def _clouds(axes: Any, x: NDArray[Any], y: NDArray[Any], allowed: NDArray[np.bool_]) -> None:
    for which, colour, label in ((allowed, GREY, "a subnet"), (~allowed, ORANGE, "breaks a limit")):
        if which.any():
            axes.scatter(x[which], y[which], s=7, color=colour, linewidths=0, label=label)


def _name_values(axis: Any, name: str) -> None:
    """Label an axis; counts read 1.2G."""
    from matplotlib.ticker import EngFormatter

    axis.set_label_text(name)
    if name in ("flops", "params"):
        axis.set_major_formatter(EngFormatter(sep=""))


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(framealpha=0.8, edgecolor="none", fontsize="small", markerscale=1.5)


def coverage_map(dims: Dim | Mapping[str, Dim]) -> Any:
    """Return a matplotlib Figure: which channels each width uses, and below how many widths use each channel.

    A bilateral width is drawn lighter where only one of its two sides uses the channel.

    Args:
        dims: A Dim, or several by name, side by side.

    Raises:
        ChoiceError: not a Dim, or none at all.
        VitasError: matplotlib is not installed.
    """
    with needs("plot"):
        from matplotlib.figure import Figure

    named = dict(dims) if isinstance(dims, Mapping) else {getattr(dims, "label", ""): dims}
    if not named:
        raise ChoiceError("coverage_map: expected at least one Dim, got none")
    for name, dim in named.items():
        if not isinstance(dim, Dim):
            raise ChoiceError(f"coverage_map: expected a Dim, got {shown(dim)} for {shown(name, 40)}")
    made = Figure(figsize=(max(2.7 * len(named), 4.2), 4.2), layout="constrained")
    axes = made.subplots(2, len(named), sharex="col", squeeze=False, height_ratios=[3, 1])
    for (name, dim), (runs, uses) in zip(named.items(), axes.T, strict=True):
        fairness, widths, channels = coverage(dim), len(dim.values), dim.largest
        # bilateral: the mean of two sides
        paths = reduce(fairness.paths.astype(float), "(side width) channel -> width channel", "mean", width=widths)
        runs.imshow(paths, cmap="Blues", vmin=0, vmax=1.25, aspect="auto", interpolation="nearest", origin="upper")
        runs.set_yticks(np.arange(0.5, widths - 1), minor=True)
        runs.grid(which="minor", axis="y", color="white", linewidth=1.5 if widths <= 20 else 0)
        runs.tick_params(which="minor", length=0)
        every = max(1, widths // 8)
        runs.set_yticks(range(0, widths, every), [str(value) for value in dim.values[::every]], fontsize="small")
        runs.set_title(f"{name}\n{dim.sharing}" if name and name != dim.sharing else dim.sharing, fontsize="medium")
        fair = fairness.spread <= max(dim.p) * widths + 1e-9
        uses.stairs(fairness.counts, np.arange(channels + 1) - 0.5, fill=True, color=BLUE if fair else ORANGE)
        uses.set(ylim=(0, 1.05 * max(axis.max() for axis in (fairness.counts, np.ones(1)))))
        uses.set_xlabel(f"channel\nspread {fairness.spread:.3g}", fontsize="small")
        uses.spines[["top", "right"]].set_visible(False)
    most = max(uses.get_ylim()[1] for uses in axes[1])
    for uses in axes[1]:
        uses.set_ylim(0, most)
    axes[0, 0].set_ylabel("width")
    axes[1, 0].set_ylabel("widths that\nuse it", fontsize="small")
    return displayed(made)


def training_curves(history: Mapping[str, Sequence[float]], *, window: int = 1, x_name: str = "step") -> Any:
    """Return a matplotlib Figure of values over steps, one line for each name.

    Args:
        history: Name -> one value for each step; NaN leaves a gap.
        window: Steps of the moving mean; the values themselves stay behind it, faint.
        x_name: What a step is.

    Raises:
        ChoiceError: a window that is not an int of at least 1; values that are not a row of numbers.
        VitasError: matplotlib is not installed.
    """
    window = as_count(window, "window")
    try:
        given = dict(history)
    except (TypeError, ValueError):
        raise ChoiceError(f"history: expected a mapping of names to values, got {shown(history)}") from None
    rows = {name: _row(name, values) for name, values in given.items()}
    made = figure(1)
    axes = made.axes[0]
    for number, (name, values) in enumerate(rows.items()):
        steps, colour = np.arange(1, len(values) + 1), f"C{number}"
        if 1 < window <= len(values):
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            mean = np.convolve(values, np.ones(window) / window, mode="valid")
            axes.plot(steps[window - 1 :], mean, color=colour, label=name)
        else:
            axes.plot(steps, values, color=colour, label=name)
    axes.set_xlabel(x_name)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
    return made


def _row(name: str, values: Any) -> NDArray[np.float64]:
    wanted = f"history: expected one number for each step, got {shown(values)} for {shown(name)}"
    try:
        row = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # such as tensors on a device or with gradients
        raise ChoiceError(f"{wanted} ({brief(error, 100)})") from error
    if row.ndim != 1:
        raise ChoiceError(wanted)
    return row

"""The last table: the found network against scalings by hand and random networks, on the test images."""

import statistics
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
from cells import FULL
from numpy.typing import NDArray
from ranking import Results
from tables import markdown

Trained = dict[str, list[Any]]
"""Name of a network of one budget -> the figures of its trainings, one for each seed."""


def trained(results: Results, budget: int) -> Trained:
    """Return the trainings of the networks of a budget: hand-12-7, random-0, found..."""
    found: Trained = {}
    for name, figures in sorted(results.items()):
        part, *what, _ = name.split("/")
        if part == "headline" and what[0] == str(budget):
            found.setdefault(figures.get("which", what[1]), []).append(figures)
    return found


def mean(runs: list[Any], what: str) -> float:
    return statistics.fmean(run[what] for run in runs)


def picked(networks_of: Trained, kind: str) -> str | None:
    """Return the network of a kind that is best on the held-out images, as the first training of each tells."""
    names = [name for name in networks_of if name.startswith(kind)]
    return max(names, key=lambda name: networks_of[name][0]["held_out"], default=None)


def rivals(networks_of: Trained) -> dict[str, str]:
    """Return what stands in the table: what it is called -> name of the network."""
    chosen: dict[str, str | None] = {
        "DeiT's 12 blocks, patch 7": "hand-12-7" if "hand-12-7" in networks_of else None,
        "best scaling by hand": picked(networks_of, "hand"),
        "best of the random networks": picked(networks_of, "random"),
        "found": "found" if "found" in networks_of else None,
    }
    return {called: name for called, name in chosen.items() if name is not None}


def right(run: Any) -> NDArray[np.float64]:
    """Return which test images a training classifies right, (n,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(run["right"]), dtype=np.uint8)).astype(float)


def difference(first: list[Any], second: list[Any], draws: int = 2000) -> tuple[float, float, float]:
    """Return the mean accuracy of `first` minus that of `second` in points, and the middle 95 % over resamples.

    Trainings are resampled for each network by itself, test images for both together.
    """
    rng = np.random.default_rng(0)
    hits = [np.stack([right(run) for run in runs]) for runs in (first, second)]
    values = []
    for _ in range(draws):
        images = rng.integers(hits[0].shape[1], size=hits[0].shape[1])
        means = [one[rng.integers(len(one), size=len(one))].mean(axis=0)[images].mean() for one in hits]
        values.append(100 * (means[0] - means[1]))
    low, high = np.quantile(values, [0.025, 0.975])
    return 100 * float(hits[0].mean() - hits[1].mean()), float(low), float(high)


def headline(results: Results) -> str:
    """Return the test accuracy of every rival at every budget, and how far the found network is above it."""
    rows = []
    for budget in networks.BUDGETS:
        every, label = trained(results, budget), f"{budget / 1e6:.0f} M"
        for called, name in rivals(every).items():
            runs, above = every[name], ""
            if name != "found" and "found" in every:
                above = "{:.2f} [{:.2f}, {:.2f}]".format(*difference(every["found"], runs))
            macs, test = f"{runs[0]['macs'] / 1e6:.2f} M", f"{100 * mean(runs, 'test'):.2f}"
            rows.append([label, f"{called} ({name})", macs, str(len(runs)), test, above])
        drawn = [runs for name, runs in every.items() if name.startswith("random")]
        if drawn:
            middle = statistics.median(mean(runs, "test") for runs in drawn)
            number = str(min(map(len, drawn)))
            rows.append([label, f"median of {len(drawn)} random networks", "", number, f"{100 * middle:.2f}", ""])
    return markdown(["budget", "network", "multiply-adds", "trainings", "test accuracy", "found is above it by"], rows)


def cost(results: Results) -> str:
    """Return what each way to a network costs, in millions of images forward and backward; forward alone is a third."""
    rows, batch = [], FULL.recipe.batch
    for budget in networks.BUDGETS:
        search = results.get(f"search/{budget}/0")
        if search is not None:
            scored, eight = search["evaluations"] * FULL.held_out / 3, FULL.candidates * FULL.headline_passes * batch
            figures = (FULL.long * batch, scored, eight)
            rows.append([f"{budget / 1e6:.0f} M", *(f"{figure / 1e6:.2f}" for figure in figures)])
    return markdown(["budget", "superformer, once for all budgets", "scores of the search", "training eight networks"], rows)


TABLES: dict[str, Callable[[Results], str]] = {"headline": headline, "cost": cost}

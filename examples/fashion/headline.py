"""The last table: the found network against scalings by hand and random networks, on the test images."""

import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import networks
import numpy as np
from cells import FULL, Cell, ordered
from numpy.typing import NDArray
from ranking import Results
from scipy import stats
from tables import markdown, tau_with_interval

FAMILIES = {"deit": "DeiT", "twins": "Twins"}
"""Space -> what it is called."""

Trained = dict[str, list[Any]]
"""Name of a network of one budget -> the figures of its trainings, one for each seed."""


def trained(results: Results, budget: int, family: str = "deit") -> Trained:
    """Return the trainings of a family's networks at a budget: hand-12-7, random-0, found..."""
    found: Trained = {}
    for name, figures in sorted(results.items()):
        part, *what, seed = name.split("/")
        if part == "headline" and what[0] == str(budget) and Cell(part, tuple(what), int(seed)).family == family:
            found.setdefault(figures.get("which", what[1]), []).append(figures)
    return found


def mean(runs: list[Any], what: str) -> float:
    return statistics.fmean(run[what] for run in runs)


def picked(networks_of: Trained, kind: str) -> str | None:
    """Return the network of a kind that is best on the held-out images, as the first training of each tells."""
    names = [name for name in networks_of if name.startswith(kind)]
    return max(names, key=lambda name: networks_of[name][0]["held_out"], default=None)


def rivals(networks_of: Trained) -> dict[str, str]:
    """Return what stands in the table: name of the network -> what it is called."""
    chosen = {
        "12 blocks, patch 7": "hand-12-7",
        "best scaling by hand": picked(networks_of, "hand"),
        "best of the random networks": picked(networks_of, "random"),
        "found": "found",
    }
    called: dict[str, str] = {}
    for words, name in chosen.items():
        if name in networks_of:
            called[name] = f"{called[name]}, {words}" if name in called else words
    return called


def right(run: Any) -> NDArray[np.float64]:
    """Return which test images a training classifies right, (n,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(run["right"]), dtype=np.uint8)).astype(float)


class Spread(NamedTuple):
    """How much another seed changes the test accuracy of a network, pooled over all that were trained more than once."""

    sd: float
    freedom: int


def spread(results: Results) -> Spread:
    every = [trained(results, budget, family) for budget in networks.BUDGETS for family in FAMILIES]
    groups = [[run["test"] for run in runs] for one in every for runs in one.values() if len(runs) > 1]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((len(group) - 1) * statistics.variance(group) for group in groups)
    return Spread(math.sqrt(squares / freedom) if freedom else math.nan, freedom)


def difference(first: list[Any], second: list[Any], between: Spread) -> tuple[float, float, float]:
    """Return the mean accuracy of `first` minus that of `second` in points, and its 95 % interval.

    Two things vary: which test images there are, the same for both, and the seeds of the trainings, whose spread is pooled.
    """
    gap = np.subtract(*(np.mean([right(run) for run in runs], axis=0) for runs in (first, second)))  # (images,)
    error = math.sqrt(gap.var(ddof=1) / len(gap) + between.sd**2 * (1 / len(first) + 1 / len(second)))
    value, half = 100 * gap.mean(), 100 * float(stats.t.ppf(0.975, between.freedom)) * error
    return value, value - half, value + half


def above(best: list[Any], runs: list[Any], between: Spread) -> str:
    """Return how far the network of some trainings is above another, with its interval; nothing for itself."""
    return "" if not best or best is runs else "{:.2f} [{:.2f}, {:.2f}]".format(*difference(best, runs, between))


def headline(results: Results) -> str:
    """Return the test accuracy of every rival at every budget, and how far the found networks are above it."""
    rows, between = [], spread(results)
    for budget in networks.BUDGETS:
        every = {family: trained(results, budget, family) for family in FAMILIES}
        for family, title in FAMILIES.items():
            start = [f"{budget / 1e6:.0f} M", title]
            for name, called in rivals(every[family]).items():
                runs = every[family][name]
                own, twins = (above(every[best].get("found", []), runs, between) for best in FAMILIES)
                counted = [f"{runs[0]['macs'] / 1e6:.2f} M", str(len(runs)), f"{100 * mean(runs, 'test'):.2f}"]
                said = networks.words(name, family)
                words = called if said in called else f"{called}: {said}"
                rows.append([*start, words, *counted, own if family == "deit" else "", twins])
            drawn = [runs for name, runs in every[family].items() if name.startswith("random")]
            if len(drawn) > 1:
                middle = statistics.median(runs[0]["test"] for runs in drawn)
                rows.append([*start, f"median of {len(drawn)} random networks", "", "1", f"{100 * middle:.2f}", "", ""])
    head = ["budget", "space", "network", "multiply-adds", "trainings", "test accuracy"]
    return markdown([*head, "found in DeiT is above it by", "found in Twins is above it by"], rows)


def cost(results: Results) -> str:
    """Return what each way to a network costs, in millions of images forward and backward; forward alone is a third."""
    rows, batch = [], FULL.recipe.batch
    searches = [cell for cell in ordered(FULL) if cell.part == "search" and cell.name in results]
    for cell in searches:
        scored = results[cell.name]["evaluations"] * FULL.held_out / 3
        figures = (FULL.long * batch, scored, FULL.candidates * FULL.headline_passes * batch)
        rows.append([f"{int(cell.what[0]) / 1e6:.0f} M", FAMILIES[cell.family], *(f"{f / 1e6:.2f}" for f in figures)])
    head = ["budget", "space", "superformer, once for all budgets", "scores of the search", "training eight networks"]
    return markdown(head, rows)


def inherited(results: Results) -> str:
    """Return how well inherited scores, and multiply-adds, rank the random networks of Twins, each trained alone once."""
    groups: dict[str, list[tuple[float, float, float]]] = {}
    scores = results.get("superformer/twins/0", {"inherited": {}})["inherited"]
    for budget, of_budget in scores.items():
        alone = trained(results, int(budget), "twins")
        both = [(score, alone[f"random-{k}"][0]) for k, score in enumerate(of_budget) if f"random-{k}" in alone]
        groups[f"{int(budget) / 1e6:.0f} M"] = [(score, run["macs"], run["held_out"]) for score, run in both]
    rows = []
    for name, group in groups.items():
        if len(group) > 2:
            score, macs, accuracy = map(list, zip(*group, strict=True))
            taus = [tau_with_interval(score, accuracy), tau_with_interval(macs, accuracy)]
            rows.append([name, str(len(group)), f"{100 * statistics.stdev(accuracy):.2f}", *taus])
    return markdown(["budget", "networks", "sd of accuracy alone", "tau of inherited scores", "tau of multiply-adds"], rows)


TABLES: dict[str, Callable[[Results], str]] = {"headline": headline, "inherited": inherited, "cost": cost}

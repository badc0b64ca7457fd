"""The last table: the found network against scalings by hand and random networks, on the test images."""

import statistics
from collections.abc import Callable
from typing import Any

import networks
import numpy as np
from cells import FULL, Cell, ordered
from numpy.typing import NDArray
from ranking import Results
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


def above(best: list[Any], runs: list[Any]) -> str:
    """Return how far the network of some trainings is above another, with its interval; nothing for itself."""
    return "" if not best or best is runs else "{:.2f} [{:.2f}, {:.2f}]".format(*difference(best, runs))


def headline(results: Results) -> str:
    """Return the test accuracy of every rival at every budget, and how far the found networks are above it."""
    rows = []
    for budget in networks.BUDGETS:
        every = {family: trained(results, budget, family) for family in FAMILIES}
        for family, title in FAMILIES.items():
            start = [f"{budget / 1e6:.0f} M", title]
            for name, called in rivals(every[family]).items():
                runs = every[family][name]
                own, twins = (above(every[best].get("found", []), runs) for best in FAMILIES)
                shape = [f"{runs[0]['macs'] / 1e6:.2f} M", str(len(runs)), f"{100 * mean(runs, 'test'):.2f}"]
                rows.append([*start, f"{called} ({name})", *shape, own if family == "deit" else "", twins])
            drawn = [runs for name, runs in every[family].items() if name.startswith("random")]
            if drawn:
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
    """Return how well inherited scores rank the random networks of Twins, each trained alone once."""
    groups: dict[str, list[tuple[float, float]]] = {}
    scores = results.get("superformer/twins/0", {"inherited": {}})["inherited"]
    for budget, of_budget in scores.items():
        alone = trained(results, int(budget), "twins")
        both = [(score, f"random-{place}") for place, score in enumerate(of_budget)]
        groups[f"{int(budget) / 1e6:.0f} M"] = [(s, alone[n][0]["held_out"]) for s, n in both if n in alone]
    groups["all"] = [pair for pairs in groups.values() for pair in pairs]
    rows = [
        [
            name,
            str(len(pairs)),
            f"{100 * statistics.stdev(a for _, a in pairs):.2f}",
            tau_with_interval(*zip(*pairs, strict=True)),
        ]
        for name, pairs in groups.items()
        if len(pairs) > 2
    ]
    return markdown(["budget", "networks", "sd of accuracy alone", "tau of inherited scores"], rows)


TABLES: dict[str, Callable[[Results], str]] = {"headline": headline, "inherited": inherited, "cost": cost}

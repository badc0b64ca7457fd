"""Tables of the truth and of the scores, from the stored results alone."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import networks
import numpy as np
from cells import FULL, ordered
from ranking import Results, ground_truth

from vitas.train import kendall_tau

NONE = "Not there yet."
Kinds = dict[tuple[str, ...], dict[int, Any]]
"""(length, training, sharing, norms) -> seed -> figures."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, or a sentence where it would be empty."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else NONE


def progress(results: Results) -> str:
    """Return how many cells of each part are done, and the processor's minutes that one takes."""
    rows = []
    for part in dict.fromkeys(cell.part for cell in ordered(FULL)):
        names = [cell.name for cell in ordered(FULL) if cell.part == part]
        minutes = [results[name]["cpu"] / 60 for name in names if name in results]
        each = f"{statistics.fmean(minutes):.1f}" if minutes else ""
        rows.append([part, f"{len(minutes)} of {len(names)}", each])
    return markdown(["part", "done", "minutes of one core for each"], rows)


def truth_of(results: Results) -> list[float]:
    """Return the accuracy of each ground network, mean of both trainings, or of one where the second is not complete."""
    return ground_truth(results) or ground_truth(results, trainings=1)


def groups(results: Results) -> dict[str, list[int]]:
    """Return which ground networks are compared: all, those of one cost, and the better half of these."""
    truth = truth_of(results)
    one_cost = [k for k in range(len(truth)) if networks.WINDOW[0] <= results[f"ground/{k}/0"]["macs"] <= networks.WINDOW[1]]
    better = sorted(one_cost, key=lambda k: -truth[k])[: len(one_cost) // 2]
    found = {"all": list(range(len(truth))), "one cost": one_cost, "its better half": sorted(better)}
    return {name: chosen for name, chosen in found.items() if len(chosen) > 1}


def tau_with_interval(x: Sequence[float], y: Sequence[float], draws: int = 2000) -> str:
    """Return Kendall's tau and the middle 95 % of its values over resampled networks; copies of a network tie."""
    a, b = (np.sign(np.subtract.outer(values, values)) for values in (np.array(x), np.array(y)))
    times = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), size=draws).astype(float)
    same, first, second = (np.einsum("bi,ij,bj->b", times, m, times, optimize=True) for m in (a * b, a * a, b * b))
    with np.errstate(invalid="ignore", divide="ignore"):
        taus = same / np.sqrt(first * second)
    taus = taus[np.isfinite(taus)]  # where a resample ties all there is none
    low, high = np.quantile(taus, [0.025, 0.975]) if len(taus) else (math.nan, math.nan)
    return f"{kendall_tau(list(x), list(y)):.2f} [{low:.2f}, {high:.2f}]"


def ground(results: Results) -> str:
    """Return what trainings from scratch say of each other, and what multiply-adds say."""
    truth, twice, rows = truth_of(results), bool(ground_truth(results)), []
    for name, chosen in groups(results).items():
        mean, macs = [truth[k] for k in chosen], [results[f"ground/{k}/0"]["macs"] for k in chosen]
        between, ceiling = "", ""
        if twice:
            first, second = ([results[f"ground/{k}/{seed}"]["accuracy"] for k in chosen] for seed in (0, 1))
            between = f"{100 * statistics.fmean((a - b) ** 2 / 2 for a, b in zip(first, second, strict=True)) ** 0.5:.2f}"
            ceiling = tau_with_interval(first, second)
        reach, spread = f"{100 * min(mean):.1f} to {100 * max(mean):.1f}", f"{100 * statistics.stdev(mean):.2f}"
        rows.append([name, str(len(chosen)), reach, spread, between, ceiling, tau_with_interval(macs, mean)])
    head = ["networks", "number", "accuracy alone", "sd over networks", "sd between trainings"]
    return markdown([*head, "tau of two trainings", "tau of multiply-adds"], rows)


def kinds(results: Results) -> Kinds:
    """Return the figures of every superformer by what was trained, in the order in which they were planned."""
    found: Kinds = {}
    for name, figures in results.items():
        part, *what, seed = name.split("/")
        if part == "scores":
            found.setdefault(tuple(what), {})[int(seed)] = figures
    order = [["short", "long"], ["single", "sandwich", "taught"], list(networks.SHARING), ["shared", "private"]]
    return dict(
        sorted(found.items(), key=lambda item: [words.index(word) for words, word in zip(order, item[0], strict=True)])
    )


def measures(results: Results) -> dict[str, Callable[[Any], float]]:
    """Return what is read off a superformer: name -> function of its figures."""
    truth = truth_of(results)

    def tau(chosen: list[int]) -> Callable[[Any], float]:
        return lambda f: kendall_tau([f["ground"][k] for k in chosen], [truth[k] for k in chosen])

    sets = groups(results)
    one_cost = sets.get("one cost", [])
    return {
        "inherited": lambda f: 100 * statistics.fmean(f["random"]),
        "sd": lambda f: 100 * statistics.stdev(f["random"]),
        "noise": lambda f: 100 * math.sqrt(statistics.fmean(a * (1 - a) for a in f["random"]) / FULL.held_out),
        "sd of one cost": lambda f: 100 * statistics.stdev([f["ground"][k] for k in one_cost]) if one_cost else math.nan,
        "cheapest": lambda f: 100 * f["smallest-7"],
        "costliest": lambda f: 100 * f["largest-4"],
        **{f"tau, {name}": tau(chosen) for name, chosen in sets.items()},
    }


def scores(results: Results) -> str:
    """Return a line for every way to train and share, the mean over its seeds."""
    columns, rows = measures(results), []
    for what, by_seed in kinds(results).items():
        values = {name: statistics.fmean(map(figure, by_seed.values())) for name, figure in columns.items()}
        figures = [f"{value:.2f}" if name[0] in "tsn" else f"{value:.1f}" for name, value in values.items()]
        rows.append([*what, str(len(by_seed)), *figures])
    return markdown(["length", "training", "cyclic", "norms", "seeds", *columns], rows)


FACTORS = {
    1: [("single", "sandwich"), ("single", "taught"), ("sandwich", "taught")],
    2: [("ordinal", other) for other in networks.SHARING if other != "ordinal"],
    3: [("shared", "private")],
    0: [("short", "long")],
}
"""Place in (length, training, sharing, norms) -> the pairs of values that are compared."""


def contrasts(results: Results) -> str:
    """Return the differences between cells that differ in one thing only and share the seed: mean, smallest and largest."""
    found, rows = kinds(results), []
    names = [name for name in measures(results) if name in ("inherited", "sd of one cost", "tau, all", "tau, one cost")]
    for place, pairs in FACTORS.items():
        for before, after in pairs:
            both = []
            for what, by_seed in found.items():
                twin = found.get((*what[:place], after, *what[place + 1 :]), {}) if what[place] == before else {}
                both += [(by_seed[seed], twin[seed]) for seed in sorted(by_seed.keys() & twin.keys())]
            if both:
                shown = []
                for name in names:
                    figure = measures(results)[name]
                    gains = [figure(b) - figure(a) for a, b in both]
                    shown.append(f"{statistics.fmean(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})")
                rows.append([f"{after} - {before}", str(len(both)), *shown])
    return markdown(["difference", "pairs", *names], rows)

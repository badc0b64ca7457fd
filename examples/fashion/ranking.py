"""How well one list of scores ranks networks as another does, and which superformer is searched."""

import statistics
from collections.abc import Mapping
from typing import Any

from vitas.train import kendall_tau

Figures = dict[str, Any]
Results = Mapping[str, Figures]
"""Name of a cell -> its figures."""


def chosen_superformer(results: Results) -> str | None:
    """Return the long cell of seed 0 whose superformer is searched; None while it cannot be known.

    The rule: of the three patterns trained with single subnets, the one with the largest Kendall tau over all networks
    trained alone, mean of both lengths. Only held-out images enter. Before anything ran it was meant to choose among all
    nine combinations; it was narrowed after the short trainings, where sandwiches ranked worse by 0.16 or more, and before
    any search, so that the last table need not wait for six long trainings.
    """
    truth, taus = ground_truth(results), {}
    for sharing in ("ordinal", "cyclic", "inside"):
        names = [f"scores/{length}/single/{sharing}/shared/0" for length in ("short", "long")]
        if not all(name in results and len(results[name]["ground"]) == len(truth) for name in names):
            return None
        taus[names[1]] = statistics.fmean(kendall_tau(results[name]["ground"], truth) for name in names)
    return max(taus, key=lambda name: taus[name])


def ground_truth(results: Results, trainings: int = 2) -> list[float]:
    """Return the mean accuracy of so many trainings of each ground network; nothing while one is missing."""
    numbers = sorted({int(name.split("/")[1]) for name in results if name.startswith("ground/")})
    names = [[f"ground/{number}/{seed}" for seed in range(trainings)] for number in numbers]
    if not all(name in results for row in names for name in row):
        return []
    return [statistics.fmean(results[name]["accuracy"] for name in row) for row in names]

"""The cells of the study: which trainings there are, for how long, and in which order."""

from itertools import product
from typing import NamedTuple

import networks
import training


class Settings(NamedTuple):
    """What is trained and for how long; results of other settings are refused."""

    data: str = "/usr/share/datasets/fashion-mnist"
    held_out: int = 5000
    inside: int = 16
    others: int = 8
    random: int = 60
    ground_passes: int = 2400
    short: int = 4000
    long: int = 20000
    headline_passes: int = 7200
    candidates: int = 8
    population: int = 50
    generations: int = 10
    seeds: int = 3
    every: bool = True
    recipe: training.Recipe = training.Recipe()


FULL = Settings()
_FEW = {"ground_passes": 8, "short": 8, "long": 16, "headline_passes": 8, "candidates": 2, "population": 3, "generations": 2}
SMOKE = Settings("", 60, 2, 2, 2, **_FEW, seeds=1, every=False, recipe=training.Recipe(batch=16))


class Cell(NamedTuple):
    """One training, or one search; its name is its key in the results."""

    part: str
    what: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        return "/".join([self.part, *self.what, str(self.seed)])


def ordered(settings: Settings) -> list[Cell]:
    """Return all cells, the most informative first."""
    numbers = [str(number) for number in range(settings.inside + settings.others)]
    budgets = [str(budget) for budget in networks.BUDGETS]
    hand = [f"hand-{depth}-{patch}" for depth, patch in networks.HAND]
    drawn = [f"random-{number}" for number in range(settings.candidates)]
    first = list(product(training.PASSES, ("ordinal", "cyclic", "inside"), ("shared",)))
    axes = list(product(("taught",), ("stream", "qkv", "mlp"), ("shared",)))
    private = list(product(("taught", "single"), ("ordinal", "cyclic", "inside"), ("private",)))
    every = list(product(training.PASSES, networks.SHARING, ("shared", "private")))

    def scores(length: str, whats: list[tuple[str, str, str]], seed: int) -> list[Cell]:
        return [Cell("scores", (length, *what), seed) for what in whats]

    def headline(budget: str, kinds: list[str], seeds: range) -> list[Cell]:
        return [Cell("headline", (budget, kind), seed) for seed, kind in product(seeds, kinds)]

    cells = [Cell("ground", (number,), 0) for number in numbers]
    cells += scores("short", first, 0)
    cells += [Cell("ground", (number,), 1) for number in numbers]
    cells += scores("long", first[:3], 0) + [Cell("search", (budget,), 0) for budget in budgets]
    again = range(1, settings.seeds)
    for budget in budgets:  # all networks once; further seeds for those that stand in the table
        cells += headline(budget, ["found", *hand], range(1)) + headline(budget, ["found", "hand-12-7", "hand"], again)
        cells += headline(budget, drawn, range(1)) + headline(budget, ["random"], again)
    cells += scores("long", first[3:], 0) + scores("short", [*axes, *private], 0)
    cells += [c for seed in range(1, settings.seeds) for c in scores("short", first, seed) + scores("long", first, seed)]
    if settings.every:
        cells += [c for seed in range(settings.seeds) for length in ("short", "long") for c in scores(length, every, seed)]
    return list(dict.fromkeys(cells))

"""The cells of the study: which trainings there are, for how long, and in which order."""

import zlib
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
_FEW = {"ground_passes": 8, "short": 8, "long": 16, "headline_passes": 8, "candidates": 3, "population": 3, "generations": 2}
SMOKE = Settings("", 60, 2, 2, 2, **_FEW, seeds=1, every=False, recipe=training.Recipe(batch=16))


class Cell(NamedTuple):
    """One training, or one search; its name is its key in the results."""

    part: str
    what: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        return "/".join([self.part, *self.what, str(self.seed)])

    @property
    def random_seed(self) -> int:
        """Seed of everything random in the cell."""
        return zlib.crc32(self.name.encode())

    @property
    def family(self) -> str:
        return self.what[-1] if self.what[-1] in networks.SPACES else "deit"


def ordered(settings: Settings) -> list[Cell]:
    """Return all cells, the most informative first."""
    numbers = [str(number) for number in range(settings.inside + settings.others)]
    budgets = [str(budget) for budget in networks.BUDGETS]
    first = list(product(training.PASSES, ("ordinal", "cyclic", "inside"), ("shared",)))
    axes = list(product(("taught",), ("stream", "qkv", "mlp"), ("shared",)))
    private = list(product(("taught", "single"), ("ordinal", "cyclic", "inside"), ("private",)))
    every = list(product(training.PASSES, networks.SHARING, ("shared", "private")))

    def scores(length: str, whats: list[tuple[str, str, str]], seed: int) -> list[Cell]:
        return [Cell("scores", (length, *what), seed) for what in whats]

    def headline(budget: str, kinds: list[str], seeds: range, family: str = "deit") -> list[Cell]:
        tag = () if family == "deit" else (family,)
        return [Cell("headline", (budget, kind, *tag), seed) for seed, kind in product(seeds, kinds)]

    def every_of(kind: str, family: str) -> list[str]:
        return [f"{kind}-{what}" for what in networks.rivals(kind, settings.candidates, family)]

    cells = [Cell("ground", (number,), 0) for number in numbers]
    cells += scores("short", first, 0)
    cells += [Cell("ground", (number,), 1) for number in numbers]
    cells += scores("long", first[:3], 0) + [Cell("search", (budget,), 0) for budget in budgets]
    cells += [Cell("superformer", ("twins",), 0)] + [Cell("search", (budget, "twins"), 0) for budget in budgets]
    cells += [Cell("measures", (sharing,), 0) for sharing in ("ordinal", "cyclic", "inside")]
    once, again = range(1), range(1, settings.seeds)
    for budget in budgets:  # all networks once; further seeds for those that stand in the table
        cells += headline(budget, ["found"], range(settings.seeds), "twins")
        cells += headline(budget, ["found", *every_of("hand", "deit")], once)
        cells += headline(budget, every_of("hand", "twins"), once, "twins")
    for budget in budgets:
        cells += headline(budget, ["found", "hand-12-7", "hand"], again) + headline(budget, ["hand"], again, "twins")
    for budget in budgets:
        for family in ("twins", "deit"):
            cells += headline(budget, every_of("random", family), once, family) + headline(budget, ["random"], again, family)
    cells += scores("long", first[3:], 0) + scores("short", [*axes, *private], 0)
    cells += [c for seed in range(1, settings.seeds) for c in scores("short", first, seed) + scores("long", first, seed)]
    if settings.every:
        cells += [c for seed in range(settings.seeds) for length in ("short", "long") for c in scores(length, every, seed)]
    return list(dict.fromkeys(cells))

"""Helpers for training superformers in the user's own loop; there is no loop here.

    sandwich.py   the largest, the smallest and random subnets in one step
    pairs.py      both sides of bilateral sharing, and complements
    distill.py    a loss that lets one network teach another
    recipes.py    hyperparameters of the method's authors
    depth_law.py  the identity probability for a mean cost
    unused.py     what no subnet of a step used stays as it is
    ranks.py      the same subnet on all ranks, or others where that is safe
    report.py     whether a superformer's scores can be trusted

The helpers do not need each other, but for what ranks.py takes from unused.py. Imports sample, plot and what stands before
them; not search.
"""

from vitas.train.depth_law import depth_law_for
from vitas.train.distill import distill_loss
from vitas.train.pairs import bilateral, complementary
from vitas.train.ranks import RankSampler, guard_ranks
from vitas.train.recipes import RETRAIN, RETRAIN_LARGE, SUPERFORMER, Recipe
from vitas.train.report import SupernetReport, kendall_tau, supernet_report
from vitas.train.sandwich import sandwich
from vitas.train.unused import skip_unused, touch_unused

__all__ = [
    "RETRAIN",
    "RETRAIN_LARGE",
    "SUPERFORMER",
    "RankSampler",
    "Recipe",
    "SupernetReport",
    "bilateral",
    "complementary",
    "depth_law_for",
    "distill_loss",
    "guard_ranks",
    "kendall_tau",
    "sandwich",
    "skip_unused",
    "supernet_report",
    "touch_unused",
]

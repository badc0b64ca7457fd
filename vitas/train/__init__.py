"""Helpers for training superformers in the user's own loop; there is no loop here."""

from vitas.depth_law import depth_law_for
from vitas.train.distill import distill_loss
from vitas.train.pairs import bilateral, complementary
from vitas.train.ranks import RankSampler, guard_ranks
from vitas.train.recipes import RETRAIN, RETRAIN_LARGE, SUPERFORMER, Recipe
from vitas.train.report import SupernetReport, supernet_report
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
    "sandwich",
    "skip_unused",
    "supernet_report",
    "touch_unused",
]

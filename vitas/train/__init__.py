"""Helpers for training superformers in the user's own loop; there is no loop here."""

from vitas.train.distill import distill_loss
from vitas.train.pairs import bilateral, complementary
from vitas.train.ranks import RankSampler, guard_ranks
from vitas.train.sandwich import sandwich
from vitas.train.unused import skip_unused, touch_unused

__all__ = [
    "RankSampler",
    "bilateral",
    "complementary",
    "distill_loss",
    "guard_ranks",
    "sandwich",
    "skip_unused",
    "touch_unused",
]

"""The search space of the study, and the networks that are trained: fixed ones, scaled by hand, random inside a budget."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from data import CLASSES, SIZE
from torch import nn

import vitas

SPACE: dict[str, Any] = {
    "patch_size": [4, 7],
    "embed_dim": [32, 48, 64, 80],
    "depth": range(2, 9),
    "num_heads": [2, 4],
    "qkv_dim": [32, 48, 64],
    "mlp_dim": [32, 64, 96, 128],
}
IMAGES: dict[str, Any] = {"num_classes": CLASSES, "img_size": SIZE, "in_chans": 1}
SHARING: dict[str, Any] = {
    "ordinal": "ordinal",
    "cyclic": "cyclic",
    "stream": {"embed_dim": "cyclic", "qkv_dim": "ordinal", "mlp_dim": "ordinal"},
    "inside": {"embed_dim": "ordinal", "qkv_dim": "cyclic", "mlp_dim": "cyclic"},
    "qkv": {"embed_dim": "ordinal", "qkv_dim": "cyclic", "mlp_dim": "ordinal"},
    "mlp": {"embed_dim": "ordinal", "qkv_dim": "ordinal", "mlp_dim": "cyclic"},
}
"""Name -> what is cyclic: nothing, all, the residual stream only, all but the stream, one inner width only."""

WINDOW = (1_800_000, 2_200_000)
"""Multiply-adds of the networks of one cost among those trained alone."""

BUDGETS = (1_000_000, 2_000_000, 4_000_000)
HAND = [(depth, patch) for depth in (12, 6, 3) for patch in (4, 7)]
"""Scalings by hand: blocks and patch; 2 heads, and a hidden width of 4 times the width. DeiT-Ti has 12 blocks."""


def superformer(sharing: str = "ordinal", norms: str = "shared") -> nn.Module:
    """Return the superformer of a cell.

    Args:
        sharing: One of `SHARING`.
        norms: "shared", or "private": each width of the residual stream has gains and biases of its own in every norm.
    """
    model: Any = vitas.create_superformer("deit_micro", **IMAGES, sharing=SHARING[sharing], **SPACE)
    if norms == "private":

        def private() -> nn.Module:
            return vitas.nn.Private(model.embed_dim, lambda width: vitas.nn.ElasticLayerNorm(width, eps=1e-6))

        for block in model.blocks:
            block.norm1, block.norm2 = private(), private()
        model.norm = private()
    return model


def plain(subnet: Mapping[str, Any]) -> nn.Module:
    """Return a network of the space with fresh weights."""
    return vitas.build_subnet("deit_micro", subnet, **IMAGES, **SPACE)


def by_hand(budget: int, depth: int, patch: int) -> nn.Module:
    """Return DeiT scaled by hand: the widest of this depth and patch inside the budget, fresh weights."""
    width = 2
    while vitas.count_flops(_deit(width + 2, depth, patch)).total <= budget:
        width += 2
    return vitas.export_subnet(_deit(width, depth, patch), weights="fresh")


def _deit(width: int, depth: int, patch: int) -> nn.Module:
    shape = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": 2}
    return vitas.superformer.DeiTSuperformer(**IMAGES, **shape, mlp_ratio=4.0)


def ground_networks(inside: int, others: int) -> list[vitas.Subnet]:
    """Return the networks that are trained alone: `inside` of them in `WINDOW`, `others` from the whole space."""
    return _drawn(inside, seed=1, flops=WINDOW) + _drawn(others, seed=2)


def random_networks(number: int) -> list[vitas.Subnet]:
    """Return random networks of the whole space, which are only scored with inherited weights."""
    return _drawn(number, seed=3)


def in_budget(budget: int, number: int) -> list[vitas.Subnet]:
    """Return random networks that use 90 to 100 % of a budget."""
    return _drawn(number, seed=4, flops=window(budget))


def window(budget: int) -> tuple[int, int]:
    """Return what counts as a network of this budget."""
    return budget * 9 // 10, budget


@lru_cache
def _drawn(number: int, seed: int, flops: Any = None) -> list[vitas.Subnet]:
    with torch.random.fork_rng():  # what is drawn once and kept must not change what comes after it
        model, generator = superformer(), torch.Generator().manual_seed(seed)
    drawn: dict[vitas.Subnet, None] = {}
    while len(drawn) < number:
        drawn[vitas.sample_subnet(model, flops=flops, generator=generator, activate=False)] = None
    return list(drawn)

"""The search spaces of the study, and the networks that are trained: fixed ones, scaled by hand, random inside a budget."""

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
TWINS: dict[str, Any] = {
    "patch_size": 4,
    "embed_dims": [[16, 24, 32, 48], [32, 48, 64, 96]],
    "depths": [range(1, 5), range(1, 9)],
    "num_heads": [[2, 4], [2, 4]],
    "qkv_dims": [[16, 32, 48], [32, 48, 64]],
    "mlp_dims": [[32, 64, 96], [32, 64, 128, 192]],
    "sr_ratios": [2, 1],
    "wss": [7, 3],
}
SPACES: dict[str, tuple[str, dict[str, Any]]] = {"deit": ("deit_micro", SPACE), "twins": ("twins_micro", TWINS)}
"""Family -> the superformer's name and what can be searched. Two stages of Twins: 7 x 7 patches, then 3 x 3."""

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
"""DeiT scaled by hand: blocks and patch; 2 heads, and a hidden width of 4 times the width. DeiT-Ti has 12 blocks."""

TWINS_HAND = [(2, 2), (2, 10), (10, 4)]
"""Twins scaled by hand: blocks of both stages, as any two neighbours of Twins-SVT-S have them (2, 2, 10, 4 blocks); 2 heads,
a second stage of twice the width, and hidden widths of 4 times the width."""


def superformer(sharing: str = "ordinal", norms: str = "shared", family: str = "deit") -> nn.Module:
    """Return the superformer of a cell.

    Args:
        sharing: One of `SHARING`.
        norms: "shared", or "private" (DeiT): each width of the residual stream has gains and biases of its own.
        family: One of `SPACES`.
    """
    name, space = SPACES[family]
    model: Any = vitas.create_superformer(name, **IMAGES, sharing=SHARING[sharing], **space)
    if norms == "private":

        def private() -> nn.Module:
            return vitas.nn.Private(model.embed_dim, lambda width: vitas.nn.ElasticLayerNorm(width, eps=1e-6))

        for block in model.blocks:
            block.norm1, block.norm2 = private(), private()
        model.norm = private()
    return model


def plain(subnet: Mapping[str, Any], family: str = "deit") -> nn.Module:
    """Return a network of a space with fresh weights."""
    name, space = SPACES[family]
    return vitas.build_subnet(name, subnet, **IMAGES, **space)


def by_hand(budget: int, first: int, second: int, family: str = "deit") -> nn.Module:
    """Return a network scaled by hand: the widest of its kind inside the budget, fresh weights.

    Args:
        budget: Most multiply-adds.
        first: Blocks; of Twins, blocks of the first stage.
        second: Side of a patch; of Twins, blocks of the second stage.
        family: One of `SPACES`.
    """
    of_width, width = _deit if family == "deit" else _twins, 2
    while vitas.count_flops(of_width(width + 2, first, second)).total <= budget:
        width += 2
    return vitas.export_subnet(of_width(width, first, second), weights="fresh")


def rivals(kind: str, number: int, family: str = "deit") -> list[str]:
    """Return what there is of a kind, "hand" or "random", in a family: 12-7, or 0."""
    hand = HAND if family == "deit" else TWINS_HAND
    return [f"{first}-{second}" for first, second in hand] if kind == "hand" else [str(place) for place in range(number)]


def words(name: str, family: str) -> str:
    """Return what a name says: the blocks of a scaling by hand, or the number of a random network."""
    kind, *numbers = name.split("-")
    said = {"random": "number {}", "hand": "{} blocks, patch {}" if family == "deit" else "{} + {} blocks"}
    return said.get(kind, "").format(*numbers)


def _deit(width: int, depth: int, patch: int) -> nn.Module:
    shape = {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": 2}
    return vitas.superformer.DeiTSuperformer(**IMAGES, **shape, mlp_ratio=4.0)


def _twins(width: int, first: int, second: int) -> nn.Module:
    shape: dict[str, Any] = {"embed_dims": (width, 2 * width), "depths": (first, second), "num_heads": (2, 2)}
    fixed = {name: TWINS[name] for name in ("patch_size", "sr_ratios", "wss")}
    return vitas.superformer.TwinsSuperformer(**IMAGES, **shape, **fixed, mlp_ratios=4.0)


def ground_networks(inside: int, others: int) -> list[vitas.Subnet]:
    """Return the networks that are trained alone: `inside` of them in `WINDOW`, `others` from the whole space."""
    return _drawn(inside, seed=1, flops=WINDOW) + _drawn(others, seed=2)


def random_networks(number: int) -> list[vitas.Subnet]:
    """Return random networks of the whole space, which are only scored with inherited weights."""
    return _drawn(number, seed=3)


def in_budget(budget: int, number: int, family: str = "deit") -> list[vitas.Subnet]:
    """Return random networks that use 90 to 100 % of a budget."""
    return _drawn(number, seed=4, flops=window(budget), family=family)


def window(budget: int) -> tuple[int, int]:
    """Return what counts as a network of this budget."""
    return budget * 9 // 10, budget


@lru_cache
def _drawn(number: int, seed: int, flops: Any = None, family: str = "deit") -> list[vitas.Subnet]:
    with torch.random.fork_rng():  # what is drawn once and kept must not change what comes after it
        model, generator = superformer(family=family), torch.Generator().manual_seed(seed)
    drawn: dict[vitas.Subnet, None] = {}
    while len(drawn) < number:
        drawn[vitas.sample_subnet(model, flops=flops, generator=generator, activate=False)] = None
    return list(drawn)

"""Scores made up for searches on the `vitas_deit` space, whose best value inside a FLOPs window is known exactly.

A score is a sum of tables: one for each block over its widths and heads, one for each pair of neighbouring blocks over their
MLP widths and over their heads, and one over patch size, width and depth. In this space a block of qkv_dim 48 i and mlp_dim
144 j costs a i + b j multiply-adds, where a and b depend on patch size and width only. The cost of a network is
then known from two sums, of all i and of all j, and dynamic programming over blocks with these sums as state finds
the best score for each: exactly, and without vitas.
"""

from __future__ import annotations

import numpy as np

PATCHES, HEADS, BLOCKS = (14, 16, 32), (3, 6, 12, 16), 16
WIDTHS = tuple(round(384 * tenth / 10) for tenth in range(1, 11))
CLASSES, PIXELS = 1000, 224


def macs(patch: int, width: int, depth: int, i_sum, j_sum):
    """Return the exact multiply-adds of a network, from the formula of a plain DeiT."""
    tokens = (PIXELS // patch) ** 2
    n = tokens + 1
    stem = 3 * patch**2 * width * tokens
    attention = 48 * (4 * n * width + 2 * n * n)  # for a qkv_dim of 48: q, k, v, output; two products of attention
    return stem + attention * i_sum + 144 * 2 * n * width * j_sum + width * CLASSES


class Synthetic:
    """A score; `smooth` rewards width with falling returns, `rugged` has tables of random numbers.

    Shapes: unary (16, 10, 10, 4) over (i, j, heads) of a block; mlp_pair (15, 10, 10), head_pair (15, 4, 4) over neighbours;
    shape (3, 10, 16) over (patch, width, depth).
    """

    def __init__(self, kind: str, seed: int) -> None:
        rng = np.random.default_rng([seed, kind == "rugged"])
        tenth = np.arange(1, 11) / 10
        if kind == "rugged":
            self.unary = rng.random((BLOCKS, 10, 10, 4))
            self.mlp_pair = rng.random((BLOCKS - 1, 10, 10))
            self.head_pair = rng.random((BLOCKS - 1, 4, 4))
            self.shape = rng.random((3, 10, BLOCKS)) * 2
            return
        gain = rng.uniform(0.3, 1.5, (BLOCKS, 2, 1))  # how much a block makes of its widths
        power = rng.uniform(0.3, 1, (BLOCKS, 2, 1))
        i_gain, j_gain = np.moveaxis(gain * tenth**power, 1, 0)
        wanted = rng.uniform(0, 3, (BLOCKS, 1, 1))  # heads that fit, more of them for wider attention
        fit = -0.15 * (np.arange(4) - wanted - 1.5 * (tenth[:, None] - 0.5)) ** 2
        balance = -0.8 * (tenth[:, None] - tenth) ** 2  # attention and MLP of one block should be alike
        self.unary = i_gain[:, :, None, None] + j_gain[:, None, :, None] + fit[:, :, None, :] + balance[:, :, None]
        lead = rng.uniform(-0.5, 0.5, (BLOCKS - 1, 1, 1))  # a block wants its neighbour wider or narrower by this much
        self.mlp_pair = -1.5 * (tenth - tenth[:, None] - lead) ** 2
        self.head_pair = -0.1 * (np.arange(4) - np.arange(4)[:, None] - rng.integers(-1, 2, (BLOCKS - 1, 1, 1))) ** 2.0
        width, depth = tenth[:, None], np.arange(1, BLOCKS + 1) / BLOCKS
        patch = np.array([0.6, 0.5, 0.0])[:, None, None]
        self.shape = 3 * patch + 4 * width**0.5 + 2 * depth**0.5 - 3 * (width - depth) ** 2

    def of_codes(self, patch, width, depth, blocks):
        """Return the scores of networks: numbers of patch, width, depth (n,) and of i, j, heads of the blocks (n, 16, 3)."""
        k = np.arange(BLOCKS)
        runs = k <= depth[:, None]
        i, j, h = np.where(runs[None], np.moveaxis(blocks, 2, 0), 0)
        own = np.where(runs, self.unary[k, i, j, h], 0).sum(axis=1)
        pairs = self.mlp_pair[k[:-1], j[:, :-1], j[:, 1:]] + self.head_pair[k[:-1], h[:, :-1], h[:, 1:]]
        return self.shape[patch, width, depth] + own + np.where(runs[:, 1:], pairs, 0).sum(axis=1)

    def of(self, space, codes):
        """Return the scores of subnets encoded in a space of `vitas_deit`, (n, choices) -> (n,)."""
        place = {name: number for number, name in enumerate(space.choices)}
        words = ("qkv_dim", "mlp_dim", "num_heads")
        blocks = codes[:, [[place[f"blocks.{k}.{word}"] for word in words] for k in range(BLOCKS)]]
        return self.of_codes(codes[:, place["patch_size"]], codes[:, place["embed_dim"]], codes[:, place["depth"]], blocks)

    def optimum(self, low: int, high: int) -> float:
        """Return the best score of all networks that cost low to high multiply-adds, by dynamic programming."""
        most = 10 * BLOCKS + 1
        best = -np.inf
        # value[I, J, j, h]: of blocks so far whose i sum up to I and j to J, the last of them with j and h
        value = np.full((most, most, 10, 4), -np.inf)
        for i in range(10):
            for j in range(10):
                value[i + 1, j + 1, j] = np.maximum(value[i + 1, j + 1, j], self.unary[0, i, j])
        for depth in range(BLOCKS):
            if depth:
                before = (value[:, :, :, :, None] + self.head_pair[depth - 1]).max(axis=3)
                before = np.stack([(before + self.mlp_pair[depth - 1, :, j, None]).max(axis=2) for j in range(10)], axis=2)
                value = np.full_like(value, -np.inf)
                for i in range(10):
                    for j in range(10):
                        grown = before[: most - i - 1, : most - j - 1, j] + self.unary[depth, i, j]
                        into = value[i + 1 :, j + 1 :, j]
                        np.maximum(into, grown, out=into)
            best_of_sums = value.max(axis=(2, 3))
            i_sum, j_sum = np.ogrid[:most, :most]
            for p, patch in enumerate(PATCHES):
                for w, width in enumerate(WIDTHS):
                    cost = macs(patch, width, depth + 1, i_sum, j_sum)
                    inside = best_of_sums[(cost >= low) & (cost <= high)]
                    if inside.size:
                        best = max(best, inside.max() + self.shape[p, w, depth])
        return float(best)

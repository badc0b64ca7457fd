"""Genetic operators on encoded subnets, (n, choices) ints; randomness is passed in.

Operators work on *ranks*: of each choice the place of its value among those that are left, 0, 1 ...; where nothing is held
these are the numbers that `SearchSpace.encode` makes. And on *filled* codes, in which choices that are not live hold some
rank too, so that a child that grows deeper has ranks for its new blocks; `SearchSpace.canonical` brings them back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitas.space import SearchSpace

Codes = NDArray[np.int64]


Floats = NDArray[np.float64]


class Genome(NamedTuple):
    """What the operators need to know of a search space."""

    sizes: Codes
    """(choices,) number of values that are left of each choice."""
    block: Codes
    """(choices,) number of the block that each choice belongs to."""
    cumulative: Floats
    """(choices, most values) prior of the values that are left, cumulated; 1 from the last one on."""
    left: Codes
    """(choices, most values) numbers of the values that are left, by rank."""
    rank: Codes
    """(choices, most values) the rank of each number; -1 for what is not left."""

    @classmethod
    def of(cls, space: SearchSpace) -> Genome:
        """Return the genome of a space: choices named alike up to their last number, `blocks.3`, are a block."""
        names = [re.sub(r"(.*\.|^)(\d+)(\..*)?$", r"\1\2", name) for name in space.choices]
        blocks = {name: number for number, name in enumerate(dict.fromkeys(names))}
        most = max(len(choice.values) for choice in space.choices.values())
        cumulative, left = np.ones((len(names), most)), np.zeros((len(names), most), dtype=np.int64)
        rank = np.full((len(names), most), -1)
        for k, (numbers, prior) in enumerate(zip(space.encoding.left, space.encoding.prior, strict=True)):
            p = np.array(prior)[list(numbers)]
            cumulative[k, : len(p) - 1] = np.cumsum(p)[:-1] / np.sum(p)
            left[k, : len(p)], rank[k, list(numbers)] = numbers, np.arange(len(p))
        sizes = np.array([len(numbers) for numbers in space.encoding.left])
        return cls(sizes, np.array([blocks[name] for name in names]), cumulative, left, rank)

    def ranks(self, codes: Codes) -> Codes:
        """Return codes as ranks; -1 where a choice is not live or its value is not left."""
        return np.where(codes < 0, -1, self.rank[np.arange(len(self.sizes)), codes])

    def codes(self, ranks: Codes) -> Codes:
        """Return filled ranks as codes."""
        codes: Codes = self.left[np.arange(len(self.sizes)), ranks]
        return codes

    def draw(self, n: int, rng: np.random.Generator) -> Codes:
        """Return n filled codes, each rank from its choice's prior."""
        ranks: Codes = (rng.random((n, len(self.sizes), 1)) >= self.cumulative).sum(axis=2)
        return ranks


def crossover(first: Codes, second: Codes, genome: Genome, rng: np.random.Generator) -> Codes:
    """Return one filled child for each pair: blocks of `second` between two points, or each with probability 1/2.

    Where the parent that a block comes from does not have it, it comes from the other, or else from the prior.
    Source: two-point crossover as in the public ViTAS code; over blocks, and mixed with uniform crossover, is ours.
    """
    n, blocks = len(first), int(genome.block.max()) + 1
    low, high = np.sort(rng.integers(0, blocks + 1, (2, n, 1)), axis=0)
    block = np.arange(blocks)
    between, each = (block >= low) & (block < high), rng.random((n, blocks)) < 0.5
    swapped = np.where(rng.random((n, 1)) < 0.5, between, each)[:, genome.block]
    child = np.where(swapped, second, first)
    child = np.where(child < 0, np.where(swapped, first, second), child)
    return np.where(child < 0, genome.draw(n, rng), child)


def mutate(codes: Codes, live: NDArray[np.bool_], genome: Genome, rng: np.random.Generator) -> Codes:
    """Return codes with about one live rank changed in each: to a neighbour or, as often, to any other one.

    Blocks are as likely as each other, and so are the choices inside a block; a choice of one value stays as it is.
    """
    live = live & (genome.sizes > 1)
    members = live.astype(np.int64) @ (genome.block[:, None] == genome.block)  # of each choice's block, those that are live
    share = np.divide(live, members, out=np.zeros(codes.shape), where=live)  # these add up to the number of blocks
    changed = rng.random(codes.shape) * share.sum(axis=1, keepdims=True) < share
    step = np.where(rng.random(codes.shape) < 0.5, 1, -1)
    step = np.where((codes + step < 0) | (codes + step >= genome.sizes), -step, step)
    jump = rng.integers(1, np.maximum(genome.sizes, 2), codes.shape)
    other = np.where(rng.random(codes.shape) < 0.5, codes + step, (codes + jump) % genome.sizes)
    return np.where(changed, other, codes)


def repair(
    code: Codes,
    live: NDArray[np.bool_],
    genome: Genome,
    inside: Callable[[Codes], NDArray[np.bool_]],
    rng: np.random.Generator,
    tries: tuple[int, ...] = (128, 1024),
) -> Codes | None:
    """Return a filled code inside the budget that is near `code`; None if none was found.

    Many copies are changed at once, half of them in one to four live numbers, half in nearly all numbers, which move the
    same fraction of their way down or up: that is what a child needs that got another patch size or width. Of the copies
    inside the budget the nearest is taken, by the sum of squared steps over live choices.

    Args:
        code: (choices,) filled.
        live: (choices,) which choices are live.
        genome: Sizes of the choices.
        inside: Says of filled codes which lie inside the budget.
        rng: Source of randomness.
        tries: How many copies are made at first, and how many more if none of them is inside.
    """
    live = live & (genome.sizes > 1)
    for n in tries if live.any() else ():
        codes = np.concatenate([_few_anew(code, live, genome, n // 2, rng), _all_scaled(code, genome, n // 2, rng)])
        good = codes[inside(codes)]
        if len(good):
            steps = np.square(good - code)[:, live].sum(axis=1)
            nearest: Codes = good[rng.choice(np.flatnonzero(steps == steps.min()))]
            return nearest
    return None


def _few_anew(code: Codes, live: NDArray[np.bool_], genome: Genome, n: int, rng: np.random.Generator) -> Codes:
    """Return n copies of a code, each with one to four of its live numbers drawn anew."""
    entries = np.flatnonzero(live)
    most = min(4, len(entries))
    chosen = entries[rng.random((n, len(entries))).argpartition(most - 1, axis=1)[:, :most]]
    changed = np.arange(most) < rng.integers(1, most + 1, (n, 1))
    codes, copy = np.repeat(code[None], n, axis=0), np.arange(n)[:, None]
    codes[copy, chosen] = np.where(changed, rng.integers(0, genome.sizes[chosen]), codes[copy, chosen])
    return codes


def _all_scaled(code: Codes, genome: Genome, n: int, rng: np.random.Generator) -> Codes:
    """Return n copies of a code, most numbers of each moved the same fraction of their way to the smallest or largest."""
    fraction = rng.uniform(-1, 1, (n, 1))
    moved = np.where(fraction < 0, code * (1 + fraction), code + (genome.sizes - 1 - code) * fraction)
    moved = np.floor(moved + rng.random((n, len(code)))).astype(np.int64)  # rounded up or down at random
    stays = rng.random((n, len(code))) < 0.2
    return np.where(stays, code, np.minimum(moved, genome.sizes - 1))


def ranked(values: Floats, violations: Floats) -> NDArray[np.int64]:
    """Return the positions of individuals, best first.

    Those that break no limit come before those that do, the latter by how much they do. The former stand in the order of
    NSGA-II: by rank (how many fronts dominate them), inside a rank by falling crowding distance. Ties keep their order.

    Shapes: values (n, objectives), smaller is better; violations (n,), 0 where every limit is met.
    Source: Deb et al., 2002, NSGA-II (IEEE TEVC 6-2), sections III and VI.
    """
    if values.shape[1] == 1:
        return np.lexsort((values[:, 0], violations))
    ranks, crowding = np.zeros(len(values), dtype=np.int64), np.zeros(len(values))
    good = np.flatnonzero(violations <= 0)
    ahead, behind = values[good, None], values[None, good]
    better = np.all(ahead <= behind, axis=2) & np.any(ahead < behind, axis=2)
    left: NDArray[np.bool_] = np.ones(len(good), dtype=bool)
    rank = 0
    while left.any():
        front = left & ~better[left].any(axis=0)
        ranks[good[front]] = rank
        crowding[good[front]] = crowding_distance(values[good[front]])
        left, rank = left & ~front, rank + 1
    return np.lexsort((-crowding, ranks, violations))


def crowding_distance(values: Floats) -> Floats:
    """Return how far apart the neighbours of each point of a front are, summed over objectives, (n,); ends: infinite."""
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        distance[order[[0, -1]]] = np.inf
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return distance


def nondominated(values: Floats) -> NDArray[np.bool_]:
    """Return which points no other point dominates, (n, objectives) -> (n,); smaller is better."""
    good = np.zeros(len(values), dtype=bool)
    left = np.lexsort(values.T[::-1])  # nothing is dominated by what comes after it
    while len(left):
        point = values[left[0]]
        good[left[0]] = True
        left = left[1:]
        left = left[(values[left] < point).any(axis=1) | (values[left] == point).all(axis=1)]
    return good


def hypervolume(values: Floats, reference: Floats) -> float:
    """Return the volume between a set of points and a reference that is worse; smaller values are better.

    Shapes: values (n, objectives), reference (objectives,).
    Source: slicing by the last objective (Zitzler 1999; "HSO" in While et al., 2006).
    """
    values = values[(values < reference).all(axis=1)]
    if not len(values):
        return 0.0
    if values.shape[1] == 1:
        return float(reference[0] - values.min())
    values = values[np.argsort(values[:, -1], kind="stable")]
    tops = [*values[1:, -1], reference[-1]]
    slices = ((top - point[-1], n) for n, (point, top) in enumerate(zip(values, tops, strict=True), start=1))
    return float(sum(depth * hypervolume(values[:n, :-1], reference[:-1]) for depth, n in slices if depth > 0))

"""The search finds the known optimum of made-up scores; the full comparison is tests/benchmarks/search.py."""

import itertools

import numpy as np
import pytest

import vitas
from tests.synthetic import BLOCKS, HEADS, PATCHES, WIDTHS, Synthetic, macs

WINDOW = (900_000_000, 1_000_000_000)


@pytest.fixture(scope="module")
def model():
    return vitas.create_superformer("vitas_deit")


def test_the_formula_of_the_reference_counts_as_vitas_does(model):
    for subnet in (vitas.SubnetSampler(model, seed=1).sample(step, activate=False) for step in range(10)):
        depth = subnet["depth"]
        sums = [sum(subnet[f"blocks.{k}.{word}"] for k in range(depth)) for word in ("qkv_dim", "mlp_dim")]
        expected = macs(subnet["patch_size"], subnet["embed_dim"], depth, sums[0] // 48, sums[1] // 144)
        assert vitas.count_flops(model, subnet).total == expected
    values = vitas.search_space(model).choices
    assert (values["patch_size"].values, values["embed_dim"].values) == (PATCHES, WIDTHS)
    assert values["blocks.0.num_heads"].values == HEADS
    assert len(values["depth"].values) == BLOCKS


@pytest.mark.parametrize("kind", ["smooth", "rugged"])
def test_the_dynamic_programme_finds_the_best_of_all_networks(kind):
    """Only networks of one and two blocks are left, by a shape score that rules out others: they can be tried one by one."""
    made_up = Synthetic(kind, 3)
    made_up.shape[:, :, 2:] = -1e9
    made_up.shape[:, 3:] = -1e9
    values = list(itertools.product(range(10), range(10), range(4)))
    one = np.array(values)
    low, high = 150_000_000, 250_000_000
    best = -np.inf
    for (p, patch), (w, width) in itertools.product(enumerate(PATCHES), enumerate(WIDTHS[:3])):
        pairs = np.stack([np.repeat(one, len(one), axis=0), np.tile(one, (len(one), 1))], axis=1)
        for depth, blocks in ((0, one[:, None]), (1, pairs)):
            cost = macs(patch, width, depth + 1, (blocks[..., 0] + 1).sum(axis=1), (blocks[..., 1] + 1).sum(axis=1))
            blocks = blocks[(cost >= low) & (cost <= high)]
            if len(blocks):
                padded = np.zeros((len(blocks), BLOCKS, 3), dtype=int)
                padded[:, : depth + 1] = blocks
                full = [np.full(len(blocks), number) for number in (p, w, depth)]
                best = max(best, made_up.of_codes(*full, padded).max())
    assert np.isfinite(best)
    assert made_up.optimum(low, high) == pytest.approx(best, rel=1e-12)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["smooth", "rugged"])
def test_the_search_comes_near_the_optimum_and_beats_random_draws(model, kind):
    made_up = Synthetic(kind, 0)
    optimum = made_up.optimum(*WINDOW)
    sampler = vitas.SubnetSampler(model, flops=WINDOW)
    found = []
    for seed in range(3):
        evolution = vitas.Evolution(model, flops=WINDOW, seed=seed)
        for _ in range(2000):
            (subnet,) = evolution.ask()
            evolution.tell(subnet, float(made_up.of(evolution.space, evolution.space.encode(subnet)[None])[0]))
        result = evolution.result()
        assert len(result.scores) == 2000
        codes = np.array([evolution.space.encode(subnet) for subnet in result.scores])
        assert sampler.contains(codes).all()
        found.append(result.scores[result.best]["accuracy"] / optimum)
    drawn = made_up.of(sampler.space, sampler.draw(2000, np.random.default_rng(0))).max() / optimum
    assert max(found) <= 1 + 1e-12
    assert np.median(found) > (0.99 if kind == "smooth" else 0.85)
    assert min(found) > drawn + 0.1

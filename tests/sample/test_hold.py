"""`fixed` and `only`: draws follow the prior of what is left, also inside a budget, and counts count it."""

import math

import numpy as np
import pytest
import torch

import vitas
from tests.sample.test_budget import Made, deviations, made_by
from tests.superformer.test_deit import small
from vitas import (
    BudgetError,
    ChoiceError,
    SubnetSampler,
    cost_model,
    count_flops,
    count_subnets,
    sample_subnet,
    search_space,
)
from vitas.train import sandwich, supernet_report


def test_kinds_of_choices_are_opened_one_after_another():
    """What a user writes: everything at its largest, then one kind more in each phase, depth first."""
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8)
    kinds = ["depth", "blocks.*.mlp_dim", "embed_dim"]
    seen = []
    for opened in range(len(kinds) + 1):
        sampler = vitas.SubnetSampler(model, fixed=dict.fromkeys(kinds[opened:], "largest"))
        seen.append([sampler.sample(step) for step in range(100)])
    depths, widths, channels = range(1, 7), {48, 96, 144, 192}, {32, 48, 64, 80, 96}
    opened = [({6}, {192}, {96}), (depths, {192}, {96}), (depths, widths, {96}), (depths, widths, channels)]
    for drawn, found in zip(seen, opened, strict=True):
        assert {subnet["depth"] for subnet in drawn} == set(found[0])
        assert {subnet["blocks.0.mlp_dim"] for subnet in drawn} == found[1]
        assert {subnet["embed_dim"] for subnet in drawn} == found[2]


# -- exactness against enumeration -------------------------------------------------------------------------------------


def left_by_hand(space, held, codes, priors):
    """Which subnets are left, and their prior: the product over live choices of p, conditioned choice by choice."""
    inside, weights = np.ones(len(codes), dtype=bool), np.ones(len(codes))
    for k, (name, choice) in enumerate(space.choices.items()):
        allowed = np.array([value in held.get(name, choice.values) for value in choice.values])
        p = np.where(allowed, choice.p, 0.0)
        p = p / p.sum() if p.any() else allowed / allowed.sum()
        live = codes[:, k] >= 0
        inside &= ~live | allowed[codes[:, k]]
        weights *= np.where(live, p[codes[:, k]], 1.0)
    assert weights[inside].sum() == pytest.approx(1)
    return inside, weights


def held_at_random(space, rng):
    """About half of the choices with some of their values."""
    held = {}
    for name, choice in space.choices.items():
        if rng.random() < 0.5:
            values = rng.permutation(choice.values)[: rng.integers(1, len(choice.values) + 1)]
            held[name] = [value.item() for value in values]
    fixed = {name: values[0] for name, values in held.items() if len(values) == 1}
    return held, {"fixed": fixed, "only": {name: values for name, values in held.items() if len(values) > 1}}


@pytest.mark.filterwarnings("ignore:depth law")
@pytest.mark.parametrize("seed", range(10))
def test_draws_and_counts_of_what_is_left_of_spaces_made_at_random(seed):
    rng = np.random.default_rng(seed)
    model = Made(rng)
    space, (codes, priors) = search_space(model), made_by(model)
    held, given = held_at_random(space, rng)
    left, priors = left_by_hand(space, held, codes, priors)
    costs = {"flops": cost_model(model).flops(codes), "params": cost_model(model).params(codes)}
    assert count_subnets(model, **given) == left.sum() == space.restrict(**given).size
    for measures in ((), ("flops",), ("flops", "params")):
        chosen = codes[left & (priors > 0)][rng.integers((left & (priors > 0)).sum())]  # so that a window is never empty
        windows, inside = {}, left.copy()
        for name in measures:
            (here,) = costs[name][(codes == chosen).all(axis=1)]
            windows[name] = (int(rng.integers(costs[name].min(), here + 1)), int(rng.integers(here, costs[name].max() + 1)))
            inside &= (costs[name] >= windows[name][0]) & (costs[name] <= windows[name][1])
        count = count_subnets(model, **windows, **given)
        assert (count, count.exact) == (inside.sum(), True)
        sampler = SubnetSampler(model, **windows, **given)
        assert np.array_equal(sampler.contains(codes), inside)
        draws = sampler.draw(5000, rng)
        expected = dict(zip((code.tobytes() for code in codes[inside]), priors[inside] / priors[inside].sum(), strict=True))
        seen = {key: 0 for key, p in expected.items() if p}
        for code in draws:
            seen[code.tobytes()] += 1
        assert deviations(list(seen.values()), [5000 * expected[key] for key in seen]) < 4


def test_without_a_budget_steps_and_single_draws_follow_the_same_prior():
    model = small(
        depth=[1, 2], mlp_dim=[3, 8], num_heads=2, private=None, patch_size=4, embed_dim=vitas.Dim([4, 8], p=[1, 3])
    )
    space = search_space(model)
    given = {"fixed": {"blocks.1.mlp_dim": 3}, "only": {"blocks.*.qkv_dim": [4, 6]}}
    codes = np.unique(space.canonical(np.indices([2] * len(space)).reshape(len(space), -1).T), axis=0)
    left, priors = left_by_hand(space, {"blocks.1.mlp_dim": [3]}, codes, None)
    sampler, generator = SubnetSampler(model, seed=3, **given), torch.Generator().manual_seed(1)
    by_step = [sampler.sample(step, activate=False) for step in range(2000)]
    single = [sample_subnet(model, generator=generator, activate=False, **given) for _ in range(1000)]
    for drawn in (by_step, single):
        seen = {code.tobytes(): 0 for code in codes[left]}
        for subnet in drawn:
            seen[space.encode(subnet).tobytes()] += 1
        assert deviations(list(seen.values()), len(drawn) * priors[left]) < 4
    again = SubnetSampler(model, seed=3, **given)
    assert by_step[::-500] == [again.sample(step, activate=False) for step in range(1999, -1, -500)]


def test_holding_what_is_not_always_live_leaves_the_depth_as_it_was():
    model = small(depth=range(1, 4))
    sampler = SubnetSampler(model, fixed={"blocks.*": "smallest"})
    depths = [sampler.sample(step, activate=False)["depth"] for step in range(3000)]
    assert abs(deviations([depths.count(depth) for depth in (1, 2, 3)], [1000] * 3)) < 4


def test_percentages_are_of_the_whole_space_and_an_empty_window_says_what_is_left():
    model = small()
    whole, held = SubnetSampler(model, flops="50%"), SubnetSampler(model, flops="50%", fixed={"patch_size": 4})
    assert held.windows == whole.windows
    assert {held.sample(step)["patch_size"] for step in range(50)} == {4}
    assert count_subnets(model, flops="50%", fixed={"depth": 1}) == count_subnets(
        model, flops=whole.windows["flops"], fixed={"depth": 1}
    )
    codes = [search_space(model).encode(s) for s in {held.sample(step) for step in range(300)}]
    least = min(cost_model(model).flops(np.array(codes)))
    with pytest.raises(BudgetError, match="the subnets that fixed and only leave reach from") as error:
        sample_subnet(model, flops=10, fixed={"patch_size": 4, "embed_dim": 8})
    reach = int(str(error.value).split("reach from ")[1].split()[0].replace(",", ""))
    smallest = search_space(model).restrict(fixed={"patch_size": 4, "embed_dim": 8}).smallest()
    assert reach == count_flops(model, smallest).total >= least


def test_a_model_that_is_run_to_be_counted_is_held_too():
    class Own(torch.nn.Sequential):
        pass

    width, hidden = vitas.Dim([2, 4, 6], name="width"), vitas.Dim([3, 5], name="hidden")
    own = Own(vitas.nn.CyclicLinear(4, width), torch.nn.ReLU(), vitas.nn.CyclicLinear(width, hidden))
    sampler = SubnetSampler(own, flops="70%", inputs=torch.randn(1, 4), fixed={"hidden": 3}, only={"width": [4, 6]})
    assert sampler.windows["flops"].high == math.floor(0.7 * (4 * 6 + 6 * 5))
    assert {tuple(sampler.sample(step).values()) for step in range(20)} == {(4, 3)}


# -- who else takes them -----------------------------------------------------------------------------------------------


def test_policies_and_the_sandwich_keep_to_what_is_left():
    model = small()
    given = {"fixed": {"depth": 2}, "only": {"embed_dim": [4, 6]}}
    part = search_space(model).restrict(**given)
    assert sample_subnet(model, policy="largest", **given) == part.largest() == vitas.active_subnet(model)
    assert sample_subnet(model, policy="smallest", **given) == part.smallest()
    passes = list(sandwich(model, 3, step=5, seed=1, **given))
    assert (passes[0], passes[-1]) == (part.smallest(), part.largest())
    assert all(subnet in part for subnet in passes)
    sampler = SubnetSampler(model, seed=1, **given)
    assert list(sandwich(model, 3, step=5, sampler=sampler)) == passes
    with pytest.raises(ChoiceError, match="fixed and only: give them to the SubnetSampler"):
        sandwich(model, step=0, sampler=sampler, fixed={"depth": 2})


def test_the_report_keeps_to_what_is_left():
    model = small()
    part = search_space(model).restrict(fixed={"depth": 2}, only={"embed_dim": [4, 6], "blocks.*.mlp_dim": [8]})
    scored = []

    def evaluate(model):
        scored.append(vitas.active_subnet(model))
        return 1.0

    given = {"fixed": {"depth": 2, "blocks.*.mlp_dim": 8}, "only": {"embed_dim": [4, 6]}}
    report = supernet_report(model, evaluate, n_random=4, **given)
    assert scored[0] == part.smallest()
    assert scored[1]["embed_dim"] == 6
    assert scored[2] == part.largest()
    assert len(scored) == 7
    assert all(subnet in part for subnet in scored)
    expected = np.zeros(8)
    for width in (4, 6):
        search_space(model).choices["embed_dim"].active = width
        expected[search_space(model).choices["embed_dim"].channels()] += 1 / 2
    np.testing.assert_allclose(report.updates["embed_dim"], expected)
    assert report.spread["embed_dim"] == pytest.approx(2 * np.ptp(expected))
    assert report.spread["blocks.0.mlp_dim"] == 0
    trained = [search_space(model).largest(), part.largest()]
    counted = supernet_report(model, evaluate, trained=trained, retrained={trained[0]: 0.5}, **given)
    assert counted.passes["embed_dim"] == 2
    assert "embed_dim=4" in counted.untouched
    assert not any(name.startswith("depth") for name in counted.untouched)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, **given: sample_subnet(model, **given),
        lambda model, **given: SubnetSampler(model, **given),
        lambda model, **given: sandwich(model, step=0, **given),
        lambda model, **given: count_subnets(model, **given),
        lambda model, **given: supernet_report(model, lambda model: 1.0, **given),
    ],
    ids=["sample_subnet", "SubnetSampler", "sandwich", "count_subnets", "supernet_report"],
)
def test_mistakes_are_answered_everywhere(call):
    model = small()
    with pytest.raises(ChoiceError, match=r"fixed: depth: expected one of 1, 2, 3, got 7 \(nearest: 3\)"):
        call(model, fixed={"depth": 7})
    with pytest.raises(ChoiceError, match="only: no choice matches this glob"):
        call(model, only={"block.*": ["largest"]})
    with pytest.raises(ChoiceError, match="depth: no value is left"):
        call(model, fixed={"depth": 1}, only={"depth": [2]})

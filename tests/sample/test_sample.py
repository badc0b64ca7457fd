import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

import vitas
from vitas import (
    ChoiceError,
    Dim,
    SubnetSampler,
    activate_subnet,
    active_subnet,
    create_superformer,
    sample_subnet,
    search_space,
    use_subnet,
)
from vitas.nn.linear import CyclicLinear


def micro(**overrides):
    return create_superformer("deit_micro", img_size=8, num_classes=3, **overrides)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Wrapper(nn.Module):
    """Wraps as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def side_of(model):
    return search_space(model).side


# -- sample_subnet -----------------------------------------------------------------------------------------------------


def test_a_random_subnet_is_drawn_as_the_space_draws_it_and_activated():
    model = micro()
    space = search_space(model)
    for seed in range(5):
        subnet = sample_subnet(model, generator=seeded(seed))
        assert subnet == space.sample(seeded(seed))
        assert active_subnet(model) == subnet


def test_the_largest_and_the_smallest():
    model = micro()
    space = search_space(model)
    for policy, subnet in (("smallest", space.smallest()), ("largest", space.largest())):
        assert sample_subnet(model, policy=policy) == subnet
        assert active_subnet(model) == subnet
    with pytest.raises(ChoiceError, match=r"policy: expected one of random, largest, smallest, got 'biggest'"):
        sample_subnet(model, policy="biggest")
    assert active_subnet(model) == space.largest()


@pytest.mark.parametrize("policy", ["random", "smallest"])
def test_activation_can_be_left_out(policy):
    model = micro(sharing="bilateral")
    largest = active_subnet(model)
    for seed in range(5):
        subnet = sample_subnet(model, policy=policy, activate=False, generator=seeded(seed))
        assert subnet != largest
        assert active_subnet(model) == largest
        assert side_of(model) == "left"


def test_every_draw_gives_another_subnet_and_torchs_seed_repeats_them():
    model = micro()
    torch.manual_seed(0)
    first = [sample_subnet(model) for _ in range(20)]
    torch.manual_seed(0)
    assert [sample_subnet(model) for _ in range(20)] == first
    assert len(set(first)) > 15


def test_nothing_global_is_touched_when_a_generator_is_given():
    model = micro(sharing="bilateral")
    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    sample_subnet(model, generator=seeded(0))
    SubnetSampler(model).sample(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (repr(np.random.get_state()), random.getstate()) == before[1:]


def test_bilateral_sharing_draws_both_sides_evenly():
    model, generator = micro(sharing="bilateral"), seeded(0)
    sides = []
    for _ in range(200):
        sample_subnet(model, generator=generator)
        sides.append(side_of(model))
        assert {choice.side for choice in search_space(model).choices.values() if isinstance(choice, Dim)} == {sides[-1]}
    assert 100 - 3.9 * 50**0.5 < sides.count("left") < 100 + 3.9 * 50**0.5  # once in 10,000 generators outside


def test_the_side_is_drawn_independently_of_the_subnet():
    width = Dim([1, 2, 4, 8], sharing="bilateral")
    model, generator = nn.Sequential(CyclicLinear(3, width)), seeded(1)
    seen = set()
    for _ in range(100):
        sample_subnet(model, generator=generator)
        seen.add((width.active, width.side))
    assert seen == {(value, side) for value in width.values for side in ("left", "right")}


def test_policies_without_chance_use_the_left_side():
    model = micro(sharing="bilateral")
    for policy in ("largest", "smallest"):
        search_space(model).activate(search_space(model).largest(), side="right")
        sample_subnet(model, policy=policy)
        assert side_of(model) == "left"


@pytest.mark.parametrize(
    "ask",
    [
        sample_subnet,
        SubnetSampler,
        active_subnet,
        lambda model: activate_subnet(model, {}),
        lambda model: use_subnet(model, {}).__enter__(),
    ],
)
def test_a_model_without_choices_is_refused(ask):
    with pytest.raises(ChoiceError, match=r"Linear has no choices: build it from vitas\.nn layers .*vitas\.wrap"):
        ask(nn.Linear(2, 2))


# -- SubnetSampler -----------------------------------------------------------------------------------------------------


def test_a_sampler_is_a_pure_function_of_seed_and_step():
    model, other = micro(sharing="bilateral"), micro(sharing="bilateral")
    sampler = SubnetSampler(model, seed=7)
    forwards = {}
    for step in range(20):
        forwards[step] = sampler.sample(step), side_of(model)
        assert active_subnet(model) == forwards[step][0]
    torch.manual_seed(99)
    resumed = SubnetSampler(other, seed=7)  # another process, another order
    for step in reversed(range(20)):
        assert (resumed.sample(step), side_of(other)) == forwards[step]
    assert len({subnet for subnet, _ in forwards.values()}) > 15
    assert {side for _, side in forwards.values()} == {"left", "right"}


def test_another_seed_gives_other_subnets():
    model = micro()
    one, other = SubnetSampler(model, seed=1), SubnetSampler(model, seed=2)
    assert sum(one.sample(step) == other.sample(step) for step in range(20)) < 3
    assert one.sample(2) != other.sample(1)  # (1, 2) is not (2, 1)


def test_a_sampler_follows_the_prior():
    width = Dim([2, 4, 8], p=[1, 2, 7])
    sampler = SubnetSampler(nn.Sequential(CyclicLinear(3, width)))
    n = 1500
    drawn = [sampler.sample(step)["0.out_dim"] for step in range(n)]
    chi_square = sum((drawn.count(value) - n * p) ** 2 / (n * p) for value, p in zip(width.values, width.p, strict=True))
    assert chi_square < 18.4  # 2 degrees of freedom: once in 10,000 seeds above


def test_a_sampler_can_leave_the_model_alone():
    model = micro(sharing="bilateral")
    before = active_subnet(model)
    sampler = SubnetSampler(model)
    drawn = [sampler.sample(step, activate=False) for step in range(5)]
    assert (active_subnet(model), side_of(model)) == (before, "left")
    assert drawn == [sampler.sample(step) for step in range(5)]


@pytest.mark.parametrize("number", [-1, 0.5, "3", None, True, 2.0])
def test_a_sampler_takes_whole_seeds_and_steps_only(number):
    model = micro()
    with pytest.raises(ChoiceError, match="seed: expected an int of at least 0, got "):
        SubnetSampler(model, seed=number)
    with pytest.raises(ChoiceError, match="step: expected an int of at least 0, got "):
        SubnetSampler(model).sample(number)


def test_a_sampler_takes_numpy_and_large_numbers():
    model = micro()
    assert SubnetSampler(model, seed=np.int64(3)).sample(np.int32(4)) == SubnetSampler(model, seed=3).sample(4)
    SubnetSampler(model, seed=2**80).sample(2**40)


# -- activate_subnet, active_subnet ------------------------------------------------------------------------------------


def test_activation_takes_subnets_and_plain_mappings_and_sides():
    model = micro(sharing="bilateral")
    subnet = sample_subnet(model, generator=seeded(3), activate=False)
    for values in (subnet, dict(subnet)):
        for side in ("right", "left"):
            activate_subnet(model, values, side=side)
            assert (active_subnet(model), side_of(model)) == (subnet, side)
    activate_subnet(model, subnet, side="right")
    activate_subnet(model, subnet)
    assert side_of(model) == "left"


@pytest.mark.parametrize(
    ("change", "side", "message"),
    [
        ({"embed_dim": 33}, "left", r"embed_dim: expected one of 32, 48, 64, 80, 96, got 33 \(nearest: 32\)"),
        ({"width": 32}, "left", "unknown choice 'width'; "),
        ({}, "centre", "side: expected one of left, right, got 'centre'"),
    ],
)
def test_a_refused_activation_changes_nothing(change, side, message):
    model = micro(sharing="bilateral")
    before = sample_subnet(model, generator=seeded(4))
    activate_subnet(model, before, side="right")
    for attempt in (activate_subnet, lambda *arguments, **side: use_subnet(*arguments, **side).__enter__()):
        with pytest.raises(ChoiceError, match=message):
            attempt(model, {**search_space(model).largest(), **change}, side=side)
        assert (active_subnet(model), side_of(model)) == (before, "right")


def test_a_side_is_refused_where_no_dim_has_two():
    model = micro()
    with pytest.raises(ChoiceError, match="side: got 'right', but no Dim of this model is bilateral"):
        activate_subnet(model, search_space(model).smallest(), side="right")
    assert active_subnet(model) == search_space(model).largest()


# -- use_subnet --------------------------------------------------------------------------------------------------------


def test_what_was_active_comes_back_after_nested_blocks():
    model = micro(sharing="bilateral")
    outer, first, second = (sample_subnet(model, generator=seeded(seed), activate=False) for seed in (1, 2, 3))
    activate_subnet(model, outer, side="right")
    with use_subnet(model, first) as active:
        assert active == first
        assert (active_subnet(model), side_of(model)) == (first, "left")
        with use_subnet(model, second, side="right"):
            assert (active_subnet(model), side_of(model)) == (second, "right")
            sample_subnet(model)
        assert (active_subnet(model), side_of(model)) == (first, "left")
    assert (active_subnet(model), side_of(model)) == (outer, "right")


def test_what_was_active_comes_back_after_an_exception():
    model = micro(sharing="bilateral")
    outer, inner = (sample_subnet(model, generator=seeded(seed), activate=False) for seed in (1, 2))
    activate_subnet(model, outer, side="right")

    def work():
        with use_subnet(model, inner):
            assert active_subnet(model) == inner
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert (active_subnet(model), side_of(model)) == (outer, "right")


def test_choices_that_are_not_live_come_back_too():
    model = micro()
    space = search_space(model)
    space.activate(space.largest())
    space.choices["depth"].active = 1
    space.choices["blocks.5.mlp_dim"].active = 48
    with use_subnet(model, space.largest()):
        assert space.choices["blocks.5.mlp_dim"].active == 192
    assert space.choices["blocks.5.mlp_dim"].active == 48


def test_outputs_belong_to_the_subnet_of_the_block():
    model, x = micro().eval(), torch.randn(2, 3, 8, 8)
    small, large = search_space(model).smallest(), search_space(model).largest()
    expected = {}
    for subnet in (small, large):
        activate_subnet(model, subnet)
        expected[subnet] = model(x)
    with use_subnet(model, small):
        assert torch.equal(model(x), expected[small])
    assert torch.equal(model(x), expected[large])
    assert not torch.allclose(expected[small], expected[large])


# -- wrappers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel, lambda model: Wrapper(Wrapper(model))])
def test_every_function_works_through_wrappers(wrap):
    model = micro()
    wrapped = wrap(model)
    assert sample_subnet(wrapped, generator=seeded(0)) == sample_subnet(model, generator=seeded(0))
    smallest = sample_subnet(wrapped, policy="smallest")
    assert active_subnet(model) == active_subnet(wrapped) == smallest
    with use_subnet(wrapped, search_space(model).largest()) as largest:
        assert active_subnet(model) == largest
    assert active_subnet(model) == smallest
    activate_subnet(wrapped, largest)
    assert active_subnet(model) == largest
    assert SubnetSampler(wrapped, seed=3).sample(4) == SubnetSampler(model, seed=3).sample(4) == active_subnet(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_sampled_by_itself_and_runs_the_same_subnets(copied):
    model = micro(private="qk").eval()
    sample_subnet(model, policy="smallest")
    other, x = copied(model), torch.randn(2, 3, 8, 8)
    for seed in range(3):
        subnet = sample_subnet(other, generator=seeded(seed))
        assert active_subnet(model) == search_space(model).smallest()
        with use_subnet(model, subnet):
            assert torch.equal(other(x), model(x))


def test_the_functions_are_public():
    for name in ("sample_subnet", "SubnetSampler", "activate_subnet", "active_subnet", "use_subnet"):
        assert name in vitas.__all__


@pytest.mark.parametrize("budget", [{}, {"flops": "50%"}])
@pytest.mark.parametrize("codes", [3, None, "largest", [[0, 1]], torch.zeros(3), [0.5]])
def test_what_are_no_codes_are_in_no_budget(budget, codes):
    with pytest.raises(ChoiceError, match=r"codes: expected (rows of )?21 ints"):
        SubnetSampler(micro(), **budget).contains(codes)

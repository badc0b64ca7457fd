import copy

import pytest
import torch
from torch import nn

from tests.contract import randomize
from tests.superformer.test_deit import small
from vitas import ChoiceError, SubnetSampler, active_subnet, create_superformer, search_space
from vitas.train.sandwich import sandwich


def test_activates_the_smallest_random_ones_and_the_largest():
    model = small()
    space = search_space(model)
    seen = []
    for subnet in sandwich(model, 3, step=4):
        assert active_subnet(model) == subnet
        seen.append(subnet)
    assert len(seen) == 5
    assert (seen[0], seen[-1]) == (space.smallest(), space.largest())
    assert len(set(seen)) == 5
    first = list(sandwich(model, 3, step=4, largest_last=False))
    assert first == [seen[-1], *seen[:-1]]


def test_is_a_function_of_seed_and_step():
    def drawn(**options):
        return list(sandwich(small(), **options))

    assert drawn(step=7, seed=1) == drawn(step=7, seed=1)
    assert drawn(step=7, seed=1)[1:3] != drawn(step=8, seed=1)[1:3]
    assert drawn(step=7, seed=1)[1:3] != drawn(step=7, seed=2)[1:3]
    one_after_the_other = [subnet for step in range(50) for subnet in drawn(step=step)[1:3]]
    assert len(set(one_after_the_other)) > 80  # steps do not repeat each other's draws


@pytest.mark.parametrize("twin", [False, True])
def test_a_sampler_of_another_model_is_refused_and_nothing_is_activated(twin):
    model = small()
    other = copy.deepcopy(model) if twin else create_superformer("twins_micro")
    sampler = SubnetSampler(other)
    with pytest.raises(ChoiceError, match="sampler: expected a SubnetSampler of this model, got one of another model"):
        sandwich(model, step=0, sampler=sampler)
    with pytest.raises(ChoiceError, match="sampler: expected a SubnetSampler of this model, got 3"):
        sandwich(model, step=0, sampler=3)
    assert active_subnet(model) == search_space(model).largest()
    assert len(list(sandwich(torch.compile(model, backend="eager"), step=0, sampler=SubnetSampler(model)))) == 4


def test_takes_a_sampler_of_ones_own():
    model = small()
    sampler = SubnetSampler(model, seed=9)
    _, *between, _ = sandwich(model, 2, step=3, sampler=sampler)
    assert between == [sampler.sample(6, activate=False), sampler.sample(7, activate=False)]


def test_the_ends_have_what_is_said_of_them_and_random_ones_do_not():
    model = create_superformer("deit_micro", num_classes=4, img_size=16, patch_size=[4, 8])
    space = search_space(model)
    held = {"smallest": {"patch_size": "largest"}, "largest": {"patch_size": 4, "blocks.*.num_heads": "smallest"}}
    first, *between, last = sandwich(model, 8, step=2, **held)
    assert first == space.subnet({"patch_size": 8}, fill="smallest")
    heads = {name: choice.smallest for name, choice in space.choices.items() if name.endswith("num_heads")}
    assert heads
    assert last == active_subnet(model) == space.subnet({"patch_size": 4, **heads}, fill="largest")
    assert between == list(sandwich(model, 8, step=2))[1:-1]
    with pytest.raises(ChoiceError, match=r"^largest: .*patch_size: expected one of 4, 8, got 5"):
        sandwich(model, step=0, largest={"patch_size": 5})
    with pytest.raises(ChoiceError, match=r"^smallest: .*depth"):
        sandwich(model, step=0, smallest={"dept": 2})


def test_in_bilateral_sharing_the_ends_take_turns():
    model = small(sharing="bilateral")
    space = search_space(model)
    sides = [[space.side for _ in sandwich(model, 2, step=step)] for step in range(20)]
    assert [ends[0] for ends in sides] == [ends[-1] for ends in sides] == ["left", "right"] * 10
    assert {side for _, *between, _ in sides for side in between} == {"left", "right"}


def test_the_iterator_may_be_left_early_and_zero_random_ones_are_fine():
    model = small()
    subnet = next(sandwich(model, 0, step=0))
    assert active_subnet(model) == subnet == search_space(model).smallest()
    assert len(list(sandwich(model, 0, step=0))) == 2


def test_equal_gradients_with_and_without_checkpointing():
    model = randomize(small(private=None).double())
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    for one in (model, checkpointed):
        loss = 0
        for step in range(3):
            for _ in sandwich(one, step=step):
                loss = loss + one(x).square().sum()  # one backward pass for all, later: every graph keeps its subnet
        loss.backward()
    for (name, a), b in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("model", [nn.Linear(2, 2), create_superformer("deit_tiny")])
def test_a_model_without_choices_is_refused_at_once(model):
    with pytest.raises(ChoiceError, match="choice"):
        sandwich(model, step=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": -1}, "step: expected an int of at least 0, got -1"),
        ({"step": 1.0}, "step: expected an int of at least 0, got 1.0"),
        ({"step": 0, "n_random": True}, "n_random: expected an int of at least 0, got True"),
        ({"step": 0, "seed": -3}, "seed: expected an int of at least 0, got -3"),
    ],
)
def test_bad_numbers_are_refused_at_once(options, message):
    with pytest.raises(ChoiceError, match=message):
        sandwich(small(), **options)

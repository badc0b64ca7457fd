"""A forward pass belongs to the subnet that was active when it ran."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.contract import randomize
from tests.superformer.test_deit import small
from vitas import SubnetSampler, activate_subnet, sample_subnet, search_space, use_subnet
from vitas.errors import CheckpointError


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected):
    assert set(got) == set(expected)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-11, atol=1e-13, msg=name)


def two_passes(model, x, activations):
    """Activate and run several subnets, then go back once through the sum of the losses."""
    loss = 0
    for subnet, side in activations:
        with use_subnet(model, subnet, side=side):
            loss = loss + model(x).square().sum()
    loss.backward()  # outside of use_subnet: another subnet is active
    return gradients(model)


def separately(model, x, activations):
    """Run and go back through one after the other."""
    for subnet, side in activations:
        activate_subnet(model, subnet, side=side)
        model(x).square().sum().backward()
    return gradients(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sharing", ["cyclic", "bilateral"])
def test_two_activations_and_one_backward_give_the_sum_of_the_gradients(sharing, checkpointing):
    model = randomize(small(sharing=sharing).double())
    reference = copy.deepcopy(model)
    model.set_grad_checkpointing(checkpointing)
    space, generator = search_space(model), torch.Generator().manual_seed(0)
    first, second = space.sample(generator), space.sample(generator)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    sides = ("left", "right") if sharing == "bilateral" else (None, None)
    for pair in ([(first, sides[0]), (second, sides[1])], [(first, sides[0]), (first, sides[1])]):
        model.zero_grad(set_to_none=True), reference.zero_grad(set_to_none=True)
        assert_same(two_passes(model, x, pair), separately(reference, x, pair))


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_checkpointing_recomputes_the_subnet_that_ran_under_autocast(dtype):
    model = randomize(small())
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    subnet = sample_subnet(model, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 2, 8, 8)
    for one in (model, twin):
        activate_subnet(one, subnet)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = one(x).square().sum()
        sample_subnet(one, policy="smallest")
        loss.backward()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, gradients(twin)[name]), name


def test_the_active_subnet_is_put_back_after_a_recomputation():
    model = randomize(small())
    model.set_grad_checkpointing()
    sample_subnet(model, policy="largest")
    loss = model(torch.randn(2, 2, 8, 8)).sum()
    sample_subnet(model, policy="smallest")
    loss.backward()
    assert search_space(model).active() == search_space(model).smallest()


def test_a_foreign_checkpoint_around_the_model_notices_the_other_side_at_equal_size():
    model = randomize(small(sharing="bilateral"))
    subnet = search_space(model).smallest()
    x = torch.randn(2, 2, 8, 8, requires_grad=True)
    activate_subnet(model, subnet, side="left")
    out = checkpoint(model, x, use_reentrant=False)
    activate_subnet(model, subnet, side="right")
    with pytest.raises(RuntimeError, match="different metadata"):
        out.sum().backward()


def test_reentrant_checkpointing_is_refused():
    model = randomize(small())
    sample_subnet(model, policy="smallest")
    out = checkpoint(model, torch.randn(2, 2, 8, 8, requires_grad=True), use_reentrant=True)
    with pytest.raises(CheckpointError, match="reentrant checkpointing recomputes another subnet than the one that ran"):
        out.sum().backward()


def test_every_parameter_gets_gradient_within_some_hundred_steps():
    model = small()
    sampler = SubnetSampler(model, seed=0)
    seen = set()
    x = torch.randn(1, 2, 8, 8)
    for step in range(200):
        sampler.sample(step)
        model.zero_grad(set_to_none=True)
        model(x).square().sum().backward()
        seen |= {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        if len(seen) == len(list(model.parameters())):
            break
    assert seen == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("sharing", "low", "high"), [("cyclic", 5, 6), ("ordinal", 1, 10)])
def test_update_counts_of_the_channels_show_the_sharing(sharing, low, high):
    """Tenths of 20 channels: METHOD's 5:6 for cyclic runs, 1:10 for ordinal ones, within sampling noise."""
    model = small(embed_dim=range(2, 21, 2), sharing=sharing, num_heads=1, private=None, depth=1)
    sampler = SubnetSampler(model, seed=0)
    updates = torch.zeros(20)
    steps = 3000
    for step in range(steps):
        sampler.sample(step)
        model.head.weight.grad = None
        weights = model.head.active_weights()["weight"]
        weights.sum().backward()
        updates += model.head.weight.grad.abs().sum(0) > 0
    uses = updates / steps * 10
    noise = 5 * (10 * 10 * 0.25 / steps) ** 0.5  # five standard deviations of the mean of `steps` draws, times ten
    assert uses.min().item() == pytest.approx(low, abs=noise)
    assert uses.max().item() == pytest.approx(high, abs=noise)

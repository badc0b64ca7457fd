"""Costs that were set up once are not used after the model has changed."""

import copy
import pickle

import pytest
import torch
from torch import nn

import vitas
from tests.superformer.test_deit import small
from vitas import SubnetSampler, VitasError, cost_model, latency_table, search_space

QUICK = {"warmup": 0, "runs": 1, "calibrate": 0}


def users(model, images):
    """All that is set up once."""
    sampler, costs, table = SubnetSampler(model, flops="60%"), cost_model(model), latency_table(model, images, **QUICK)
    largest = search_space(model).largest()
    return {
        "SubnetSampler": lambda: sampler.sample(3),
        "cost_model": lambda: (costs.flops(largest), costs.params(largest)),
        "latency_table": lambda: table.latency_ms(largest),
    }


@pytest.mark.extras
@pytest.mark.parametrize("change", ["image size", "more classes", "fewer classes"])
def test_a_wrapped_model_of_another_size_or_head_needs_new_ones(change):
    """What a user writes: progressive resizing."""
    timm = pytest.importorskip("timm")
    model = vitas.wrap(timm.create_model("test_vit", num_classes=5, img_size=32), depth="auto")
    made = users(model, torch.randn(1, 3, 32, 32))
    for use in made.values():
        use()
    if change == "image size":
        model.set_input_size((64, 64))
    else:
        model.reset_classifier(1000 if change == "more classes" else 1)
    for what, use in made.items():
        with pytest.raises(VitasError, match=f"make a new {what}: the .* has changed"):
            use()
    sampler, images = SubnetSampler(model, flops="60%"), torch.randn(1, 3, *model.image_shape()[1:])
    for step in range(10):
        subnet = sampler.sample(step)
        ran = vitas.count_flops(model, subnet, inputs=images).total
        assert (
            cost_model(model).flops(subnet) == vitas.count_flops(model, subnet).total == ran <= sampler.windows["flops"].high
        )


def test_an_assigned_head_and_a_part_deep_inside_are_noticed():
    for change in ("head", "block"):
        model = small()
        made = users(model, torch.randn(1, 2, 8, 8))
        if change == "head":
            model.head = vitas.nn.CyclicLinear(search_space(model).choices["embed_dim"], 50)
        else:
            model.blocks[1].mlp = nn.Identity()
        for what, use in made.items():
            with pytest.raises(VitasError, match=f"make a new {what}"):
                use()


def test_what_costs_as_much_as_before_goes_on():
    model = small()
    made = users(model, torch.randn(1, 2, 8, 8))
    before = {what: use() for what, use in made.items()}
    model.head = copy.copy(model.head)  # another module of the same sizes
    model.double().eval()
    model.load_state_dict(small().state_dict(), assign=True)
    model.register_buffer("seen", torch.zeros(3))
    assert {what: use() for what, use in made.items()} == before


def test_copies_and_pickles_watch_their_own_model():
    model = small()
    for twin in (copy.deepcopy, lambda sampler: pickle.loads(pickle.dumps(sampler))):
        sampler = twin(SubnetSampler(model, flops="60%"))
        assert sampler.sample(2) == SubnetSampler(model, flops="60%").sample(2)
        sampler.model.blocks[1].mlp = nn.Identity()
        with pytest.raises(VitasError, match="make a new SubnetSampler"):
            sampler.sample(2)
        SubnetSampler(model, flops="60%").sample(2)


def test_without_a_budget_nothing_is_old_and_what_was_learned_is():
    model = small()
    free = SubnetSampler(model)
    images = torch.randn(1, 2, 8, 8)
    own = nn.Sequential(nn.Identity(), small())
    run = SubnetSampler(own, flops="90%", inputs=images)
    model.head = vitas.nn.CyclicLinear(search_space(model).choices["embed_dim"], 50)
    own[1].head = vitas.nn.CyclicLinear(search_space(own).choices["embed_dim"], 4)
    assert free.sample(0) == SubnetSampler(model).sample(0)
    with pytest.raises(VitasError, match="make a new SubnetSampler"):
        run.sample(0)

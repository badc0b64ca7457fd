import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract import randomize
from tests.superformer.test_deit import small
from vitas import ChoiceError, SubnetSampler, sample_subnet
from vitas.train.unused import skip_unused, touch_unused

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "sgd nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=True, amsgrad=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, weight_decay=0.1),
}


def weighted(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(4, 6, generator=generator))


def gradients(steps, columns):
    """Random gradients, zero outside `columns(step)`."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        gradient = torch.zeros(4, 6)
        chosen = columns(step)
        gradient[:, chosen] = torch.randn(4, len(chosen), generator=generator)
        yield gradient


def whole_state(optimizer, parameter):
    state = optimizer.state[parameter]
    return {key: value.clone() for key, value in state.items() if torch.is_tensor(value) and value.shape == parameter.shape}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_with_zero_gradient_keep_value_and_state_and_the_others_move_as_ever(name):
    parameter, plain = weighted(), weighted()
    optimizer, other = OPTIMIZERS[name]([parameter]), OPTIMIZERS[name]([plain])
    skip_unused(optimizer)
    for step, gradient in enumerate(gradients(6, lambda step: [[0, 1, 2], [2, 3]][step % 2])):
        used = gradient != 0
        before, state = parameter.detach().clone(), whole_state(optimizer, parameter) if step else {}
        parameter.grad = gradient.clone()
        with torch.no_grad():  # the same optimiser from the same place, without skipping
            plain.copy_(before)
        plain.grad = gradient.clone()
        if step:
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
        other.step()
        assert torch.equal(parameter[~used], before[~used])
        torch.testing.assert_close(parameter[used], plain[used], rtol=0, atol=0)
        assert not torch.equal(plain[~used], before[~used])  # they would have moved
        for key, value in whole_state(optimizer, parameter).items():
            expected = state.get(key, torch.zeros_like(value))
            assert torch.equal(value[~used], expected[~used]), key
            assert torch.equal(value[used], other.state[plain][key][used]), key


@pytest.mark.parametrize("per", ["element", "tensor"])
def test_a_gradient_of_zeros_becomes_none(per):
    used, unused = weighted(0), weighted(1)
    optimizer = OPTIMIZERS["adamw"]([used, unused])
    skip_unused(optimizer, per=per)
    before = unused.detach().clone()
    for gradient in gradients(2, lambda step: [0, 1]):
        used.grad, unused.grad = gradient, torch.zeros_like(unused)
        optimizer.step()
        assert unused.grad is None
    assert torch.equal(unused, before)
    assert unused not in optimizer.state
    assert optimizer.state[used]["step"] == 2


def test_per_tensor_leaves_single_weights_alone():
    one, other = weighted(), weighted()
    skipping, plain = OPTIMIZERS["sgd"]([one]), OPTIMIZERS["sgd"]([other])
    skip_unused(skipping, per="tensor")
    for gradient in gradients(3, lambda step: [step]):
        one.grad, other.grad = gradient.clone(), gradient.clone()
        skipping.step()
        plain.step()
    assert torch.equal(one, other)


def test_it_can_be_removed():
    one, other = weighted(), weighted()
    skipping, plain = OPTIMIZERS["sgd"]([one]), OPTIMIZERS["sgd"]([other])
    skip_unused(skipping).remove()
    one.grad, other.grad = (next(gradients(1, lambda step: [0])) for _ in range(2))
    skipping.step()
    plain.step()
    assert torch.equal(one, other)


def test_on_a_superformer_only_what_the_accumulated_subnets_used_moves():
    model = randomize(small(private=None, patch_size=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    skip_unused(optimizer)
    sampler = SubnetSampler(model, seed=0)
    x, labels = torch.randn(4, 2, 8, 8), torch.arange(4)
    skipped = 0
    for step in range(0, 20, 2):
        for half in range(2):
            sampler.sample(step + half)
            F.cross_entropy(model(x), labels).backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        for name, parameter in model.named_parameters():
            unused = torch.ones_like(parameter, dtype=torch.bool) if parameter.grad is None else parameter.grad == 0
            assert torch.equal(parameter[unused], before[name][unused]), name
            skipped += int(unused.sum())
            assert not (parameter == before[name])[~unused].any(), name
        optimizer.zero_grad()
    assert skipped > 1000


def test_works_with_a_gradient_scaler():
    model = randomize(small())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    skip_unused(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    sample_subnet(model, policy="smallest")
    before = model.head.weight.detach().clone()
    scaler.scale(F.cross_entropy(model(torch.randn(4, 2, 8, 8)), torch.arange(4))).backward()
    scaler.step(optimizer)
    scaler.update()
    moved = (model.head.weight != before).all(dim=0)
    assert moved.sum() == 4  # the smallest of 4, 6, 8


def test_closures_and_other_words_are_refused():
    parameter = weighted()
    optimizer = OPTIMIZERS["sgd"]([parameter])
    with pytest.raises(ChoiceError, match=r"expected a torch\.optim\.Optimizer, got None"):
        skip_unused(None)
    with pytest.raises(ChoiceError, match="per: expected one of element, tensor, got 'tensors'"):
        skip_unused(optimizer, per="tensors")
    skip_unused(optimizer)
    with pytest.raises(ChoiceError, match="was given a closure"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("outputs", ["tensor", "pair", "dict"])
def test_touching_changes_no_output_and_no_gradient(outputs):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            y = self.used(x)
            return {"tensor": y, "pair": (y, x.sum()), "dict": {"out": y, "name": "y"}}[outputs]

    model = Model()
    fired = []
    for parameter in model.parameters():
        node = parameter.view_as(parameter).grad_fn.next_functions[0][0]
        node.register_hook(lambda *_, node=node: fired.append(node))
    x = torch.randn(4, 3)

    def read():
        out = model(x)
        y = {"tensor": lambda: out, "pair": lambda: out[0], "dict": lambda: out["out"]}[outputs]()
        y.square().sum().backward()
        return y.detach()

    expected, gradient = read(), model.used.weight.grad.clone()
    assert len(fired) == 2
    model.zero_grad()
    hooks = touch_unused(model)
    assert torch.equal(read(), expected)
    assert torch.equal(model.used.weight.grad, gradient)
    assert model.unused.weight.grad is None
    assert len(fired) == 2 + 4  # every parameter is reached
    hooks.remove()
    read()
    assert len(fired) == 2 + 4 + 2
    with torch.no_grad():
        assert not copy.deepcopy(model)(x)["out" if outputs == "dict" else 0].requires_grad


def test_touching_survives_copies():
    model = randomize(small())
    touch_unused(model)
    twin = copy.deepcopy(model)
    sample_subnet(twin, policy="smallest")
    twin(torch.randn(2, 2, 8, 8)).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())

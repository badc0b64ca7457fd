"""What holds for every wrapped model, whichever library it comes from."""

import copy
import pickle

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.contract import macs, relative_error
from vitas import (
    check_records,
    count_flops,
    count_params,
    export_subnet,
    sample_subnet,
    search_space,
    use_subnet,
    wrap,
)

WHOLE = {"embed_dim": "auto", "depth": "auto"}


def some(model, n, seed=0):
    """Activate the smallest subnet, then random ones."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        yield sample_subnet(model, policy="random" if i else "smallest", generator=generator)


def tensors(outputs):
    """Return the tensors that a model returned."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def check_exports(model, x, **options):
    """The largest subnet is the model; exports are of its class, equal the active path and cost what is stated."""
    before = copy.deepcopy(model.state_dict())
    wrapped = wrap(model, **{**WHOLE, **options})
    assert all(torch.equal(a, b) for a, b in zip(tensors(wrapped(x)), tensors(model(x)), strict=True))
    state = wrapped.state_dict()
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in before)
    for _ in some(wrapped, 5):
        export = export_subnet(wrapped)
        assert type(export) is type(model)
        assert b"vitas" not in pickle.dumps(export).replace(b"vitas.plain", b"")
        outputs, expected = export(x), wrapped(x)
        assert type(outputs) is type(expected)
        assert all(relative_error(a, b) <= 1e-5 for a, b in zip(tensors(outputs), tensors(expected), strict=True))
        assert count_params(wrapped) == sum(parameter.numel() for parameter in export.parameters())
        assert count_flops(wrapped).total == macs(export, x[:1])


def check_silent_units(model, x, **options):
    """A subnet is the whole model without the units that it leaves out."""
    wrapped = wrap(model.double(), **{**WHOLE, **options})
    active = search_space(wrapped).active()
    worst = check_records(wrapped, x.double())
    assert worst <= 1e-12
    assert search_space(wrapped).active() == active


def check_gradients(model, x, **options):
    """Gradients are those of the export."""
    wrapped = wrap(model.double(), **{**WHOLE, **options})
    x = x[:1].double()
    for _ in some(wrapped, 2, seed=1):
        wrapped.zero_grad(set_to_none=True)
        export = export_subnet(wrapped)
        for one in (wrapped, export):
            sum(output.square().sum() for output in tensors(one(x))).backward()
        got = torch.cat([p.grad[p.grad != 0] for p in wrapped.parameters() if p.grad is not None])
        expected = torch.cat([p.grad[p.grad != 0] for p in export.parameters() if p.grad is not None])
        torch.testing.assert_close(got.sort().values, expected.sort().values, rtol=1e-9, atol=1e-12)


def check_counts(model, x, **options):
    """What is counted by running adds up, and is what is stated."""
    wrapped = wrap(model, **{**WHOLE, **options})
    for one in (model, wrapped):
        count = count_flops(one, inputs=x[:1])
        assert sum(count.by_module.values()) == count.total == macs(one, x[:1])
    stated, counted = count_flops(wrapped), count_flops(wrapped, inputs=x[:1])
    assert stated.by_operator == counted.by_operator


def check_copies(wrapped, x):
    """Copies and pickles have the subnet that was active."""
    sample_subnet(wrapped, policy="smallest")
    expected = tensors(wrapped(x))
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        sample_subnet(wrapped, policy="largest")
        assert all(torch.equal(a, b) for a, b in zip(tensors(twin(x)), expected, strict=True))
        sample_subnet(wrapped, policy="smallest")


def check_checkpointing(wrapped, x, enable):
    """Gradients are the same where activations are recomputed while another subnet is active; `enable` switches it on."""
    wrapped.double().train()
    gradients = []
    for recompute in (False, True):
        wrapped.zero_grad(set_to_none=True)
        if recompute:
            enable()
        with use_subnet(wrapped, search_space(wrapped).smallest()):
            torch.manual_seed(0)
            loss = sum(output.square().sum() for output in tensors(wrapped(x.double())))
        sample_subnet(wrapped, policy="largest")
        loss.backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in wrapped.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)

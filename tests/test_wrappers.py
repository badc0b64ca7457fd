"""DistributedDataParallel, torch.compile and EMA around a model change neither names nor the active subnet."""

import copy

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from tests.contract import randomize
from tests.superformer.test_deit import small
from vitas import active_subnet, count_flops, export_subnet, sample_subnet, search_space, use_subnet


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS = {
    "ddp": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "compile": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: torch.compile(DistributedDataParallel(model, find_unused_parameters=True), backend="eager"),
    "ema": lambda model: torch.optim.swa_utils.AveragedModel(model),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapping_at_any_moment_keeps_the_active_subnet_and_its_names(wrapper, one_process):
    model = randomize(small())
    subnet = sample_subnet(model, generator=torch.Generator().manual_seed(2))
    wrapped = WRAPPERS[wrapper](model)
    assert active_subnet(wrapped) == subnet
    assert list(search_space(wrapped).choices) == list(search_space(model).choices)
    other = sample_subnet(wrapped, generator=torch.Generator().manual_seed(3))
    assert active_subnet(wrapped) == other
    assert count_flops(wrapped).total == count_flops(model, other).total
    assert set(export_subnet(wrapped).state_dict()) == set(export_subnet(model, other).state_dict())


def test_ddp_trains_subnets_of_any_depth_and_leaves_unused_parameters_without_gradient(one_process):
    model = randomize(small().double())
    alone = copy.deepcopy(model)
    wrapped = WRAPPERS["ddp"](model)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    for policy in ("largest", "smallest"):
        sample_subnet(wrapped, policy=policy)
        model.zero_grad(set_to_none=True)
        wrapped(x).square().sum().backward()
        assert (model.blocks[2].mlp.fc1.weight.grad is None) == (policy == "smallest")
        sample_subnet(alone, policy=policy)
        alone.zero_grad(set_to_none=True)
        alone(x).square().sum().backward()
        for (name, got), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
            assert (got.grad is None) == (expected.grad is None), name
            if got.grad is not None:
                torch.testing.assert_close(got.grad, expected.grad)


def test_use_subnet_works_through_wrappers():
    model = randomize(small())
    compiled = torch.compile(model, backend="eager")
    before = active_subnet(model)
    with use_subnet(compiled, search_space(model).smallest()) as subnet:
        assert active_subnet(model) == subnet == search_space(model).smallest()
    assert active_subnet(model) == before

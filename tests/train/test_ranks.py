import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.superformer.test_deit import small
from vitas import ChoiceError, Dim, SubnetSampler, active_subnet, search_space
from vitas.train.ranks import RankSampler, deciding, guard_ranks


def test_depth_and_what_has_private_copies_decide_which_modules_run():
    assert set(deciding(small())) == {"depth", "patch_size", *(f"blocks.{i}.num_heads" for i in range(3))}
    assert set(deciding(small(private=None, patch_size=4))) == {"depth"}
    assert set(deciding(small(private=None, patch_size=4, depth=2))) == set()
    assert {"blocks.use.0", "blocks.use.1"} <= set(deciding(small(shift=False, depth=range(1, 3))))


def test_ranks_share_what_decides_and_differ_in_widths():
    model = small()
    common, space = set(deciding(model)), search_space(model)
    samplers = [RankSampler(model, seed=5, rank=rank) for rank in range(3)]
    different = 0
    for step in range(30):
        subnets = [sampler.sample(step) for sampler in samplers]
        assert subnets == [RankSampler(small(), seed=5, rank=rank).sample(step, activate=False) for rank in range(3)]
        assert active_subnet(model) == subnets[-1]
        assert all(subnet in space for subnet in subnets)
        assert len({tuple(subnet[name] for name in subnet if name in common) for subnet in subnets}) == 1
        assert {name: subnets[0][name] for name in subnets[0] if name in common} == {
            name: value
            for name, value in SubnetSampler(model, seed=5).sample(step, activate=False).items()
            if name in common
        }
        different += len(set(subnets))
    assert different > 70


def test_widths_follow_the_prior():
    dim = Dim([2, 4, 8], p=(0.5, 0.25, 0.25))
    model = small(embed_dim=dim)
    sampler = RankSampler(model, seed=0, rank=1)
    drawn = [sampler.sample(step, activate=False)["embed_dim"] for step in range(2000)]
    for value, p in zip(dim.values, dim.p, strict=True):
        assert drawn.count(value) / 2000 == pytest.approx(p, abs=5 * (p * (1 - p) / 2000) ** 0.5)


def test_sides_differ_too():
    model = small(sharing="bilateral")
    sampler = RankSampler(model, seed=0, rank=0)
    sides = set()
    for step in range(20):
        sampler.sample(step)
        sides.add(search_space(model).side)
    assert sides == {"left", "right"}


@pytest.fixture
def one_process(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_guard_looks_at_training_only_and_at_the_copys_own_choices(one_process, monkeypatch):
    model = small()
    compared = []
    gather = dist.all_gather
    monkeypatch.setattr(dist, "all_gather", lambda ranks, mine: (compared.append(mine.tolist()), gather(ranks, mine)))
    hooks = guard_ranks(model)
    twin = copy.deepcopy(model)
    x = torch.randn(1, 2, 8, 8)
    search_space(twin).activate(search_space(twin).smallest())
    model(x)
    twin(x)
    assert compared[0] != compared[1]
    with torch.no_grad():
        model(x)
    model.eval()(x)
    hooks.remove()
    model.train()(x)
    assert len(compared) == 2


def test_bad_input_is_refused():
    with pytest.raises(ChoiceError, match="rank: expected an int of at least 0, got -1"):
        RankSampler(small(), rank=-1)
    with pytest.raises(ChoiceError, match="choice"):
        RankSampler(nn.Linear(2, 2))
    with pytest.raises(ChoiceError, match="choice"):
        guard_ranks(nn.Linear(2, 2))
    with pytest.raises(ChoiceError, match="step"):
        RankSampler(small()).sample(-1)

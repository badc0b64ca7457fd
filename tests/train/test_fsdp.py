"""Fully sharded training (FSDP2) in two processes.

In double precision: of float32 FSDP2 asks the mean, and gloo gives the sum in torch 2.8.
"""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import fully_shard

from tests.ranks import run_ranks
from tests.train.test_ddp import MODELS, SAMPLERS, STEPS, WORLD, batch, build, make_optimizer, train_alone
from vitas import ChoiceError, plain, search_space
from vitas.train.ranks import guard_ranks
from vitas.train.unused import skip_unused


def sharded(name):
    model = build(name, torch.float64)
    mesh = dist.device_mesh.init_device_mesh("cpu", (WORLD,))
    for block in [part for part in model.modules() if isinstance(part, plain.Block)]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    guard_ranks(model)
    return model


def train_rank(rank, world, name, optimizer, sampling, way):
    model = sharded(name)
    optimizer = make_optimizer(optimizer, model)
    if way == "element":
        skip_unused(optimizer)
    sampler = SAMPLERS[sampling](model, rank)
    for step in range(STEPS):
        sampler.sample(step)
        images, labels = batch(step, rank, torch.float64, MODELS[name][1])
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}


QUICK = [("deit", "sgd", "widths", "element"), ("deit", "adamw", "same", "find")]
MORE = [
    ("deit", "sgd", "same", "find"),
    ("deit", "adamw", "widths", "element"),
    *((name, "sgd", "widths", "element") for name in MODELS if name != "deit"),
]


def train_ranks(rank, world, cases):
    return [train_rank(rank, world, *case) for case in cases]


@pytest.mark.parametrize("cases", [QUICK, pytest.param(MORE, marks=pytest.mark.heavy)])
def test_equals_one_process_on_the_joint_batch(tmp_path, cases):
    for case, *ranks in zip(cases, *run_ranks(train_ranks, tmp_path, cases), strict=True):
        alone = train_alone(*case, torch.float64)
        for trained in ranks:
            for name, expected in alone.items():
                torch.testing.assert_close(trained[name], expected, rtol=1e-9, atol=1e-12, msg=f"{case}: {name}")


def differ(rank, world):
    """Run another depth on each rank, then the same; return what was said."""
    model = sharded("deit")
    space = search_space(model)
    space.activate(space.subnet({"depth": 2 + rank}, fill="smallest"))
    images, labels = batch(0, rank, torch.float64)
    with pytest.raises(ChoiceError) as caught:
        model(images)
    space.activate(space.smallest())
    F.cross_entropy(model(images), labels).backward()
    return str(caught.value)


@pytest.mark.heavy
def test_another_depth_on_each_rank_is_refused_on_all(tmp_path):
    expected = "depth: expected the same value on all ranks, got 2 on rank 0, 3 on rank 1; see RankSampler"
    assert run_ranks(differ, tmp_path) == [expected, expected]

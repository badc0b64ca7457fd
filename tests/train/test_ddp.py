"""Two processes under DistributedDataParallel end where one process ends that sees the joint batch."""

from contextlib import nullcontext

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.contract import randomize
from tests.ranks import run_ranks
from vitas import SubnetSampler, activate_subnet, create_superformer, list_superformers
from vitas.train.ranks import RankSampler
from vitas.train.sandwich import sandwich
from vitas.train.unused import skip_unused, touch_unused

STEPS, WORLD, BATCH = 20, 2, 4

MODELS = {"deit": ("deit_micro", 8, {"private": "qk"})}  # superformer, image size, options
if "twins_micro" in list_superformers():
    MODELS["twins"] = ("twins_micro", 32, {})
SAMPLERS = {
    "same": lambda model, rank: SubnetSampler(model, seed=3),
    "widths": lambda model, rank: RankSampler(model, seed=3, rank=rank),
    "any": lambda model, rank: SubnetSampler(model, seed=100 + rank),
}


def build(name, dtype, **overrides):
    superformer, size, options = MODELS[name]
    options = {"num_classes": 10, "in_chans": 1, "img_size": size, **options, **overrides}
    return randomize(create_superformer(superformer, **options)).to(dtype)


def make_optimizer(name, model):
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.05)
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)


def batch(step, rank, dtype, size=8):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    images = torch.randn(BATCH, 1, size, size, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.randint(10, (BATCH,), generator=generator)


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def train_rank(rank, world, name, optimizer, sampling, way, dtype):
    """Train on this rank's batches; return the weights."""
    model = build(name, dtype)
    if way != "find":
        touch_unused(model)
    wrapped = DistributedDataParallel(model, find_unused_parameters=way == "find")
    optimizer = make_optimizer(optimizer, model)
    if way in ("element", "tensor"):
        skip_unused(optimizer, per=way)
    sampler = SAMPLERS[sampling](wrapped, rank)
    for step in range(STEPS):
        sampler.sample(step)
        images, labels = batch(step, rank, dtype, MODELS[name][1])
        F.cross_entropy(wrapped(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return weights(model)


def train_alone(name, optimizer, sampling, way, dtype):
    """Train in one process on the batches of all ranks; return the weights and how many tensors each step left out."""
    model = build(name, dtype)
    optimizer = make_optimizer(optimizer, model)
    if way == "element":
        skip_unused(optimizer)
    samplers = [SAMPLERS[sampling](model, rank) for rank in range(WORLD)]
    left_out, depths = 0, set()
    for step in range(STEPS):
        for rank, sampler in enumerate(samplers):
            depths.add(tuple(value for choice, value in sampler.sample(step).items() if choice.endswith("depth")))
            images, labels = batch(step, rank, dtype, MODELS[name][1])
            (F.cross_entropy(model(images), labels) / WORLD).backward()
        left_out += sum(parameter.grad is None for parameter in model.parameters())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert left_out > STEPS  # blocks beyond the depth, private copies
    assert len(depths) > 2
    return weights(model)


def check_all(rank, world, cases):
    return [train_rank(rank, world, *case) for case in cases]


QUICK = [
    ("deit", "sgd", "widths", "find", torch.float32),
    ("deit", "sgd", "any", "tensor", torch.float32),
    ("deit", "adamw", "any", "find", torch.float64),
    ("deit", "adamw", "same", "element", torch.float64),
    *((name, "sgd", "widths", "tensor", torch.float32) for name in MODELS if name != "deit"),
]
ALL = [
    (name, optimizer, sampling, way, dtype)
    for name in MODELS
    for optimizer, dtype in (("sgd", torch.float32), ("adamw", torch.float64))
    for sampling in SAMPLERS
    for way in ("find", "tensor", "element")
]


@pytest.mark.heavy
@pytest.mark.parametrize("cases", [QUICK, [c for c in ALL if c not in QUICK]])
def test_equals_one_process_on_the_joint_batch(tmp_path, cases):
    """After 20 steps of random depth and private q, k, momentum and decay included."""
    for case, *ranks in zip(cases, *run_ranks(check_all, tmp_path, cases), strict=True):
        alone = train_alone(*case)
        for trained in ranks:
            for name, expected in alone.items():
                torch.testing.assert_close(trained[name], expected, rtol=1e-6, atol=1e-6, msg=f"{case}: {name}")


# -- the sandwich, accumulated --------------------------------------------------------------------------------------------


NOTHING_PRIVATE = {"patch_size": 4, "private": None}


def sandwich_rank(rank, world, way, largest_last):
    """Accumulate sandwiches of this rank's own subnets under no_sync; return the weights."""
    model = build("deit", torch.float64, **(NOTHING_PRIVATE if way == "neither" else {}))
    if way == "touch":
        touch_unused(model)
    wrapped = DistributedDataParallel(model, find_unused_parameters=way == "find")
    optimizer = make_optimizer("sgd", model)
    if way == "touch":
        skip_unused(optimizer, per="tensor")
    for step in range(6):
        images, labels = batch(step, rank, torch.float64)
        passes = 2 + 2
        for number, _ in enumerate(sandwich(wrapped, step=step, seed=rank, largest_last=largest_last), 1):
            with nullcontext() if number == passes else wrapped.no_sync():
                F.cross_entropy(wrapped(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return weights(model)


def sandwich_alone(way, largest_last):
    model = build("deit", torch.float64, **(NOTHING_PRIVATE if way == "neither" else {}))
    optimizer = make_optimizer("sgd", model)
    for step in range(6):
        for rank in range(WORLD):
            images, labels = batch(step, rank, torch.float64)
            for _ in sandwich(model, step=step, seed=rank, largest_last=largest_last):
                (F.cross_entropy(model(images), labels) / WORLD).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return weights(model)


SANDWICHES = [*((way, last) for way in ("find", "touch") for last in (True, False)), ("neither", True)]


def sandwich_ranks(rank, world):
    return [sandwich_rank(rank, world, *case) for case in SANDWICHES]


@pytest.mark.heavy
def test_a_sandwich_accumulated_under_no_sync_is_exact(tmp_path):
    """Where nothing is private, the largest subnet in the one pass that communicates uses all: nobody has to look."""
    for (way, last), *ranks in zip(SANDWICHES, *run_ranks(sandwich_ranks, tmp_path), strict=True):
        alone = sandwich_alone(way, last)
        for trained in ranks:
            for name, expected in alone.items():
                torch.testing.assert_close(trained[name], expected, rtol=1e-9, atol=1e-12, msg=f"{way}, {last}: {name}")


# -- what happens without ---------------------------------------------------------------------------------------------------


def only_widths():
    options = {"depth": 3, "patch_size": 4, "private": None}
    return randomize(create_superformer("deit_micro", num_classes=10, in_chans=1, img_size=8, **options)).double()


def widths_rank(rank, world):
    """Train without find_unused_parameters on subnets of this rank's own; return the weights."""
    model = only_widths()
    wrapped, optimizer = DistributedDataParallel(model), make_optimizer("adamw", model)
    sampler = SubnetSampler(wrapped, seed=rank)
    for step in range(STEPS):
        sampler.sample(step)
        images, labels = batch(step, rank, torch.float64)
        F.cross_entropy(wrapped(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return weights(model)


def test_only_widths_need_nothing_and_equal_one_process_on_the_joint_batch(tmp_path):
    model = only_widths()
    optimizer = make_optimizer("adamw", model)
    samplers = [SubnetSampler(model, seed=rank) for rank in range(WORLD)]
    for step in range(STEPS):
        subnets = [sampler.sample(step) for sampler in samplers]
        for rank, subnet in enumerate(subnets):
            activate_subnet(model, subnet)
            images, labels = batch(step, rank, torch.float64)
            (F.cross_entropy(model(images), labels) / WORLD).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    alone = weights(model)
    for trained in run_ranks(widths_rank, tmp_path):
        for name, expected in alone.items():
            torch.testing.assert_close(trained[name], expected, rtol=1e-9, atol=1e-12, msg=name)


def unhelped_rank(rank, world):
    """Train on random depths without find_unused_parameters and without help; return what torch says."""
    wrapped = DistributedDataParallel(build("deit", torch.float32, depth=range(1, 7)))
    sampler = SubnetSampler(wrapped, seed=rank)
    try:
        for step in range(5):
            sampler.sample(step)
            images, labels = batch(step, rank, torch.float32)
            F.cross_entropy(wrapped(images), labels).backward()
    except RuntimeError as error:
        return str(error)


def touched_rank(rank, world):
    """Train with unused parameters touched but not skipped."""
    return train_rank(rank, world, "deit", "sgd", "same", "touch", torch.float64)


@pytest.mark.heavy
def test_without_find_unused_parameters_unused_blocks_are_refused_by_torch(tmp_path):
    for said in run_ranks(unhelped_rank, tmp_path):
        assert "find_unused_parameters" in said


@pytest.mark.heavy
def test_zeros_alone_would_let_momentum_and_decay_move_what_nobody_used(tmp_path):
    alone = train_alone("deit", "sgd", "same", "find", torch.float64)
    trained, _ = run_ranks(touched_rank, tmp_path)
    worst = max(((trained[name] - expected).norm() / expected.norm()).item() for name, expected in alone.items())
    assert worst > 0.01


# -- compiled ---------------------------------------------------------------------------------------------------------------


def compiled_rank(rank, world, way):
    """Train compiled and eager models side by side; return the number of graphs and the largest difference."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    models = [build("deit", torch.float64) for _ in range(2)]
    if way == "touch":
        for model in models:
            touch_unused(model)
    wrapped = [DistributedDataParallel(model, find_unused_parameters=way == "find") for model in models]
    ways = [torch.compile(wrapped[0], backend=backend), wrapped[1]]
    difference = 0.0
    for step in range(8):
        images, labels = batch(step, rank, torch.float64)
        for one in ways:
            SubnetSampler(one, seed=rank).sample(step)
            F.cross_entropy(one(images), labels).backward()
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                difference = max(difference, (a.grad - b.grad).abs().max().item())
        for model in models:
            model.zero_grad(set_to_none=True)
    return len(graphs), difference


def compiled_ranks(rank, world):
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        return [compiled_rank(rank, world, way) for way in ("find", "touch")]


@pytest.mark.heavy
def test_compiled_ddp_makes_few_graphs_and_the_same_gradients(tmp_path):
    for results in run_ranks(compiled_ranks, tmp_path):
        for graphs, difference in results:
            assert 1 <= graphs <= 5
            assert difference < 1e-9


def graphs_of_vitas_deit(rank, world):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model = create_superformer("vitas_deit", num_classes=10)
    compiled = torch.compile(DistributedDataParallel(model, find_unused_parameters=True), backend=backend)
    images = torch.randn(1, 3, 224, 224)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for step in range(6):
            SubnetSampler(compiled, seed=rank).sample(step)
            compiled(images).sum().backward()
            model.zero_grad(set_to_none=True)
    return len(graphs)


@pytest.mark.heavy
def test_compiled_ddp_of_vitas_deit_makes_at_most_5_graphs(tmp_path):
    assert all(1 <= graphs <= 5 for graphs in run_ranks(graphs_of_vitas_deit, tmp_path))

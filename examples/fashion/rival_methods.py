"""One function for each way from a trained network to a smaller one: what a user writes, apart from the training loop.

A method takes a `Task` (rival_task.py: the original, images, the budget, the training loop that all share) and returns the
finished network.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable

import torch.nn.functional as F
from rival_task import OutOfReach, Task, vit
from torch import nn

import vitas


def vitas_compress(task: Task) -> nn.Module:
    """Wrap, train as a superformer, search, export and fine-tune, with the original as teacher: one call."""
    settings, scored = task.settings, task.scored[:1]  # the first 500 images: it scores by the loss
    share, others = len(scored[0][1]) / settings.scored, 4  # the original twice, the network before and after fine-tuning
    done = vitas.compress(
        task.original,
        task.batches(task.left_after(share * (settings.population * settings.generations + others)) // 30),
        scored,
        flops=(f"{0.9 * task.size}%", f"{task.size}%"),
        lr=settings.lr,
        population=settings.population,
        generations=settings.generations,
        seed=task.seed,
        progress=False,
    )
    task.count_scores(share * (len(done.search.history) + others))
    return done.network


def torch_pruning(task: Task) -> nn.Module:
    """Narrow all widths alike, channels of least Taylor importance first, as its example for timm does; fine-tune."""
    import torch_pruning as tp

    model = copy.deepcopy(task.original).requires_grad_(True)
    attention = [block.attn for block in model.blocks]
    pruner = tp.pruner.BasePruner(
        model,
        task.image,
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=0.95,
        iterative_steps=40,
        ignored_layers=[model.head],
        num_heads={one.qkv: one.num_heads for one in attention},
    )
    while task.flops(model) > task.most:
        model.zero_grad()
        for images, labels in task.batches(2, taught=False):
            F.cross_entropy(model(images), labels).backward()
        pruner.step()
        for one in attention:
            one.num_heads = pruner.num_heads[one.qkv]
            one.attn_dim = one.qkv.out_features // 3
            one.head_dim = one.attn_dim // one.num_heads
    return task.fit(model)


def modelopt_autonas(task: Task) -> nn.Module:
    """Train a supernet that draws a subnet at each forward pass, search it by evolution, fine-tune what is found."""
    import modelopt.torch.nas as mtn

    model = copy.deepcopy(task.original).requires_grad_(True)
    for block in model.blocks:
        block.attn.fused_attn = False  # its counter does not see the products of fused attention
    model = mtn.convert(model, "autonas")
    task.fit(model, task.left / 3)
    population, generations = task.settings.population, task.settings.generations
    left = iter(range(population * generations))  # as many scores as vitas.compress has; others lose

    def score(network: nn.Module) -> float:
        return task.score(network) if next(left, None) is not None else -1.0

    config = {"score_func": score, "num_iters": task.settings.iterations, "verbose": False}
    config |= {"population_size": population, "candidate_size": population // 2}
    model, _ = mtn.search(model, {"flops": f"{task.size}%"}, task.image, config)
    for block in model.blocks:
        block.attn.fused_attn = True
    return task.fit(model)


def modelopt_fastnas(task: Task) -> nn.Module:
    """Narrow each width by itself to see what that costs, cut all of them where they cost the same, fine-tune."""
    import modelopt.torch.prune as mtp

    model = copy.deepcopy(task.original).requires_grad_(True)
    for block in model.blocks:
        block.attn.fused_attn = False  # its counter does not see the products of fused attention
    config = {"score_func": task.score, "verbose": False}
    try:
        model, _ = mtp.prune(model, "fastnas", {"flops": f"{task.size}%"}, task.image, config)
    except ValueError as error:
        if "NOT all constraints can be satisfied" not in str(error):
            raise
        raise OutOfReach("its constraint cannot be met in its space") from None
    for block in model.blocks:
        block.attn.fused_attn = True
    return task.fit(model)


def narrower(task: Task) -> nn.Module:
    """Train the widest network of the original's proportions that fits, from scratch."""
    widths = range(task.settings.heads, task.settings.width, task.settings.heads)
    fit = [width for width in widths if task.flops(vit(task.settings, width)) <= task.most]
    return task.fit(vit(task.settings, max(fit)), lr=task.settings.recipe.lr)


def trained_on(task: Task) -> nn.Module:
    """Make nothing smaller: train the original with as many passes as the others, to see what there is to keep."""
    return task.fit(copy.deepcopy(task.original).requires_grad_(True))


WHOLE = "original, trained on"
"""The method whose size is 100 %."""

METHODS: dict[str, Callable[[Task], nn.Module]] = {
    WHOLE: trained_on,
    "vitas.compress": vitas_compress,
    "torch-pruning": torch_pruning,
    "ModelOpt AutoNAS": modelopt_autonas,
    "ModelOpt FastNAS": modelopt_fastnas,
    "narrower, from scratch": narrower,
}
SEARCHED = {
    WHOLE: "nothing",
    "vitas.compress": "heads and MLP of each block, depth",
    "torch-pruning": "one ratio for all widths; which channels",
    "ModelOpt AutoNAS": "MLP of each block, depth",
    "ModelOpt FastNAS": "MLP of each block",
    "narrower, from scratch": "nothing",
}


def lines(method: Callable[[Task], nn.Module]) -> int:
    """Return how many lines the body of a method has, comments, docstring and empty lines left out."""
    source = textwrap.dedent(inspect.getsource(method))
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    first = definition.body[1 if ast.get_docstring(definition) else 0].lineno
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines()[first - 1 :])

"""Ordinary training loops: one for a plain network, and how a superformer is trained inside it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from data import Images
from torch import Tensor, nn

import vitas


class Recipe(NamedTuple):
    """How every network and every superformer is trained: AdamW, a linear warm-up, then a cosine to 0."""

    batch: int = 64
    lr: float = 4e-3
    weight_decay: float = 0.05
    warm_up: float = 0.1


Step = Callable[[int, Tensor, Tensor], float]
"""(number of the step, images, labels) -> loss; runs the forward and the backward passes."""


def train(model: nn.Module, images: Images, steps: int, seed: int, step_of: Step, recipe: Recipe) -> list[float]:
    """Run the steps and return the mean loss of each tenth of them.

    Args:
        model: What is trained.
        images: Training images, each used once in a round.
        steps: Steps of the optimiser.
        seed: Order of the images.
        step_of: What a step does.
        recipe: How.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    warm = max(1, round(steps * recipe.warm_up))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: (t + 1) / warm if t < warm else (1 + math.cos(math.pi * (t - warm) / max(1, steps - warm))) / 2,
    )
    generator, order, losses = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long), []
    model.train()
    for step in range(steps):
        if len(order) < recipe.batch:
            order = torch.randperm(len(images.labels), generator=generator)
        chosen, order = order[: recipe.batch], order[recipe.batch :]
        losses.append(step_of(step, *images.batch(chosen, device)))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"step {step}: the loss is {losses[-1]}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    model.eval()
    tenth = max(1, steps // 10)
    return [sum(part) / len(part) for part in (losses[first : first + tenth] for first in range(0, steps, tenth))]


def alone(model: nn.Module) -> Step:
    """Return the step of a network that is trained by itself."""

    def step_of(step: int, images: Tensor, labels: Tensor) -> float:
        return _backward(F.cross_entropy(model(images), labels))

    return step_of


PASSES = {"single": 1, "sandwich": 4, "taught": 4}
"""How a superformer is trained -> forward passes in a step of the optimiser."""


def shared(model: nn.Module, regime: str, seed: int) -> Step:
    """Return the step of a superformer.

    "single": one random subnet. "sandwich": the smallest, two random ones and the largest, each from the labels. "taught":
    the same, the largest first and from the labels, and the others from its outputs.

    Smallest and largest have each patch size in turn from step to step, so that all weights are trained: the largest patch
    makes the cheapest network.

    Args:
        model: The superformer.
        regime: One of `PASSES`.
        seed: Of the random subnets.
    """
    sampler = vitas.SubnetSampler(model, seed=seed)
    patches = sampler.space.choices["patch_size"].values if "patch_size" in sampler.space.choices else ()

    def single(step: int, images: Tensor, labels: Tensor) -> float:
        sampler.sample(step)
        return _backward(F.cross_entropy(model(images), labels))

    def sandwich(step: int, images: Tensor, labels: Tensor) -> float:
        total, teacher, ends = 0.0, None, {"patch_size": patches[step % len(patches)]} if patches else {}
        last = regime == "sandwich"
        for _ in vitas.train.sandwich(model, step=step, sampler=sampler, largest_last=last, smallest=ends, largest=ends):
            outputs = model(images)
            taught = regime == "taught" and teacher is not None
            loss = vitas.train.distill_loss(outputs, teacher) if taught else F.cross_entropy(outputs, labels)  # type: ignore[arg-type]
            total += _backward(loss)
            teacher = outputs.detach() if teacher is None else teacher
        return total / PASSES[regime]

    return single if regime == "single" else sandwich


def _backward(loss: Tensor) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def device() -> torch.device:
    """Return the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def environment() -> dict[str, Any]:
    """Return what figures may depend on in their last digits."""
    return {"torch": torch.__version__, "device": str(device()), "threads": torch.get_num_threads()}

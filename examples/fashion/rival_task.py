"""What every method is given: the original, the images, a budget, the loop to train with; and passes counted alike."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import training
from data import CLASSES, SIZE, Images, Split
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vitas
from vitas.compressing import from_teacher, train

FORWARD = 1 / 3
"""What a forward pass of a batch counts; forward and backward count 1, whatever network they are of."""


class Settings(NamedTuple):
    """The networks, and how long everything takes; results of other settings are refused."""

    data: str = "/usr/share/datasets/fashion-mnist"
    held_out: int = 5000
    scored: int = 1000  # of those held out, for the searches
    width: int = 64
    depth: int = 12
    heads: int = 4
    sizes: tuple[int, ...] = (50, 30)
    first: int = 2400  # passes of the original
    passes: int = 1600  # passes after it, for each method and size
    lr: float = 2e-3  # of whatever begins with the original's weights
    population: int = 16
    generations: int = 4
    iterations: int = 400  # of AutoNAS; networks outside the budget are not scored
    recipe: training.Recipe = training.Recipe()


FULL = Settings()
_FEW: dict[str, Any] = {
    "width": 32,
    "depth": 4,
    "first": 8,
    "passes": 120,
    "population": 4,
    "generations": 2,
    "iterations": 40,
}
SMOKE = Settings("", 60, 20, **_FEW, recipe=training.Recipe(batch=16))


class OutOfReach(Exception):
    """A method cannot make a network of this size."""


def vit(settings: Settings, width: int) -> nn.Module:
    """Return a timm Vision Transformer of the original's proportions: patch 4, MLPs 4 times as wide as the stream."""
    heads = settings.heads
    return VisionTransformer(SIZE, 4, 1, CLASSES, embed_dim=width, depth=settings.depth, num_heads=heads)


class Batches:
    """So many random batches of training images each time it is iterated, each of which counts as passes of a task.

    Args:
        task: Whose images they are.
        number: Batches.
        passes: What each counts.
    """

    def __init__(self, task: "Task", number: int, passes: float) -> None:
        self.task, self.number, self.passes = task, number, passes

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, size = self.task.split.train, self.task.settings.recipe.batch
        rounds = math.ceil(self.number * size / len(images.labels))
        order = torch.cat([torch.randperm(len(images.labels)) for _ in range(rounds)])
        for first in range(0, self.number * size, size):
            self.task.used += self.passes
            yield images.batch(order[first : first + size])


class Task:
    """A size to reach within a number of passes.

    Attributes:
        size: Per cent of the original's multiply-adds.
        most: Multiply-adds that the network may have.
        used: Passes so far.
        image: One image, (1, 1, 28, 28).
        scored: Batches of the images that searches score with.

    Args:
        original: Trained; left as it is.
        split: Images.
        settings: Lengths.
        size: See above.
        seed: Of everything random.
    """

    def __init__(self, original: nn.Module, split: Split, settings: Settings, size: int, seed: int) -> None:
        self.original, self.split, self.settings, self.size, self.seed = original, split, settings, size, seed
        self.image, self.used = torch.zeros(1, 1, SIZE, SIZE), 0.0
        self.most = size * self.flops(original) // 100
        some: Images = split.held_out
        self.scored = some._replace(pixels=some.pixels[: settings.scored], labels=some.labels[: settings.scored]).batches()
        self._accuracy = vitas.accuracy(self.scored)
        self._each = FORWARD * settings.scored / settings.recipe.batch

    @property
    def left(self) -> float:
        return self.settings.passes - self.used

    def left_after(self, scores: float) -> int:
        """Return how many steps of a taught training are left when so many networks have been scored."""
        return int((self.left - scores * self._each) / (1 + FORWARD))

    def count_scores(self, number: float) -> None:
        self.used += number * self._each

    def score(self, model: nn.Module) -> float:
        """Return the accuracy on the images for searches; counts."""
        self.count_scores(1)
        return self._accuracy(model)

    def flops(self, model: nn.Module) -> int:
        return vitas.count_flops(model, inputs=self.image).total

    def batches(self, number: int, taught: bool = True) -> Batches:
        """Return batches to train with; taught ones pass through the original too."""
        return Batches(self, number, 1 + FORWARD if taught else 1)

    def fit(self, model: nn.Module, passes: float | None = None, lr: float | None = None) -> nn.Module:
        """Train a network for some of the passes or all that are left, with the loss and the loop of `vitas.compress`."""

        def loss_of(step: int, images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                taught = self.original(images)
            return from_teacher(model(images), taught, labels)

        steps = int((self.left if passes is None else passes) / (1 + FORWARD))
        options: dict[str, Any] = {"lr": lr or self.settings.lr, "seed": self.seed, "device": torch.device("cpu")}
        train(model, self.batches(steps), loss_of, "fit", 1, **options)
        return model

"""Scores of a subnet on images: a loader that is read once, outputs and labels that are checked, a mean over images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vitas.checks import ANY_INT, as_count, as_flag
from vitas.choice import SIDES
from vitas.errors import ChoiceError, ShapeError, VitasError, needs, shown
from vitas.space import device_of, eval_mode, holders, logits_of, search_space, unwrap

S = TypeVar("S", bound="Score")


class Batch(NamedTuple):
    """Images (B, ...), labels (B,), the largest label and one; the outputs (B, classes) of a teacher where there is one."""

    images: Tensor
    labels: Tensor
    classes: int
    taught: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        taught = None if self.taught is None else self.taught.to(device)
        return self._replace(images=self.images.to(device), labels=self.labels.to(device), taught=taught)

    def copied(self) -> Batch:
        return self._replace(images=self.images.clone(), labels=self.labels.clone())


class Score(ABC):
    """A function of a model: the mean over images of a value for each.

    Attributes:
        name: What is shown of it.
        aim: What an objective of it is called, and its direction.
        images: How many images a score is the mean of; None before the first score where the loader is not kept.
    """

    name: ClassVar[str]
    aim: ClassVar[tuple[str, str]]

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        device: torch.device | str | None,
        amp: bool,
        batches: int | None,
        keep: bool,
        progress: bool,
    ) -> None:
        """Read the loader, or look at its first batch; arguments and errors are those of `accuracy`."""
        self._amp, keep, progress = as_flag(amp, "amp"), as_flag(keep, "keep"), as_flag(progress, "progress")
        most = None if batches is None else as_count(batches, "batches", 1, ANY_INT)
        self._device = None if device is None else _device(device)
        if isinstance(loader, (str, Tensor)) or not isinstance(loader, Iterable):
            raise VitasError(f"loader: expected an iterable of (images, labels), got {type(loader).__name__}")
        if not keep:
            if isinstance(loader, Iterator):
                raise VitasError("loader: keep=False reads it again for each score, and a generator can be read only once")
            _some(islice(_checked_batches(loader, most), 1))  # what does not fit is refused at once

        def read() -> Iterator[Batch]:
            return _checked_batches(_with_bar(loader, most, self.name) if progress else loader, most)

        self._read = read
        held = isinstance(loader, (list, tuple))  # all batches are there; others may use the memory of one for the next
        self._kept = _some(batch if held else batch.copied() for batch in read()) if keep else None
        self.images = None if self._kept is None else sum(len(batch.labels) for batch in self._kept)

    @classmethod
    def on_images_of(cls: type[S], other: Score) -> S:
        """Return a score of this kind on the images of another, which are kept once."""
        made = cls.__new__(cls)
        vars(made).update(vars(other))
        return made

    def __call__(self, model: nn.Module) -> float:
        """Return the score of the model's active subnet.

        Raises:
            ShapeError: outputs, or batches that are read only now, that do not fit.
            VitasError: a model on the meta device; a loader that is empty when it is read again.
        """
        inner = unwrap(model)
        own = device_of(inner)
        target = own if self._device is None else self._device
        runs = inner if any(isinstance(part, nn.parallel.DistributedDataParallel) for part in model.modules()) else model

        def score() -> float:
            batches = self._kept or (self._prepared(batch.to(target)) for batch in self._read())
            mean, self.images = self._mean(runs, batches)
            return mean

        with eval_mode(model), torch.no_grad(), torch.autocast(target.type, enabled=self._amp):
            if self._kept is not None:  # free when they are there; in place, for other scores on the same images
                self._kept[:] = [self._prepared(batch.to(target)) for batch in self._kept]
            return _mean_of_sides(inner, score)

    def __repr__(self) -> str:
        number = "" if self.images is None else f" on {self.images} images"
        if self._kept is None:
            return f"{self.name}{number}, read again for each score"
        size = sum(tensor.nbytes for batch in self._kept for tensor in batch if isinstance(tensor, Tensor))
        return f"{self.name}{number}, {size / 2**20:,.1f} MiB kept"

    @abstractmethod
    def _values(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return a number or a bool for each image, (B,), from outputs (B, classes)."""

    def _prepared(self, batch: Batch) -> Batch:
        """Return a batch on the device with whatever else `_values` needs."""
        return batch

    def _mean(self, model: nn.Module, batches: Iterable[Batch]) -> tuple[float, int]:
        """Return the mean over the images, and how many there are."""
        sums: list[Tensor] = []
        total = 0
        for batch in batches:
            outputs, number = logits_of(model(batch.images)), len(batch.labels)
            if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != number:
                raise ShapeError(f"outputs: expected a tensor ({number}, classes), got {described(outputs)}")
            if outputs.shape[1] < batch.classes:
                wanted = f"at least {batch.classes} classes, as the labels have"
                raise ShapeError(f"outputs: expected {wanted}, got {outputs.shape[1]}")
            sums.append(self._values(outputs, batch).sum())
            total += number
        if not total:
            raise VitasError(_EMPTY)
        return math.fsum(torch.stack(sums).tolist()) / total, total  # the only wait for the device


def _with_bar(loader: Iterable[Any], most: int | None, name: str) -> Iterable[Any]:
    with needs("search"):
        from tqdm.auto import tqdm

    total = number_of_batches(loader)
    bar: Iterable[Any] = tqdm(loader, name, most if total is None else min(total, most or total), False, unit="batch")
    return bar


def number_of_batches(loader: Any) -> int | None:
    """Return how many batches a loader says that it has; None: it does not know."""
    try:
        return len(loader)
    except TypeError:  # also of torch's DataLoader over an IterableDataset, which has a method for it
        return None


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ChoiceError(f"device: got {shown(device)} ({str(error).splitlines()[0]})") from None


def _checked_batches(loader: Iterable[Any], most: int | None) -> Iterator[Batch]:
    """Yield the first batches that hold images, each checked."""
    checked = (_checked(number, batch) for number, batch in enumerate(islice(loader, most)))
    return (batch for batch in checked if len(batch.labels))


def _some(batches: Iterable[Batch]) -> list[Batch]:
    """Return the batches.

    Raises:
        VitasError: there are none.
    """
    kept = list(batches)
    if not kept:
        raise VitasError(_EMPTY)
    return kept


_EMPTY = "loader: it gave no images; a generator can be read only once"


def _checked(number: int, batch: Any) -> Batch:
    what = f"loader: batch {number}"
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    if not pair:
        raise ShapeError(f"{what}: expected a pair of tensors (images, labels), got {described(batch)}")
    images, labels = batch
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim != 1 or not whole or images.ndim < 1 or len(images) != len(labels):
        raise ShapeError(
            f"{what}: expected images (B, ...) and labels (B,) of ints, got {described(images)} and {described(labels)}"
        )
    labels = labels.long()  # torch neither orders nor compares some unsigned ints
    least, most = torch.stack(labels.aminmax()).tolist() if len(labels) else (0, -1)
    if least < 0:
        raise ShapeError(f"{what}: expected labels of at least 0, got {least}")
    return Batch(images, labels, most + 1)


def described(thing: Any) -> str:
    """Return kind and shape of what came in place of a batch or of outputs."""
    if isinstance(thing, Tensor):
        return f"{str(thing.dtype).removeprefix('torch.')} {tuple(thing.shape)}"
    if isinstance(thing, (tuple, list)):
        return f"a {type(thing).__name__} of {len(thing)} ({', '.join(described(part) for part in thing[:3])})"
    return f"a {type(thing).__name__}"


def _mean_of_sides(model: nn.Module, score: Callable[[], float]) -> float:
    """Return the mean score of both sides of the active subnet, or the score where there is one side only."""
    if not any(holders(model)):
        return score()
    space = search_space(model)
    if not space.bilateral:
        return score()
    state, subnet = space.state(), space.active()
    try:
        scores = []
        for side in SIDES:
            space.activate(subnet, side=side)
            scores.append(score())
    finally:
        state.put_back()
    return math.fsum(scores) / len(scores)

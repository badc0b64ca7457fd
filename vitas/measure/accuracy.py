"""How good a subnet is: the fraction of images that it classifies right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitas.checks import ANY_INT, as_count, as_flag
from vitas.choice import SIDES
from vitas.errors import ChoiceError, ShapeError, VitasError, needs, shown
from vitas.space import device_of, eval_mode, holders, logits_of, search_space, unwrap


class _Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    classes: int  # the largest label and one

    def to(self, device: torch.device) -> _Batch:
        return _Batch(self.images.to(device), self.labels.to(device), self.classes)


class Accuracy:
    """What `accuracy` returns: a function of a model that knows how many images are behind its scores.

    Attributes:
        images: How many images a score is the mean of; None before the first score where the loader is not kept.
    """

    def __init__(self, read: Callable[[], Iterable[_Batch]], device: torch.device | None, amp: bool, keep: bool) -> None:
        self._read, self._device, self._amp = read, device, amp
        self._kept = _some(read()) if keep else None
        self.images = None if self._kept is None else sum(len(batch.labels) for batch in self._kept)

    def __call__(self, model: nn.Module) -> float:
        """Return the fraction of the images that the model's active subnet classifies right.

        Raises:
            ShapeError: outputs, or batches that are read only now, that do not fit.
            VitasError: a model on the meta device; a loader that is empty when it is read again.
        """
        inner = unwrap(model)
        own = device_of(inner)
        target = own if self._device is None else self._device
        if self._kept is not None:
            self._kept = [batch.to(target) for batch in self._kept]  # free when they are there
        runs = inner if any(isinstance(part, nn.parallel.DistributedDataParallel) for part in model.modules()) else model

        def score() -> float:
            batches = (batch.to(target) for batch in self._read()) if self._kept is None else self._kept
            fraction, self.images = _fraction(runs, batches)
            return fraction

        with eval_mode(model), torch.no_grad(), torch.autocast(target.type, enabled=self._amp):
            return _mean_of_sides(inner, score)

    def __repr__(self) -> str:
        number = "" if self.images is None else f" on {self.images} images"
        if self._kept is None:
            return f"accuracy{number}, read again for each score"
        size = sum(tensor.nbytes for batch in self._kept for tensor in (batch.images, batch.labels))
        return f"accuracy{number}, {size / 2**20:,.1f} MiB kept"


def accuracy(
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    amp: bool = False,
    batches: int | None = None,
    keep: bool = True,
    progress: bool = False,
) -> Accuracy:
    """Return a function that scores a model: the fraction of the loader's images that its active subnet classifies right.

    The loader is read once, here; its batches are moved to the device at the first score and kept there, 0.57 MiB for an
    image of 3 x 224 x 224 in single precision. `keep=False` reads it again for each score instead. A score leaves
    the model as it was: the active subnet, every module's training mode, no gradients. Under bilateral sharing it is the
    mean of both sides. An image with a NaN among its outputs counts as wrong. DistributedDataParallel is set aside, so
    that ranks may score different subnets; what torch.compile made runs compiled.

    Shapes: images (B, ...), labels (B,) of ints; the model's outputs (B, classes), or transformers' with such `logits`.
    Source: scores with inherited weights and the mean of both sides, public ViTAS code (Su et al., July 2021).

    Args:
        loader: Any iterable of (images, labels), such as a DataLoader or a list; without random augmentation.
        device: Where the batches are kept; None: where the model's first parameter is.
        amp: Whether to run under torch's autocast.
        batches: At most so many of the loader's first batches are read; None: all, which an endless loader does not have.
        keep: Whether the batches are kept in memory; else the loader is read again for each score, in the same order if
            scores are to be compared.
        progress: Whether to show a progress bar over the batches that are read.

    Raises:
        ShapeError: batches that are not (images, labels) of these shapes; from the function, outputs that do not fit.
        ChoiceError: a device that torch does not know, an option that is not a bool, `batches` that is not a positive int.
        VitasError: a loader that cannot be read, or without images, or that is to be read again and cannot; tqdm is not
            installed and `progress` asks for it; from the function, a model on the meta device.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> loader = [(torch.randn(8, 3, 16, 16), torch.randint(10, (8,)))]
        >>> score = vitas.accuracy(loader)  # reads the images once
        >>> 0 <= score(model) <= 1
        True
    """
    amp, keep, progress = as_flag(amp, "amp"), as_flag(keep, "keep"), as_flag(progress, "progress")
    most = None if batches is None else as_count(batches, "batches", 1, ANY_INT)
    where = None if device is None else _device(device)
    if isinstance(loader, (str, Tensor)) or not isinstance(loader, Iterable):
        raise VitasError(f"loader: expected an iterable of (images, labels), got {type(loader).__name__}")
    if not keep:
        if isinstance(loader, Iterator):
            raise VitasError("loader: keep=False reads it again for each score, and a generator can be read only once")
        _some(islice(_checked_batches(loader, most), 1))  # what does not fit is refused at once

    def read() -> Iterator[_Batch]:
        return _checked_batches(_with_bar(loader, most) if progress else loader, most)

    return Accuracy(read, where, amp, keep)


def _with_bar(loader: Iterable[Any], most: int | None) -> Iterable[Any]:
    with needs("search"):
        from tqdm.auto import tqdm

    total = len(loader) if isinstance(loader, Sized) else None
    bar: Iterable[Any] = tqdm(loader, "accuracy", most if total is None else min(total, most or total), False, unit="batch")
    return bar


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ChoiceError(f"device: got {shown(device)} ({str(error).splitlines()[0]})") from None


def _checked_batches(loader: Iterable[Any], most: int | None) -> Iterator[_Batch]:
    """Yield the first batches that hold images, each checked."""
    checked = (_checked(number, batch) for number, batch in enumerate(islice(loader, most)))
    return (batch for batch in checked if len(batch.labels))


def _some(batches: Iterable[_Batch]) -> list[_Batch]:
    """Return the batches.

    Raises:
        VitasError: there are none.
    """
    kept = list(batches)
    if not kept:
        raise VitasError(_EMPTY)
    return kept


_EMPTY = "loader: it gave no images; a generator can be read only once"


def _checked(number: int, batch: Any) -> _Batch:
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
    return _Batch(images, labels, most + 1)


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


def _fraction(model: nn.Module, batches: Iterable[_Batch]) -> tuple[float, int]:
    """Return which fraction of the images is classified right, and how many there are."""
    right: Tensor | int = 0
    total = 0
    for images, labels, classes in batches:
        outputs = logits_of(model(images))
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(labels):
            raise ShapeError(f"outputs: expected a tensor ({len(labels)}, classes), got {described(outputs)}")
        if outputs.shape[1] < classes:
            raise ShapeError(f"outputs: expected at least {classes} classes, as the labels have, got {outputs.shape[1]}")
        best, found = outputs.max(dim=1)
        right = right + ((found == labels) & ~best.isnan()).sum()
        total += len(labels)
    if not total:
        raise VitasError(_EMPTY)
    return int(right) / total, total  # the only wait for the device

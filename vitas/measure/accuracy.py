"""How good a subnet is: the fraction of images that it classifies right."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitas.checks import as_flag
from vitas.choice import SIDES
from vitas.errors import ChoiceError, ShapeError, VitasError, shown
from vitas.space import device_of, eval_mode, holders, logits_of, search_space, unwrap


class _Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    classes: int  # the largest label and one

    def to(self, device: torch.device) -> _Batch:
        return _Batch(self.images.to(device), self.labels.to(device), self.classes)


def accuracy(
    loader: Iterable[Any], *, device: torch.device | str | None = None, amp: bool = False
) -> Callable[[nn.Module], float]:
    """Return a function that scores a model: the fraction of the loader's images that its active subnet classifies right.

    The loader is read once, here; its batches are moved to the device at the first score and kept there. A score leaves
    the model as it was: the active subnet, every module's training mode, no gradients. Under bilateral sharing it is the
    mean of both sides. An image with a NaN among its outputs counts as wrong. DistributedDataParallel is set aside, so
    that ranks may score different subnets; what torch.compile made runs compiled.

    Shapes: images (B, ...), labels (B,) of ints; the model's outputs (B, classes), or transformers' with such `logits`.
    Source: scores with inherited weights and the mean of both sides, public ViTAS code (Su et al., July 2021).

    Args:
        loader: Any iterable of (images, labels), such as a DataLoader or a list; without random augmentation.
        device: Where the batches are kept; None: where the model's first parameter is.
        amp: Whether to run under torch's autocast.

    Raises:
        ShapeError: batches that are not (images, labels) of these shapes; from the function, outputs that do not fit.
        ChoiceError: a device that torch does not know, an `amp` that is not a bool.
        VitasError: a loader that cannot be read, or without images; from the function, a model on the meta device.
    """
    amp = as_flag(amp, "amp")
    where = None if device is None else _device(device)
    batches = _read(loader)

    def evaluate(model: nn.Module) -> float:
        nonlocal batches
        inner = unwrap(model)
        own = device_of(inner)
        target = own if where is None else where
        batches = [batch.to(target) for batch in batches]  # free when they are there
        runs = inner if any(isinstance(part, nn.parallel.DistributedDataParallel) for part in model.modules()) else model
        with eval_mode(model), torch.no_grad(), torch.autocast(target.type, enabled=amp):
            return _mean_of_sides(inner, lambda: _fraction(runs, batches))

    return evaluate


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ChoiceError(f"device: got {shown(device)} ({str(error).splitlines()[0]})") from None


def _read(loader: Iterable[Any]) -> list[_Batch]:
    if isinstance(loader, (str, Tensor)) or not isinstance(loader, Iterable):
        raise VitasError(f"loader: expected an iterable of (images, labels), got {type(loader).__name__}")
    batches = [_checked(number, batch) for number, batch in enumerate(loader)]
    batches = [batch for batch in batches if len(batch.labels)]
    if not batches:
        raise VitasError("loader: it gave no images; a generator can be read only once")
    return batches


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
    least, most = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
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


def _fraction(model: nn.Module, batches: Iterable[_Batch]) -> float:
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
    return int(right) / total  # the only wait for the device

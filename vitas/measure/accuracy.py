"""How good a subnet is: the fraction of images that it classifies right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vitas.measure.score import Batch, Score


class Accuracy(Score):
    """What `accuracy` returns: a function of a model that knows how many images are behind its scores."""

    name = "accuracy"
    aim = "accuracy", "max"

    def _values(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return which images are classified right, (B,); one with a NaN among its outputs is not."""
        best, found = outputs.max(dim=1)
        return (found == batch.labels) & ~best.isnan()


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

    The loader is read once, here; copies of its batches (of a list, these themselves) are moved to the device at the first
    score and kept there, 0.57 MiB for an image of 3 x 224 x 224 in single precision. `keep=False` reads it again for each
    score instead. A score leaves the model as it was: the active subnet, every module's training mode, no gradients. Under
    bilateral sharing it is the mean of both sides. An image with a NaN among its outputs counts as wrong.
    DistributedDataParallel is set aside, so that ranks may score different subnets; what torch.compile made runs compiled.

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
    return Accuracy(loader, device=device, amp=amp, batches=batches, keep=keep, progress=progress)

"""How good a subnet is: the loss of its outputs, which tells networks apart on fewer images than the accuracy does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitas.measure.score import Score


class CrossEntropy(Score):
    """What `cross_entropy` returns: a function of a model that knows how many images are behind its scores."""

    name = "cross entropy"

    def values(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of each image, (B,), in nats."""
        return F.cross_entropy(outputs.float(), labels, reduction="none")


def cross_entropy(
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    amp: bool = False,
    batches: int | None = None,
    keep: bool = True,
    progress: bool = False,
) -> CrossEntropy:
    """Return a function that scores a model: the mean cross entropy of its active subnet on the loader's images, in nats.

    Smaller is better. An image counts by how sure the network is, and not only by right or wrong, so that fewer images tell
    networks apart: in docs/evidence.md 500 of them rank 24 networks as well as the accuracy does on several times as many.
    All else is as in `accuracy`; a NaN among the outputs makes the score NaN, which a search records as a failure.

    Shapes: images (B, ...), labels (B,) of ints; the model's outputs (B, classes), or transformers' with such `logits`.
    Source: ours.

    Args:
        loader: As in `accuracy`.
        device: As in `accuracy`.
        amp: As in `accuracy`; the loss itself is taken in single precision.
        batches: As in `accuracy`.
        keep: As in `accuracy`.
        progress: As in `accuracy`.

    Raises:
        ShapeError: as in `accuracy`.
        ChoiceError: as in `accuracy`.
        VitasError: as in `accuracy`.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> loader = [(torch.randn(8, 3, 16, 16), torch.randint(10, (8,)))]  # yours
        >>> result = vitas.evolve(
        ...     model,
        ...     vitas.cross_entropy(loader),
        ...     objectives={"loss": "min"},
        ...     flops="50%",
        ...     population=4,
        ...     generations=1,
        ...     progress=False,
        ... )
        >>> list(result.history[0].scores)
        ['flops', 'params', 'loss']
    """
    return CrossEntropy(loader, device=device, amp=amp, batches=batches, keep=keep, progress=progress)

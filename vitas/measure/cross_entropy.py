"""How good a subnet is: the loss of its outputs, which tells networks apart better where images are few."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.errors import ShapeError, VitasError, shown
from vitas.measure.score import Batch, Score, described
from vitas.space import device_of, eval_mode, holders, logits_of


class CrossEntropy(Score):
    """What `cross_entropy` returns: a function of a model that knows how many images are behind its scores."""

    name = "cross entropy"
    aim = "loss", "min"
    teacher: nn.Module | None = None

    def _values(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the cross entropy of each image, (B,), in nats."""
        outputs = outputs.float()
        loss = F.cross_entropy(outputs, batch.labels, reduction="none")
        if batch.taught is None:
            return loss
        if batch.taught.shape != outputs.shape:
            raise ShapeError(f"outputs: expected {tuple(batch.taught.shape)}, as the teacher's, got {tuple(outputs.shape)}")
        return (loss + F.cross_entropy(outputs, batch.taught.float().softmax(dim=1), reduction="none")) / 2

    def _prepared(self, batch: Batch) -> Batch:
        """Add what the teacher says of the images, once."""
        if self.teacher is None or batch.taught is not None:
            return batch
        own, there = device_of(self.teacher), batch.images.device
        if own != there:
            raise VitasError(f"teacher: is on {own} and the images on {there}; move it there")
        with eval_mode(self.teacher):
            taught = logits_of(self.teacher(batch.images))
        if not isinstance(taught, Tensor) or taught.ndim != 2 or len(taught) != len(batch.labels):
            raise ShapeError(f"teacher: expected outputs ({len(batch.labels)}, classes), got {described(taught)}")
        return batch._replace(taught=taught)


def cross_entropy(
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    amp: bool = False,
    batches: int | None = None,
    keep: bool = True,
    progress: bool = False,
    teacher: nn.Module | None = None,
) -> CrossEntropy:
    """Return a function that scores a model: the mean cross entropy of its active subnet on the loader's images, in nats.

    Smaller is better. An image counts by how sure the network is, and not only by right or wrong, so that few images tell
    networks apart better: in docs/evidence.md 500 of them rank 24 networks with a tau of 0.55 to 0.63, and with one of 0.41
    to 0.50 by `accuracy`. All else is as there; a NaN among the outputs makes the score NaN, a failure in a search.

    Shapes: images (B, ...), labels (B,) of ints; the model's outputs (B, classes), or transformers' with such `logits`.
    Source: soft targets, Hinton et al., arXiv:1503.02531v1; scoring subnets so is ours.

    Args:
        loader: As in `accuracy`.
        device: As in `accuracy`.
        amp: As in `accuracy`; the loss itself is taken in single precision.
        batches: As in `accuracy`.
        keep: As in `accuracy`.
        progress: As in `accuracy`.
        teacher: A model on the same device, such as the one that was wrapped; its class probabilities then count as much as
            the labels. It sees images that are kept once. One with choices of its own is refused.

    Raises:
        ShapeError: as in `accuracy`.
        ChoiceError: as in `accuracy`.
        VitasError: as in `accuracy`; a teacher that is no module, is searchable, or on another device.

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
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise VitasError(f"teacher: expected a module, got {shown(teacher)}")
    if teacher is not None and any(holders(teacher)):
        raise VitasError("teacher: has choices, so that it would be what is active; pass the original, or an export")
    score = CrossEntropy(loader, device=device, amp=amp, batches=batches, keep=keep, progress=progress)
    score.teacher = teacher
    return score

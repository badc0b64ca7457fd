"""How learners are taught by the original: its answers, the loss from them, and what it says of images that do not fit."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.compressing.training import LossOf
from vitas.errors import ChoiceError, ShapeError, brief, listed, shown
from vitas.measure.score import described
from vitas.space import logits_of
from vitas.train import distill_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, logits of the original, labels) -> loss."""


def from_teacher(logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of the losses from labels (B,) and from the original's logits (B, classes).

    Raises:
        ShapeError: labels that are not ints, one for each image of at least one, or not those of classes; -100, which
            torch's losses ignore, too.
    """
    classes = logits.shape[-1]
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != logits.shape[:1]:
        raise ShapeError(f"labels: expected ints of shape ({len(logits)},), got {described(labels)}; loss= takes others")
    if not len(labels):
        raise ShapeError("labels: expected at least one")
    labels = labels.long()
    least, most = torch.stack(labels.aminmax()).tolist()
    if least < 0 or most >= classes:
        raise ShapeError(f"labels: expected 0 to {classes - 1}, the classes of the model, got {least} to {most}")
    return (F.cross_entropy(logits, labels) + distill_loss(logits, taught)) / 2


def check_loss(loss: Any) -> None:
    """Refuse what cannot be called with three tensors, and torch's own losses, which would read them otherwise.

    Raises:
        ChoiceError: that.
    """
    expected = "loss: expected a function of logits, logits of the original and labels"
    if not callable(loss):
        raise ChoiceError(f"{expected}, got {shown(loss)}")
    of = type(loss) if isinstance(loss, nn.Module) else loss
    if getattr(of, "__module__", "") in (F.cross_entropy.__module__, nn.CrossEntropyLoss.__module__):
        raise ChoiceError(f"{expected}; torch's {of.__name__} is none: lambda logits, taught, labels: ...")
    try:
        inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).bind(None, None, None)
    except ValueError:  # it states no signature
        return
    except TypeError as error:
        raise ChoiceError(f"{expected}, got {getattr(of, '__name__', shown(loss, 30))} ({brief(error)})") from None


def precision_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of the weights.

    Raises:
        ChoiceError: a half of single precision, in which AdamW loses small steps; several dtypes.
    """
    kinds = {parameter.dtype for parameter in model.parameters()}
    if halves := kinds & {torch.float16, torch.bfloat16}:
        raise ChoiceError(
            f"model: weights of {halves.pop()} cannot be trained, pass model.float(); amp=True computes in half"
        )
    if len(kinds) > 1:
        raise ChoiceError(f"model: weights of {listed(sorted(map(str, kinds)))}, expected one dtype; pass model.float()")
    return kinds.pop()


class Teacher(nn.Module):
    """The original, which sees all images before others do, and so tells what is wrong with them.

    Args:
        network: The original.
        kind: dtype of its weights.
        shape: Channels, height and width of the images that it was made for.
        amp: Whether it runs under autocast.
    """

    def __init__(self, network: nn.Module, kind: torch.dtype, shape: tuple[int, int, int], amp: bool) -> None:
        super().__init__()
        self.network, self.kinds, self.shape = network, {kind}, shape
        if amp:
            self.kinds |= {torch.float16, torch.bfloat16}

    def forward(self, images: Tensor) -> Any:
        """Return what the original returns.

        Raises:
            ShapeError: images that cannot be multiplied with its weights, or of a size that it refuses.
        """
        if images.ndim != 4 or not len(images) or images.shape[1] != self.shape[0]:
            expected = f"(batch, {self.shape[0]}, height, width), not empty"
            raise ShapeError(f"images: expected {expected}, got {described(images)}")
        if images.dtype not in self.kinds:
            kind = str(precision_of(self.network)).removeprefix("torch.")
            raise ShapeError(f"images: expected {kind}, as the model, got {described(images)}")
        try:
            return self.network(images)
        except (AssertionError, ValueError, RuntimeError) as error:  # how timm, transformers and torch refuse a size
            if tuple(images.shape[1:]) == self.shape or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ShapeError(f"images: the model refuses {described(images)}: {brief(error, 80)}") from None


@dataclass(frozen=True)
class School:
    """How learners are taught by the original.

    Attributes:
        teacher: The original.
        loss: Of logits, the teacher's logits and labels.
        device: Where all of it is.
        amp: Whether forward passes run in bfloat16.
    """

    teacher: nn.Module
    loss: Loss
    device: torch.device
    amp: bool

    def lesson(self, learner: nn.Module, draw: Callable[[int], object] | None = None) -> LossOf:
        """Return the loss of a step; `draw` makes a subnet of the learner active."""

        def loss_of(step: int, images: Tensor, labels: Tensor) -> Tensor:
            if draw is not None:
                draw(step)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                with torch.no_grad():
                    taught = logits_of(self.teacher(images))
                logits = logits_of(learner(images))
            return self.loss(logits.float(), taught.float(), labels)

        return loss_of

"""How learners are taught: the loss from labels and original, and whose fault an error is laid to."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitas.compressing import from_teacher
from vitas.compressing.school import Teacher, check_loss
from vitas.errors import ChoiceError, ShapeError

IMAGES, LABELS = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("kind", [AssertionError, ValueError, RuntimeError, torch.OutOfMemoryError])
def test_what_fails_at_the_models_own_size_is_not_laid_to_the_images(kind):
    class Refuses(nn.Module):
        def forward(self, images):
            raise kind("it fails")

    teacher = Teacher(Refuses(), torch.float32, (3, 8, 8), False)
    with pytest.raises(kind, match=r"^it fails"):
        teacher(IMAGES)
    another, message = ShapeError, r"images: the model refuses float32 \(4, 3, 4, 8\): it fails"
    if kind is torch.OutOfMemoryError:
        another, message = kind, r"^it fails"
    with pytest.raises(another, match=message):
        teacher(IMAGES[:, :, :4])


def test_labels_of_any_ints_are_taken():
    taught = torch.randn(4, 3)
    for kind in (torch.uint8, torch.uint16, torch.int32, torch.uint32, torch.uint64):
        assert torch.equal(from_teacher(taught, taught, LABELS.to(kind)), from_teacher(taught, taught, LABELS))
    with pytest.raises(ShapeError, match="labels: expected at least one"):
        from_teacher(taught[:0], taught[:0], LABELS[:0])


class Pair(nn.Module):
    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("loss", [3, F.cross_entropy, nn.CrossEntropyLoss(), nn.KLDivLoss, Pair(), lambda logits, labels: 0])
def test_a_loss_reads_three_tensors(loss):
    with pytest.raises(ChoiceError, match="loss: expected a function of logits, logits of the original and labels"):
        check_loss(loss)


def test_functions_and_modules_of_three_tensors_are_losses():
    class Three(nn.Module):
        def forward(self, logits, taught, labels):
            return F.cross_entropy(logits, labels)

    for loss in (from_teacher, Three(), lambda *tensors: 0, lambda logits, taught, labels, weight=1: 0):
        check_loss(loss)

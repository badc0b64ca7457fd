import math

import pytest
import torch
import torch.nn.functional as F

from vitas import ChoiceError
from vitas.errors import ShapeError
from vitas.train.distill import distill_loss


def divergence(q, p, a):
    """D(a) by its definition, (rows,)."""
    if a == 1:
        return (p * (p / q).log()).sum(-1)
    if a == 0:
        return (q * (q / p).log()).sum(-1)
    return (q * ((p / q) ** a - 1)).sum(-1) / (a * (a - 1))


def logits(rows=6, classes=5, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), teacher.requires_grad_()


def gradient(loss, tensor):
    return torch.autograd.grad(loss, tensor)[0]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_are_kl_and_have_the_gradient_of_the_cross_entropy(temperature):
    student, teacher = logits()
    loss = distill_loss(student, teacher, temperature=temperature)
    q, p = (F.softmax(x / temperature, -1) for x in (student, teacher.detach()))
    torch.testing.assert_close(loss, divergence(q, p, 1).mean() * temperature**2)
    cross_entropy = F.cross_entropy(student / temperature, p) * temperature**2
    torch.testing.assert_close(gradient(loss, student), gradient(cross_entropy, student))


@pytest.mark.parametrize("alpha", [(-1, 1), (0, 1), (-1, 0.5), (2, 2)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_adaptive_divergence_is_the_larger_one_with_its_true_gradient_where_nothing_is_cut(alpha, temperature):
    student, teacher = logits()
    loss = distill_loss(student, teacher, alpha=alpha, clip=1e9, temperature=temperature)
    q, p = (F.softmax(x / temperature, -1) for x in (student, teacher.detach()))
    expected = torch.stack([divergence(q, p, a) for a in alpha]).max(0).values.mean() * temperature**2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, student), gradient(expected, student))


def test_the_cut_bounds_the_gradient_of_a_confident_mistake():
    student = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 40.0, 0.0]])
    for alpha in ((-1, 1), (0, 0), (1, 1)):
        loss = distill_loss(student, teacher, alpha=alpha)
        slope = gradient(loss, student)
        assert math.isfinite(loss.item())
        assert loss.item() > 0
        assert slope.isfinite().all()
        assert slope.abs().max() <= 5
    assert gradient(distill_loss(student, teacher, alpha=(-1, 1)), student)[0, 0] > 0.1


@pytest.mark.parametrize("alpha", [None, (-1, 1)])
def test_equal_logits_cost_nothing_and_the_teacher_learns_nothing(alpha):
    student, teacher = logits()
    torch.testing.assert_close(distill_loss(student, student.detach(), alpha=alpha).item(), 0.0, atol=1e-12, rtol=0)
    distill_loss(student, teacher, alpha=alpha).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0


def test_any_leading_shape_and_a_mean_over_rows():
    student, teacher = logits()
    for alpha in (None, (-1, 1)):
        flat = distill_loss(student, teacher, alpha=alpha)
        torch.testing.assert_close(distill_loss(student.view(2, 3, 5), teacher.view(2, 3, 5), alpha=alpha), flat)
        rows = [distill_loss(student[i : i + 1], teacher[i : i + 1], alpha=alpha) for i in range(6)]
        torch.testing.assert_close(torch.stack(rows).mean(), flat)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(dtype):
    student, teacher = logits(scale=20.0)
    student = student.detach().to(dtype).requires_grad_()
    for alpha in (None, (-1, 1)):
        loss = distill_loss(student, teacher.to(dtype), alpha=alpha)
        assert loss.isfinite()
        assert gradient(loss, student).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature: expected a positive number, got 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature: expected a positive number, got 'hot'"),
        ({"alpha": (-1, float("inf"))}, "alpha: expected two numbers"),
        ({"alpha": (-1, None)}, "alpha: expected two numbers"),
        ({"alpha": 1.0}, r"alpha: expected two numbers such as \(-1, 1\), or None, got 1.0"),
        ({"alpha": (-1, 1), "clip": 1}, "clip: expected a number above 1, got 1"),
    ],
)
def test_bad_numbers_are_refused(options, message):
    with pytest.raises(ChoiceError, match=message):
        distill_loss(torch.randn(2, 3), torch.randn(2, 3), **options)


def test_other_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"teacher: expected a tensor of logits, got 2\.0"):
        distill_loss(torch.zeros(2, 3), 2.0)
    with pytest.raises(ShapeError, match="student: expected a tensor of logits, got None"):
        distill_loss(None, torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"student \(2, 3\) and teacher \(2, 4\) have to agree"):
        distill_loss(torch.randn(2, 3), torch.randn(2, 4))

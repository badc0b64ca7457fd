"""Losses by which one network learns from the outputs of another."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vitas.checks import is_number
from vitas.errors import ChoiceError, ShapeError, shown
from vitas.space import logits_of


def distill_loss(
    student: Tensor | Mapping[str, Any],
    teacher: Tensor | Mapping[str, Any],
    *,
    temperature: float = 1.0,
    alpha: tuple[float, float] | None = None,
    clip: float = 5.0,
) -> Tensor:
    """Return how far the student's class probabilities q are from the teacher's p: a mean over the batch, in nats.

    By default KL(p || q) * temperature^2, whose gradient is that of the cross-entropy with soft targets. With `alpha` the
    adaptive alpha-divergence: for each sample the larger of the two D(alpha), where

        D(a) = sum over classes of q ((p / q)^a - 1) / (a (a - 1)),    D(1) = KL(p || q),    D(0) = KL(q || p),

    so that a student is punished both for missing classes of the teacher and for inventing some. (p / q)^a is cut at `clip`
    in value and gradient; not for a = 1, which is bounded by itself.

    No gradient reaches the teacher.

    Shapes: (..., classes), (..., classes) -> ().
    Source: soft targets, Hinton et al., arXiv:1503.02531v1; adaptive alpha-divergence, Wang et al. (AlphaNet),
    arXiv:2102.07954v2, section 4 (alpha -1 and 1, cut at 5). That the value is D itself is ours.

    Args:
        student: Logits of the network that learns, or outputs of transformers that hold them.
        teacher: Those of the network that teaches.
        temperature: Both logits are divided by it.
        alpha: The two alphas, such as (-1, 1); None: soft targets.
        clip: Largest (p / q)^a; above 1. Only with `alpha`.

    Raises:
        ShapeError: logits of different shapes, or none.
        ChoiceError: a temperature that is not positive, alphas that are not two numbers, a cut that is not above 1.
    """
    learned, taught = logits_of(student), logits_of(teacher)
    for what, logits in (("student", learned), ("teacher", taught)):
        if not isinstance(logits, Tensor):
            raise ShapeError(f"{what}: expected a tensor of logits, got {shown(logits)}")
    if learned.shape != taught.shape or learned.ndim == 0 or learned.numel() == 0:
        raise ShapeError(f"distill_loss: student {tuple(learned.shape)} and teacher {tuple(taught.shape)} have to agree")
    if not is_number(temperature) or not 0 < temperature < 1e6:
        raise ChoiceError(f"temperature: expected a positive number, got {shown(temperature)}")
    rows, targets = (rearrange(logits, "... classes -> (...) classes") for logits in (learned, taught.detach()))
    log_q = F.log_softmax(rows / temperature, dim=-1)
    log_p = F.log_softmax(targets / temperature, dim=-1)
    if alpha is None:
        return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean") * temperature**2
    if not isinstance(alpha, (tuple, list)) or len(alpha) != 2 or not all(is_number(a) and abs(a) < 1e3 for a in alpha):
        raise ChoiceError(f"alpha: expected two numbers such as (-1, 1), or None, got {shown(alpha)}")
    if not is_number(clip) or not clip > 1:
        raise ChoiceError(f"clip: expected a number above 1, got {shown(clip)}")
    divergences = torch.stack([_alpha_divergence(log_q, log_p, float(a), clip) for a in alpha])
    return divergences.max(dim=0).values.mean() * temperature**2


def _alpha_divergence(log_q: Tensor, log_p: Tensor, alpha: float, clip: float) -> Tensor:
    """Return D(alpha) of each row, (rows,).

    With t = p / q and f(t) = (t^a - 1) / (a (a - 1)), D is the sum of q f(t), and its gradient by the student that of the
    sum of -q (t f'(t) - f(t)) log q, the weights held fixed: t^a / a up to a constant, which adds nothing since the
    gradients of log q, weighted by q, sum to zero.
    """
    q, log_t = log_q.detach().exp(), log_p - log_q.detach()
    most = math.log(clip)
    if abs(alpha - 1) < 1e-3:
        value, weights = (log_p.exp() * log_t).sum(-1), log_p.exp()
    elif abs(alpha) < 1e-3:
        log_t = log_t.clamp(max=most)
        value, weights = -(q * log_t).sum(-1), q * log_t
    else:
        power = (alpha * log_t).clamp(max=most).exp()
        value, weights = (q * (power - 1)).sum(-1) / (alpha * (alpha - 1)), q * power / alpha
    gradient = -(weights * log_q).sum(-1)
    return value + (gradient - gradient.detach())

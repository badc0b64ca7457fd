"""How far two tensors are apart."""

import torch
from torch import Tensor


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return max|a - b| / max|b|; infinity where shapes, or numbers that are not real, differ."""
    if a.shape != b.shape:
        return float("inf")
    if not b.is_floating_point() or not b.numel():
        return 0.0 if torch.equal(a, b) else float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny))

"""Layers whose library's code would not follow the choices, or would cut a weight at every read: norms and scales."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.wrapping.narrow import Narrowed

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
"""Classes that a record may narrow."""


class ElasticBatchNorm(Narrowed):
    """Batch norm; while training, the running statistics of the channels in use follow the batch.

    Subnets share these statistics, so before one is evaluated they are to be estimated anew on its export, as is usual for
    batch norm in supernets.

    Shapes: (B, K, ...) -> (B, K, ...).
    Cost: 0 MACs.
    Source: Yu and Huang (Universally Slimmable Networks), arXiv:1903.05134v2, section 3.3.
    """

    momentum: float | None
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        if not self.training or self._buffers.get("running_mean") is None:
            return super().forward(x)  # type: ignore[no-any-return]
        count = self._buffers["num_batches_tracked"]
        assert count is not None
        count.add_(1)
        share = 1 / float(count) if self.momentum is None else self.momentum
        statistics = {name: own.clone() for name, own in self.cut("running_mean", "running_var").items()}
        weights = self.cut("weight", "bias")
        mean, var = statistics["running_mean"], statistics["running_var"]
        x = F.batch_norm(x, mean, var, weights.get("weight"), weights.get("bias"), True, share, self.eps)
        with torch.no_grad():
            for name, own in statistics.items():
                (axis,) = self._axes[name]
                stored = self.stored(name)
                assert stored is not None
                stored[self._dims[axis.word].channels().to(stored.device)] = own
        return x


class _Scale(Narrowed):
    """MetaFormer's scale of each channel, which holds the shape that it gives to its weight.

    Shapes: (B, D, H, W) or (B, N, D), as the input.
    Cost: 0 MACs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Scale."""
        ones = (1,) * (len(vars(self)["shape"]) - 1)
        return x * self.cut("scale")["scale"].view(-1, *ones)

    def export(self) -> nn.Module:
        """Return the library's scale of the active subnet."""
        made: Any = super().export()
        made.shape = (len(made.scale), *made.shape[1:])
        return made  # type: ignore[no-any-return]


class _LayerNorm(Narrowed):
    """timm's layer norm, whose code reads gain and bias apart: here they are cut together, in one step of the graph.

    Shapes: (..., K) -> (..., K).
    Cost: 0 MACs.
    """

    normalized_shape: tuple[int, ...]
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        if vars(self)["_fast_norm"]:
            return super().forward(x)  # type: ignore[no-any-return]
        weights = self.cut("weight", "bias")
        return F.layer_norm(x, self.normalized_shape, weights.get("weight"), weights.get("bias"), self.eps)


LAYERS: dict[str, type[Narrowed]] = {
    "timm.models.metaformer.Scale": _Scale,
    "timm.layers.norm.LayerNorm": _LayerNorm,
}
"""What stands first among the bases of the class that narrows a layer, by its full name."""

"""Attention that its library ties to the width of the input, freed: the same layers, any number of heads.

Their code reshapes what the heads gather to the width of the input. Where the heads in use add up to another width, the same
computation runs in a class whose code asks its layers, and the export is of that class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vitas import plain
from vitas.nn.layer import like
from vitas.wrapping.narrow import Narrowed
from vitas.wrapping.narrow import plain as exported


class Freed(Narrowed):
    """Attention that runs its library's code where that fits, else `free`, which fits always.

    Compiled, one graph of `free` serves all subnets.
    """

    free: Callable[..., Any]

    @property
    def tied(self) -> bool:
        """Whether the library's own class can express the active subnet."""
        return bool(self._dims["h d"].active == self._dims["w"].active)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Attend."""
        if torch.compiler.is_compiling() or not self.tied:
            return type(self).free(self, *inputs, **options)
        return super().forward(*inputs, **options)

    def export(self) -> nn.Module:
        """Return the library's attention where it can express the active subnet, else the same of another class."""
        return super().export() if self.tied else self.freed()

    def freed(self) -> nn.Module:
        """Return the active subnet as a class that fits always."""
        raise NotImplementedError


class _InPlain(Freed):
    """Attention of timm whose code vitas.plain has too."""

    heads = property(lambda self: lambda: self._dims["h"].active)  # asked by the code of vitas.plain

    def filled(self, made: nn.Module) -> nn.Module:
        """Return attention of vitas.plain with the dropout and the mode of this one."""
        for name in ("attn_drop", "proj_drop"):
            made.register_module(name, exported(self._modules[name]))
        return like(self, made)


class _Windows(_InPlain):
    """timm's LocallyGroupedAttn by the code of vitas.plain.WindowAttention."""

    ws: int
    q_norm = k_norm = staticmethod(lambda x: x)
    attend = plain.WindowAttention.attend
    free = plain.WindowAttention.forward
    window = plain.WindowAttention.window
    window_size = property(lambda self: self.ws)

    def freed(self) -> nn.Module:
        """Return attention of vitas.plain."""
        qkv, proj = (exported(getattr(self, name)) for name in ("qkv", "proj"))
        return self.filled(plain.WindowAttention(qkv, proj, self._dims["h"].active, self.ws))


class _Subsampled(_InPlain):
    """timm's GlobalSubSampleAttn, and PVTv2's attention, by the code of vitas.plain.SubsampledAttention."""

    free = plain.SubsampledAttention.forward

    def freed(self) -> nn.Module:
        """Return attention of vitas.plain."""
        q, kv, proj, sr, norm = (exported(getattr(self, name)) for name in ("q", "kv", "proj", "sr", "norm"))
        return self.filled(plain.SubsampledAttention(q, kv, proj, self._dims["h"].active, sr, norm))


FORWARDS: dict[str, type[nn.Module]] = {
    "timm.models.twins.LocallyGroupedAttn": _Windows,
    "timm.models.twins.GlobalSubSampleAttn": _Subsampled,
}
"""What stands first among the bases of the class that narrows an attention, by its full name."""

"""The blocks themselves: compiled one by one; stochastic depth laid over those that run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitas.choice import Depth, Mark, compiling, mark_sizes, noted, outside_graphs
from vitas.nn.drop_path import drop_samples
from vitas.wrapping.narrow import Narrowed


class Slot(Narrowed):
    """A block in a row; torch.compile compiles the block and not the row."""

    holds = (*Narrowed.holds, "_depth")
    _depth: Depth

    @outside_graphs(recursive=False)
    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the library's code."""
        first = inputs[0] if inputs else None
        mark_sizes(first)
        if isinstance(first, Tensor):
            inputs = (_noted_eagerly(first, self._depth.mark), *inputs[1:])
        x = super().forward(*inputs, **options)
        mark_sizes(x)
        return x


_noted_eagerly = outside_graphs(noted)


class ElasticDropPath(Narrowed):
    """Stochastic depth whose rate follows the block's place among those that run: the model's rates, stretched over them.

    `slot` is the block's number in its row, `before` the depths of the rows before it, `depths` those of all rows.

    Shapes: (B, ...) -> (B, ...).
    Cost: 0 MACs.
    """

    reads = ("drop_prob",)
    holds = (*Narrowed.holds, "slot", "rates", "before", "depths")
    slot: Mark[int]
    rates: tuple[float, ...]
    before: tuple[Depth, ...]
    depths: tuple[Depth, ...]

    @property
    def drop_prob(self) -> float:
        """The rate in the active subnet."""
        last = sum(depth.active for depth in self.depths) - 1
        place: float = self._number() * (len(self.rates) - 1) / max(last, 1)
        below = min(int(place), len(self.rates) - 1)
        above = min(below + 1, len(self.rates) - 1)
        return self.rates[below] + (place - below) * (self.rates[above] - self.rates[below])

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples; compiled, one graph serves every slot and depth (with other random numbers than eager)."""
        if not self.training or not compiling():
            return super().forward(x)  # type: ignore[no-any-return]
        last = len(self.rates) - 1
        rates, place = torch.tensor(self.rates, device=x.device), self._number(x.device) * last
        steps = torch.sym_max(sum(depth.active for depth in self.depths) - 1, 1)
        below = _at_most(place // steps, last)
        share = place / steps - below
        rate = rates[below] + share * (rates[_at_most(below + 1, last)] - rates[below])
        return drop_samples(x, 1 - rate, bool(vars(self).get("scale_by_keep", True)))

    def _number(self, device: torch.device | None = None) -> Any:
        """Return how many blocks run before this one; compiled, a symbol or a tensor on `device`."""
        own = self.depths[len(self.before)]
        return own.earlier(self.slot, device) + sum(depth.active for depth in self.before)


def _at_most(number: Any, most: int) -> Any:
    """Return the smaller of a number, which is a symbol or a tensor, and an int."""
    return number.clamp(max=most) if isinstance(number, Tensor) else torch.sym_min(number, most)


DROP_PATHS = (
    "timm.layers.drop.DropPath",
    "transformers.models.dinov2.modeling_dinov2.Dinov2DropPath",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersDropPath",
    "transformers.models.dinov3_vit.modeling_dinov3_vit.Dinov3ViTDropPath",
    "transformers.models.swin.modeling_swin.SwinDropPath",
    "transformers.models.swinv2.modeling_swinv2.Swinv2DropPath",
)


def drop_paths(rows: Sequence[Sequence[nn.Module]], depths: Sequence[Depth]) -> list[tuple[nn.Module, dict[str, Any]]]:
    """Return each module of stochastic depth in several rows in turn, and what it holds when its rate follows the depths."""
    parts = [[dict(block.named_modules()) for block in row] for row in rows]
    names = {
        name: None for row in parts for block in row for name, part in block.items() if name_of(type(part)) in DROP_PATHS
    }
    found = []
    for name in names:
        drops = [[block.get(name) for block in row] for row in parts]
        rates = tuple(float(getattr(drop, "drop_prob", 0.0)) for row in drops for drop in row)
        for number, row in enumerate(drops):
            for slot, drop in enumerate(row):
                if drop is not None and name_of(type(drop)) in DROP_PATHS:
                    before = tuple(depths[:number])
                    held = {"slot": Mark(slot), "rates": rates, "before": before, "depths": tuple(depths), "_dims": {}}
                    found.append((drop, held))
    return found


def name_of(kind: type) -> str:
    """Return the full name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"

"""Stochastic depth whose rate follows the place of a block among those that run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitas import plain
from vitas.checks import check_rates
from vitas.choice import Choice, Depth, Mark, compiling
from vitas.nn.layer import Elastic, like


class DropPath(Elastic, plain.DropPath):
    """Stochastic depth whose rate depends on where the block stands among those that run.

    Shapes: (B, ...) -> (B, ...).
    Cost: 0 MACs.
    Source: linear decay, Huang et al., arXiv:1603.09382v3, section 3; laying it over the blocks that run is ours (the
    public ViTAS code counts identities too).

    Args:
        drop_prob: Probability of dropping a sample's branch, until a ShiftableIdentity lays its rates.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__(drop_prob)
        self.lay(drop_prob, 0, (), ())

    def lay(
        self,
        rate: float,
        slot: int,
        before: Sequence[Choice[int]],
        total: Sequence[Choice[int]],
        depth: Depth | None = None,
    ) -> None:
        """Take the rate from the block's place among those that run: 0 for the first, `rate` for the last.

        Args:
            rate: Rate of the last block.
            slot: The block's number in its row, of which `depth` tells how many run before it; without a depth, how many
                blocks always do.
            before: Choices whose values add up to the number of other blocks that run before it.
            total: Choices whose values add up to the number of blocks that run.
            depth: Which blocks of the row run.

        Raises:
            ChoiceError: a rate that is not a number in [0, 1).
        """
        self.drop_prob = rate
        self._slot, self._before, self._total, self._depth = Mark(slot), tuple(before), tuple(total), depth

    @property
    def drop_prob(self) -> float:
        """The rate in the active subnet.

        Raises:
            ChoiceError: on setting anything but a number in [0, 1).
        """
        if not self._total:
            return self._rate
        earlier, last = self._counted()
        return self._rate * earlier / last if last > 0 else 0.0

    @drop_prob.setter
    def drop_prob(self, rate: float) -> None:
        check_rates(drop_prob=rate)
        self._rate = float(rate)

    def _counted(self, device: torch.device | None = None) -> tuple[Any, int]:
        """Return how many blocks run before this one, and before the last one; compiled, they are symbols or on `device`."""
        own = self._slot.read(0) if self._depth is None else self._depth.earlier(self._slot, device)
        return own + sum(choice.active for choice in self._before), sum(choice.active for choice in self._total) - 1

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples; compiled, one graph serves every slot and depth (with other random numbers than eager)."""
        if not compiling() or not self._total:
            return super().forward(x)
        if not self.training:
            return x
        earlier, last = self._counted(x.device)
        return drop_samples(x, 1 - self._rate * earlier / torch.sym_max(last, 1))

    def export(self) -> nn.Module:
        """Return plain drop path at the rate that it has in the active subnet; an identity where that is 0."""
        return like(self, plain.DropPath(self.drop_prob) if self.drop_prob else nn.Identity())


def drop_samples(x: Tensor, keep: Any, scale_by_keep: bool = True) -> Tensor:
    """Zero whole samples and divide the others by `keep`, the probability of being kept: a number, symbol or tensor."""
    mask = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device).uniform_() < keep
    scale: Tensor = mask / keep if scale_by_keep else mask
    return x * scale.to(x.dtype)

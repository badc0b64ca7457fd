"""Which channels stand where: a permutation that keeps a model's function and puts large weights where most widths use them.

A width uses a run of positions. Any permutation of a Dim's channels, applied to all weights that touch them, keeps the
function of the largest subnet; it decides which channels the smaller widths inherit.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vitas.choice import Choice, Dim
from vitas.nn import Elastic
from vitas.nn.layer import Stack


class _Use(NamedTuple):
    """A tensor of which one axis has a place for each unit of a choice: a channel, a head, an MLP unit."""

    units: Choice[Any]
    tensor: Tensor
    axis: int
    weighs: bool  # whether the units' importance is read off this tensor


@torch.no_grad()
def order_by_magnitude(model: nn.Module) -> None:
    """Permute heads, MLP units and channels so that those with the largest weights serve the most widths.

    The importance of a unit is its share of the squared weights of each linear layer and convolution that reads or
    writes it, summed over these layers. Positions are ranked by the probability that a width uses them, then by how small
    those widths are: in cyclic sharing all positions serve nearly as many widths, so there the rank mostly says that the
    smallest widths get the largest weights.

    Source: channels sorted by the size of their weights, Cai et al. (Once-for-all), arXiv:1908.09791; shares summed over all
    layers of a width, and positions on a ring, are ours.

    Args:
        model: A model whose searchable Dims are those of elastic layers.
    """
    uses: dict[Choice[Any], list[_Use]] = {}
    dims: dict[Choice[Any], Dim] = {}
    for module in model.modules():
        for dim, use in _uses_in(module):
            uses.setdefault(use.units, []).append(use)
            dims[use.units] = dim
    for units, at in uses.items():
        importance = torch.stack([_importance(use) for use in at if use.weighs]).sum(dim=0)
        order = torch.empty(units.largest, dtype=torch.long)
        order[_positions(dims[units], units.largest)] = torch.argsort(importance, descending=True, stable=True)
        for use in at:
            use.tensor.copy_(use.tensor.index_select(use.axis, order.to(use.tensor.device)))


def _uses_in(module: nn.Module) -> Iterator[tuple[Dim, _Use]]:
    """Yield every axis of a layer's own parameters that a searchable Dim counts."""
    if not isinstance(module, Elastic):
        return
    for name, dims in module.axes().items():
        if (tensor := module.stored(name)) is None:
            continue
        weighs, axis = name == "weight" and isinstance(module, (nn.Linear, nn.Conv2d)), 0
        for dim in dims:
            if isinstance(dim, Stack):  # each part is permuted alike
                tensor, axis, dim = torch.unflatten(tensor, axis, (dim.parts, -1)), axis + 1, dim.dim
            if dim is not None and not dim.fixed:
                (units,) = dim.bases
                shape = (*tensor.shape[:axis], units.largest, -1, *tensor.shape[axis + 1 :])
                yield dim, _Use(units, tensor.view(shape), axis, weighs)
            axis += 1


def _importance(use: _Use) -> Tensor:
    """Return the share of each unit in the squares of a tensor, (units,)."""
    squares = use.tensor.detach().double().square().movedim(use.axis, 0).flatten(1).sum(dim=1).cpu()
    return squares / squares.sum().clamp_min(torch.finfo(torch.double).tiny)


def _positions(dim: Dim, units: int) -> Tensor:
    """Return the positions of a Dim's units, those that serve the most widths first."""
    width = dim.largest // units
    often, small = np.zeros(units), np.zeros(units)
    for runs in dim.sides:
        for (start, length), p in zip(runs, dim.p, strict=True):
            run = np.arange(start // width, (start + length) // width) % units
            often[run] += p
            small[run] += p / length
    return torch.from_numpy(np.lexsort((-small, -often.round(9))))

"""Cutting the active part out of the shared weights of a layer."""

from typing import Any

from torch import Tensor

from vitas.choice.marks import by_selection, refuse_reentrant
from vitas.choice.slicing import cut, select
from vitas.errors import ShapeError


def take(**weights: Any) -> dict[str, Tensor]:
    """Return the active part of each weight of a layer, all cut in one step of the graph.

    Shapes: (L1, L2, ...) -> (K1, K2, ...).

    Args:
        weights: name=(weight, dim of its first axis, dim of its second axis, ...); None leaves an axis whole, and a weight
            that is None is left out.

    Raises:
        ShapeError: an axis does not have the Dim's `largest` channels.
        CheckpointError: inside the recomputation of reentrant checkpointing.
    """
    selecting = by_selection()
    if not selecting:
        refuse_reentrant()
    result: dict[str, Tensor] = {}
    names, tensors, cuts, marks = [], [], [], {}
    for name, (tensor, *dims) in weights.items():
        if tensor is None:
            continue
        runs = []
        for axis, dim in enumerate(dims):
            if dim is None:
                continue
            if tensor.shape[axis] != dim.values[-1]:
                raise ShapeError(
                    f"{dim.label}: expected {dim.largest} channels along axis {axis}, got shape {tuple(tensor.shape)}"
                )
            mark = dim.mark
            if mark.tensor is None:
                continue
            if selecting:
                tensor = select(tensor, axis, mark)
                continue
            length, start = mark.numbers
            if length < dim.values[-1]:
                runs.append((axis, start, length))
                marks[id(dim)] = mark.tensor
        result[name] = tensor
        if runs:
            names.append(name)
            tensors.append(tensor)
            cuts.append(runs)
    if names:
        result.update(zip(names, cut(tensors, cuts, list(marks.values())), strict=True))
    return result

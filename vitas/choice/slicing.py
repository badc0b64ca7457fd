"""How the run of a width, a stretch of channels on the ring, is cut out of a shared tensor, and how its gradient gets back.

Eager: a view where no run wraps around its ring, else one copy of at most 2 pieces an axis; one gradient of the full size,
zero outside the runs. Under torch.compile: `index_select` with indices computed from symbols, so that one graph serves
every width (`Mark`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitas.choice.marks import Mark, tensors_are_hooked

Cut = tuple[int, int, int]
"""(axis, start, length): a run along an axis; it may wrap around the end."""


def cut(tensors: Sequence[Tensor], cuts: Sequence[Sequence[Cut]], marks: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the runs `cuts[i]` of each `tensors[i]`.

    Args:
        tensors: Shared weights of one layer.
        cuts: For each tensor the runs along its axes.
        marks: The tensors of the Dims' marks, saved for checkpointing.
    """
    if torch.is_grad_enabled():
        if any(tensor.requires_grad for tensor in tensors):
            return _Cut.apply(cuts, len(tensors), *tensors, *marks)  # type: ignore[no-any-return]
        if tensors_are_hooked():
            # Inside a checkpoint frozen weights leave a mark too, by way of an input that wants a gradient.
            anchor = torch.empty(0, requires_grad=True)
            return _Cut.apply(cuts, len(tensors), *tensors, *marks, anchor)  # type: ignore[no-any-return]
    return [_gather(tensor, runs) for tensor, runs in zip(tensors, cuts, strict=True)]


def select(tensor: Tensor, axis: int, mark: Mark[int]) -> Tensor:
    """Return the run that `mark` tells, (length, start), in the form that torch.compile can keep in one graph."""
    length, start = mark.read(0), mark.read(1)
    index = (torch.arange(length, device=tensor.device) + start) % tensor.shape[axis]
    return tensor.index_select(axis, index)


class _Cut(torch.autograd.Function):
    """Slicing with one zeroed gradient for each tensor, where two `narrow` calls would make two.

    Written in torch's older style, whose call costs 4 us where `setup_context` costs 34 (torch 2.14); function
    transforms, which need the newer one, take the path of torch.compile.
    """

    @staticmethod
    def forward(ctx: Any, cuts: Sequence[Sequence[Cut]], n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.cuts = cuts
        ctx.shapes = [tensor.shape for tensor in tensors[:n]]
        ctx.save_for_backward(*tensors[n:])
        ctx.set_materialize_grads(False)
        return tuple([_gather(tensor, runs) for tensor, runs in zip(tensors[:n], cuts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        marks = ctx.saved_tensors  # unpacking makes a checkpoint compare these with the recomputed ones
        full = [
            None if grad is None else _scatter(grad, shape, runs)
            for grad, shape, runs in zip(grads, ctx.shapes, ctx.cuts, strict=True)
        ]
        return None, None, *full, *[None] * len(marks)


def _gather(tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """Return a view, or where a run wraps a copy."""
    shape = list(tensor.shape)
    wraps = False
    for axis, start, length in cuts:
        wraps = wraps or start + length > shape[axis]
        shape[axis] = length
    if not wraps:
        for axis, start, length in cuts:
            tensor = tensor.narrow(axis, start, length)
        return tensor
    part = tensor.new_empty(shape)
    for source, target in _pieces(tensor, part, cuts):
        target.copy_(source)
    return part


def _scatter(grad: Tensor, shape: torch.Size, cuts: Sequence[Cut]) -> Tensor:
    """Return a gradient of the full size, zero outside the runs."""
    if torch.is_grad_enabled():  # create_graph=True: out of place, so that it can be differentiated again
        for axis, start, length in cuts:
            index = (torch.arange(length, device=grad.device) + start) % shape[axis]
            size = [*grad.shape[:axis], shape[axis], *grad.shape[axis + 1 :]]
            grad = grad.new_zeros(size).index_copy(axis, index, grad)
        return grad
    full = grad.new_zeros(shape)
    for target, source in _pieces(full, grad, cuts):
        target.copy_(source)
    return full


def _pieces(full: Tensor, part: Tensor, cuts: Sequence[Cut]) -> list[tuple[Tensor, Tensor]]:
    """Return the views of `full` and of `part` for each rectangle that does not wrap."""
    pairs = [(full, part)]
    for axis, start, length in cuts:
        first = full.shape[axis] - start
        if first >= length:
            pairs = [(whole.narrow(axis, start, length), piece) for whole, piece in pairs]
        else:
            pairs = [
                (whole.narrow(axis, begin, n), piece.narrow(axis, at, n))
                for whole, piece in pairs
                for begin, at, n in ((start, 0, first), (0, first, length - first))
            ]
    return pairs

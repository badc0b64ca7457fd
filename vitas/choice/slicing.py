"""How the run of a width is cut out of a shared tensor, and how its gradient gets back.

Eager: a view where no run wraps around its ring, else one copy of at most 2 pieces an axis; one gradient of the full size,
zero outside the runs. Under torch.compile: `index_select` with indices computed from tensor *shapes*, so that one graph
serves every width (`mark`).
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from vitas.errors import CheckpointError

_OFFSET = 2
"""Added to the sizes of a mark, since torch.compile makes special cases of the sizes 0 and 1."""


Cut = tuple[int, int, int]
"""(axis, start, length): a run along an axis; it may wrap around the end."""


@torch.inference_mode(False)
def mark(*numbers: int) -> Tensor:
    """Return an empty tensor whose shape holds `numbers`; read them with `marked`.

    Compiled code may read shapes without being specialised to them, and a saved mark makes torch's (non-reentrant)
    checkpointing notice that a recomputation ran another subnet. Ours; the idea of a size carried by a shape is
    torch._dynamo's dynamic shapes (torch 2.13).
    """
    from torch._dynamo import maybe_mark_dynamic

    tensor = torch.empty(*(number + _OFFSET for number in numbers), 0, device="cpu")
    maybe_mark_dynamic(tensor, list(range(len(numbers))))
    return tensor


outside_graphs = _disable_dynamo
"""Decorator of functions that torch.compile leaves alone; with recursive=False what they call is compiled."""


@outside_graphs
def mark_sizes(tensor: object) -> None:
    """Tell torch.compile that every size of an activation but the first (the batch) may change with the subnet."""
    from torch._dynamo import maybe_mark_dynamic

    if isinstance(tensor, Tensor):
        maybe_mark_dynamic(tensor, list(range(1, tensor.ndim)))


def marked(tensor: Tensor, position: int) -> int:
    """Return a number that a mark holds; under torch.compile it stays symbolic."""
    return tensor.shape[position] - _OFFSET


def cut(tensors: Sequence[Tensor], cuts: Sequence[Sequence[Cut]], marks: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the runs `cuts[i]` of each `tensors[i]`.

    Args:
        tensors: Shared weights of one layer.
        cuts: For each tensor the runs along its axes.
        marks: The marks of the Dims, saved for checkpointing.
    """
    if torch.is_grad_enabled():
        if any(tensor.requires_grad for tensor in tensors):
            return _Cut.apply(cuts, len(tensors), *tensors, *marks)  # type: ignore[no-any-return]
        if tensors_are_hooked():
            # Inside a checkpoint frozen weights leave a mark too, by way of an input that wants a gradient.
            anchor = torch.empty(0, requires_grad=True)
            return _Cut.apply(cuts, len(tensors), *tensors, *marks, anchor)  # type: ignore[no-any-return]
    return [_gather(tensor, runs) for tensor, runs in zip(tensors, cuts, strict=True)]


def select(tensor: Tensor, axis: int, mark: Tensor) -> Tensor:
    """Return one run of `tensor` in the form that torch.compile can keep in one graph."""
    start, length = marked(mark, 1), marked(mark, 0)
    index = (torch.arange(length, device=tensor.device) + start) % tensor.shape[axis]
    return tensor.index_select(axis, index)


def noted(x: Tensor, *marks: Tensor | None) -> Tensor:
    """Return `x`, having left `marks` for a checkpoint around it to compare with those of its recomputation."""
    if by_selection() or not torch.is_grad_enabled() or not tensors_are_hooked():
        return x
    anchor = torch.empty(0, requires_grad=True)
    return _Noted.apply(x, anchor, *(mark for mark in marks if mark is not None))  # type: ignore[no-any-return]


class _Noted(torch.autograd.Function):
    """Identity that saves marks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *marks: Tensor) -> Tensor:
        ctx.save_for_backward(*marks)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *(None for _ in ctx.saved_tensors)


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
        marks = ctx.saved_tensors  # unpacking is what makes a checkpoint compare this run with the recomputed one
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


def by_selection() -> bool:
    """Say whether slices are to be made by `select`: under torch.compile and inside torch.func transforms."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def tensors_are_hooked() -> bool:
    """Say whether hooks see what is saved for the backward pass, as inside a (non-reentrant) checkpoint."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("no hooks are set"):  # refused while there are hooks
            return False
    except RuntimeError:
        return True


class _Thread(threading.local):
    restored = False


_thread = _Thread()


@contextmanager
def restored() -> Iterator[None]:
    """Hold that a recomputation runs the subnet that ran, so that `refuse_reentrant` has nothing to find out."""
    before, _thread.restored = _thread.restored, True
    try:
        yield
    finally:
        _thread.restored = before


def refuse_reentrant() -> None:
    """Refuse to run in the recomputation of reentrant checkpointing, which uses whatever subnet is active by then.

    Raises:
        CheckpointError: inside a backward pass, with gradients on and no saved-tensor hooks: only reentrant checkpointing
            (or a model called from a custom backward) runs forwards there.
    """
    if torch._C._current_graph_task_id() == -1 or not torch.is_grad_enabled() or _thread.restored:
        return
    if not tensors_are_hooked():
        raise CheckpointError(
            "reentrant checkpointing recomputes with whatever subnet is active by then, not with the one that ran;"
            " use model.set_grad_checkpointing() or torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )

"""What the active subnet is, in the form in which eager code, compiled code and checkpoints can each read it.

Layers read `choice.active` and `dim.run`, which read a Mark, and never ask how. Only what has to compute something else in
compiled code, since nothing there may branch on an active value, asks `compiling()`.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, update_wrapper
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from vitas.choice.values import V
from vitas.errors import CheckpointError, ExportError

F = TypeVar("F", bound=Callable[..., Any])

_OFFSET = 2
"""Added to the sizes of a mark, since torch.compile makes special cases of the sizes 0 and 1."""


class Mark(Generic[V]):
    """Numbers that belong to one value of a choice, for instance where its channels start and how many there are.

    Eager code reads the numbers. Compiled code reads sizes of an empty tensor, as symbols: it may read shapes without being
    specialised to them, so that one graph serves every subnet. And a saved tensor makes torch's (non-reentrant)
    checkpointing notice that a recomputation ran another subnet. Ours; the idea of a size carried by a shape is
    torch._dynamo's dynamic shapes (torch 2.13).

    Args:
        numbers: Ints; with `fixed` any numbers.
        fixed: Whether they are the same in every subnet, so that a graph may hold them as constants.

    Attributes:
        numbers: The numbers.
        tensor: The tensor that carries them; None where they are fixed.
    """

    def __init__(self, *numbers: V, fixed: bool = False) -> None:
        self.numbers: tuple[V, ...] = numbers
        self.tensor: Tensor | None = None if fixed else _carrier(numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), fixed=self.tensor is None), self.numbers  # copied sizes would be fixed for torch.compile

    def read(self, position: int) -> V:
        """Return one of the numbers; under torch.compile it is a symbol, to compute with but not to branch on.

        Raises:
            CheckpointError: inside the recomputation of reentrant checkpointing.
        """
        if self.tensor is None:
            return self.numbers[position]
        if compiling():
            return self.tensor.shape[position] - _OFFSET
        refuse_reentrant()
        return self.numbers[position]


@torch.inference_mode(False)
def _carrier(numbers: tuple[float, ...]) -> Tensor:
    """Return an empty tensor whose shape holds ints."""
    with torch.device("cpu"):  # under another one, such as "meta", torch 2.8 cannot load its compiler
        from torch._dynamo import maybe_mark_dynamic

    tensor = torch.empty(*(int(number) + _OFFSET for number in numbers), 0, device="cpu")
    maybe_mark_dynamic(tensor, list(range(len(numbers))))
    return tensor


def compiling() -> bool:
    """Say whether torch.compile is making a graph, in which active values are symbols and may not decide what is computed.

    Raises:
        ExportError: torch.export, torch.onnx.export or torch.jit.trace is recording.
    """
    compiled = torch.compiler.is_compiling()
    if compiled and torch.compiler.is_dynamo_compiling():
        refuse_export()
        return True
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if compiled or traced:  # what compiles without Dynamo is torch.export
        raise _one_network()
    return False


def refuse_onnx() -> None:
    """Refuse to be printed by torch.onnx, which prints a model and then packs what goes wrong in errors of its own.

    Raises:
        ExportError: torch.onnx.export is recording.
    """
    onnx = sys.modules.get("torch.onnx")  # torch loads it when it is used
    if onnx is not None and onnx.is_in_onnx_export():
        raise _one_network()


def _one_network() -> ExportError:
    return ExportError(
        "export a subnet first, export_subnet(model): torch.export, torch.onnx and torch.jit record one network"
    )


def refuse_export() -> None:
    """Refuse to be recorded by torch.export, which with strict=True traces code as torch.compile does.

    Errors in traced code are packed up; what is given to `comptime` the tracer runs as it is.

    Raises:
        ExportError: torch.export is recording.
    """
    if torch.compiler.is_compiling():
        from torch._dynamo.comptime import comptime

        comptime(_refuse_export, _refuse_export)


def _refuse_export(_: object = None) -> None:
    if torch.compiler.is_exporting():  # in traced code it is always true before torch 2.14
        raise _one_network()


@overload
def outside_graphs(function: F) -> F: ...


@overload
def outside_graphs(*, recursive: bool) -> Callable[[F], F]: ...


def outside_graphs(function: Any = None, *, recursive: bool = True) -> Any:
    """Decorate a function that torch.compile leaves alone; with recursive=False what it calls is compiled.

    Strict torch.export cannot leave it alone, and refuses before it meets it.
    """
    if function is None:
        return partial(outside_graphs, recursive=recursive)
    hidden: Any = _disable_dynamo(function, recursive)

    def met(*arguments: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            refuse_export()
        return hidden(*arguments, **options)

    _traced_with_its_callers(met)
    return update_wrapper(met, function)


def _traced_with_its_callers(function: Any) -> None:
    """Tell torch.compile never to compile a function alone; where torch has no word for it, it may, which costs time."""
    with suppress(ImportError, AttributeError):
        from torch._C._dynamo import eval_frame

        alone = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT)
        eval_frame.set_code_exec_strategy(function.__code__, alone)


@outside_graphs
def mark_sizes(tensor: object) -> None:
    """Tell torch.compile that every size of an activation but the first (the batch) may change with the subnet."""
    from torch._dynamo import maybe_mark_dynamic

    if isinstance(tensor, Tensor):
        maybe_mark_dynamic(tensor, list(range(1, tensor.ndim)))


def noted(x: Tensor, *marks: Mark[Any]) -> Tensor:
    """Return `x`, having left `marks` for a checkpoint around it to compare with those of its recomputation."""
    if by_selection() or not torch.is_grad_enabled() or not tensors_are_hooked():
        return x
    anchor = torch.empty(0, requires_grad=True)
    return _Noted.apply(x, anchor, *(mark.tensor for mark in marks if mark.tensor is not None))  # type: ignore[no-any-return]


class _Noted(torch.autograd.Function):
    """Identity that saves the tensors of marks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *marks: Tensor) -> Tensor:
        ctx.save_for_backward(*marks)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *(None for _ in ctx.saved_tensors)


def by_selection() -> bool:
    """Say whether slices are to be made by `select`: under torch.compile and inside torch.func transforms."""
    return compiling() or torch._C._functorch.peek_interpreter_stack() is not None


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
    """Refuse to compute in the recomputation of reentrant checkpointing, which uses whatever subnet is active by then.

    Raises:
        CheckpointError: inside a backward pass, with gradients on and no saved-tensor hooks: only reentrant checkpointing
            (or a model called from a custom backward) computes forwards there.
    """
    if torch._C._current_graph_task_id() == -1 or not torch.is_grad_enabled() or _thread.restored:
        return
    if not tensors_are_hooked():
        raise CheckpointError(
            "reentrant checkpointing recomputes another subnet than the one that ran;"
            " use model.set_grad_checkpointing() or checkpoint(..., use_reentrant=False)"
        )

"""What times are measured in: torch, torch.compile, ONNX Runtime, or a function of one's own."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vitas.errors import VitasError, needs, one_of

Runner = Callable[[nn.Module, tuple[Tensor, ...]], Callable[[], object]]
"""Makes of a plain module and the tensors that it gets a function that runs it once."""


def in_torch(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Run a module as it is."""
    return partial(module, *inputs)


def compiled(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Run a module compiled for these shapes by torch.compile."""
    torch.compiler.reset()  # else the parts of one class count as one function, which is compiled a few times only
    return partial(torch.compile(module, dynamic=False), *inputs)


def in_onnxruntime(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Run a module in ONNX Runtime on the CPU, with as many threads as torch has."""
    with needs("onnx"):
        import onnxruntime

    file: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and traced for the shapes at hand
        torch.onnx.export(module, inputs, file, dynamo=False)  # 0.03 s for a part; the newer exporter takes 3 s (torch 2.14)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    names = [it.name for it in session.get_inputs()]
    return partial(session.run, None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})


RUNNERS: dict[str, Runner] = {"torch": in_torch, "torch.compile": compiled, "onnxruntime": in_onnxruntime}


def as_runner(runner: str | Runner) -> Runner:
    """Return a runner, by its name or itself.

    Raises:
        VitasError: neither the name of one nor a function.
    """
    if isinstance(runner, str) and runner in RUNNERS:
        return RUNNERS[runner]
    if isinstance(runner, str) or not callable(runner):
        raise VitasError(f"runner: {one_of([*RUNNERS, 'a function (module, inputs) -> function'], runner)}")
    return runner


def prepared(runner: Runner, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], object]:
    """Return what runs a module once with these arguments.

    Raises:
        VitasError: a runner of one's own that returned nothing to call.
    """
    if kwargs or not all(isinstance(argument, Tensor) for argument in args):
        call = Call(module, tuple(args), dict(kwargs))
        module, args = call, call.tensors
    run = runner(module, tuple(args))
    if not callable(run):
        raise VitasError(f"runner: expected it to return a function without arguments, got {type(run).__name__}")
    return run


class Call(nn.Module):
    """A module with all that it is called with but the tensors."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.training = module, module.training
        self._leaves, self._tree = pytree.tree_flatten((args, kwargs))
        self._places = [place for place, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self.tensors = tuple(self._leaves[place] for place in self._places)

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, self._tree)
        return self.module(*args, **kwargs)

"""Containers of blocks of which the first run, in place of a model's lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from vitas.choice import outside_graphs
from vitas.errors import VitasError
from vitas.nn import Elastic, ShiftableIdentity
from vitas.nn.layer import exported, like
from vitas.space import State


class Row(ShiftableIdentity):
    """Slots of which the first `depth` run, in place of a Sequential or ModuleList of blocks.

    Shapes: those of the blocks.
    Cost: the sum over the blocks that run.
    """

    container: type[nn.Module]

    def export(self) -> nn.Module:  # type: ignore[override]
        """Return the blocks that run in the container that the model had."""
        return like(self, _contained(self.container, [exported(block) for block in self.running()]))


class Rows(Elastic, nn.ModuleList):
    """The rows of all stages, where a model holds them in one list."""

    def export(self) -> nn.ModuleList:
        """Return the blocks that run, a list for each stage."""
        return like(self, nn.ModuleList(exported(row) for row in self))


def _contained(container: type[nn.Module], blocks: Sequence[Any]) -> nn.Module:
    return container(*blocks) if issubclass(container, nn.Sequential) else container(blocks)


CHANGES = (
    *(name for name in dict.fromkeys((*dir(nn.Sequential), *dir(nn.ModuleList))) if name.startswith(("register_", "set_"))),
    *("add_module", "append", "extend", "insert", "pop", "__setitem__", "__delitem__", "__iadd__", "__imul__"),
    *("__setattr__", "__delattr__"),
)
"""Methods that change a container itself, or a block."""

ALL_BLOCKS = (
    *("requires_grad_", "train", "eval", "zero_grad", "apply", "_apply", "to", "to_empty", "cpu", "cuda", "ipu", "xpu"),
    *("mtia", "half", "float", "double", "bfloat16", "type", "share_memory", "load_state_dict", "compile"),
)
"""Methods that change every block in a container."""


class _View:
    """Blocks that run, in a container made for the moment.

    What changes the container would be lost and is refused; what changes every block reaches those at rest too. A slice is
    a container of its own, as of torch's. An attribute "5", by which torch walks along the names of parameters, is the block
    that has this number in the whole.
    """

    def __getattr__(self, name: str) -> Any:
        held = vars(self).get("whole")
        if held is not None and name.isdigit():
            return getattr(held[0], name)
        return super().__getattr__(name)  # type: ignore[misc]  # of torch's container, which stands behind


def _of_view(name: str) -> Callable[..., Any]:
    def run(self: Any, *arguments: Any, **named: Any) -> Any:
        held = vars(self).get("whole")
        if held is None:  # while it is made, or a slice
            return getattr(super(_View, self), name)(*arguments, **named)
        if name in CHANGES:
            raise VitasError("this holds the blocks that run; to change the model's blocks export a subnet, or wrap anew")
        (whole,) = held
        done = getattr(whole, name)(*arguments, **named)
        vars(self).update(training=whole.training)
        return self if done is whole else done

    return run


for _name in (*CHANGES, *ALL_BLOCKS):
    setattr(_View, _name, _of_view(_name))


class _Bound(nn.Module):
    """A block that runs in the subnet that was active when this was made, whenever it is run (again).

    All else that is asked of it, hooks too, is asked of the block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._modules["block"] = block
        vars(self)["state"] = State.of_module(block)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        with self.state.restored():
            return self.block(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        block = self._modules["block"]
        return block if name == "block" else getattr(block, name)


def _of_block(name: str) -> Callable[..., Any]:
    return lambda self, *arguments, **named: getattr(self._modules["block"], name)(*arguments, **named)


for _name in set(CHANGES) & set(dir(nn.Module)) - {"register_module"}:
    setattr(_Bound, _name, _of_block(_name))


class _Running(_View, nn.Sequential):
    """The blocks that run one after another, as a model's methods want them: counted, sliced, run one by one or together."""

    @outside_graphs(recursive=False)
    def forward(self, x: Any) -> Any:
        return super().forward(x)  # type: ignore[no-untyped-call]


class _RunningList(_View, nn.ModuleList):
    """The same where the model has a list."""


@outside_graphs  # or torch.compile would make a graph for each depth
def running(owner: nn.Module, blocks: nn.Module) -> nn.Module:
    """Return the blocks that run; while `owner` checkpoints gradients each is bound to the active subnet."""
    view: nn.Module
    if isinstance(blocks, Row):
        bound = torch.is_grad_enabled() and bool(vars(owner).get("grad_checkpointing"))
        run = [_Bound(block) if bound else block for block in blocks.running()]
        view = _Running(*run) if issubclass(blocks.container, nn.Sequential) else _RunningList(run)
    else:
        view = _RunningList(running(owner, row) for row in cast(nn.ModuleList, blocks))
    vars(view).update(whole=(blocks,), training=blocks.training)
    return view


# -- transformers ------------------------------------------------------------------------------------------------------


def of_transformers(narrowed: type[nn.Module]) -> dict[str, Any]:
    """Return what a class that narrows one of transformers needs.

    The library finds by a class's full name what the class records, the file that it reads and the name that it saves. It
    gives every subclass of its layers a forward of its own, which checkpoints gradients.
    """
    added: dict[str, Any] = {"__module__": narrowed.__module__}
    if any(base.__name__ == "GradientCheckpointingLayer" for base in narrowed.__mro__):
        added["_gradient_checkpointing_func"] = property(_bound_checkpoint, _set_checkpoint)
    return added


def _bound_checkpoint(layer: nn.Module) -> Any:
    """Return the function by which a layer checkpoints; recomputed, it runs in the subnet that is active now."""
    checkpoint, state = vars(layer).get("_gradient_checkpointing_func"), State.of_module(layer)
    if checkpoint is None:
        raise AttributeError("_gradient_checkpointing_func: gradient checkpointing is off")

    def bound(function: Any, *inputs: Any) -> Any:
        def run(*inputs: Any) -> Any:
            with state.restored():
                return function(*inputs)

        return checkpoint(run, *inputs)

    return bound


def _set_checkpoint(layer: nn.Module, function: Any) -> None:
    vars(layer)["_gradient_checkpointing_func"] = function

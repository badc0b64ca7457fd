"""Where a model holds its choices: a walk over its modules, through wrappers, noting what must hold for each to run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vitas.choice import Choice, Dim
from vitas.errors import ChoiceError, VitasError, shown

AnyChoice = Choice[Any]


class Gate(NamedTuple):
    """A module runs only while `choice` has one of the values numbered `indices`."""

    choice: AnyChoice
    indices: frozenset[int]


class Holder(NamedTuple):
    """A module that holds a choice: where it stands, and what must hold for it to run."""

    choice: AnyChoice
    path: tuple[str, ...]
    gates: tuple[Gate, ...]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, torch.compile, AveragedModel and the like."""
    if not isinstance(model, nn.Module):
        raise ChoiceError(f"expected a torch.nn.Module, got {type(model).__name__}")
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the only child of a wrapper of torch or timm: it has just one, and calls it `module` or `_orig_mod`."""
    if _looks_like_a_wrapper(module) and type(module).__module__.partition(".")[0] in ("torch", "timm"):
        return next(iter(module._modules.values()))
    return None


def _looks_like_a_wrapper(module: nn.Module) -> bool:
    return list(module._modules) in (["module"], ["_orig_mod"])


def holders(module: nn.Module, path: tuple[str, ...] = (), gates: tuple[Gate, ...] = ()) -> Iterator[Holder]:
    """Walk the modules and yield each searchable choice wherever it is held.

    A module that runs only some of its children has a method `gate_of(name) -> Gate | None`.
    """
    module = unwrap(module)
    for name, choice in held(module):
        for base in choice.bases:
            if not base.fixed:
                yield Holder(base, (*path, name), gates)
    for name, child, gate in gated_children(module):
        inner = path if _looks_like_a_wrapper(module) else (*path, name)
        yield from holders(child, inner, gates if gate is None else (*gates, gate))


def gated_children(module: nn.Module) -> Iterator[tuple[str, nn.Module, Gate | None]]:
    """Yield name and child, and the gate where the child runs for some values of a choice only."""
    gate_of = getattr(module, "gate_of", None)
    for name, child in module._modules.items():
        if child is not None:
            gate: Gate | None = gate_of(name) if gate_of else None
            yield name, child, None if gate is None or len(gate.indices) == len(gate.choice.values) else gate


_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))


def held(module: nn.Module) -> Iterator[tuple[str, AnyChoice]]:
    """Yield the choices that a module itself holds, in attributes or in lists, tuples and dicts there."""
    for attribute, value in vars(module).items():
        if attribute not in _TORCH_ATTRIBUTES:
            yield from _choices_in(attribute, value)


def _choices_in(name: str, value: object) -> Iterator[tuple[str, AnyChoice]]:
    if isinstance(value, Choice):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            if isinstance(item, Choice):
                yield f"{name}.{i}", item
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, Choice):
                yield f"{name}.{key}", item


class State(NamedTuple):
    """What was active in some choices, to be put back later."""

    choices: tuple[AnyChoice, ...]
    indices: tuple[int, ...]
    sides: tuple[int, ...]

    @classmethod
    def of(cls, choices: Iterable[AnyChoice]) -> State:
        """Return the present state of `choices`."""
        choices = tuple(choices)
        return cls(choices, tuple(c._index for c in choices), tuple(getattr(c, "_side", 0) for c in choices))

    @classmethod
    def of_module(cls, module: nn.Module) -> State:
        """Return the present state of every choice that `module` holds."""
        return cls.of({holder.choice: None for holder in holders(module)})

    def put_back(self) -> None:
        """Activate what was active."""
        for choice, index, side in zip(*self, strict=True):
            if isinstance(choice, Dim):
                choice._side = side
            choice._set(index)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Activate what was active for the length of a with block."""
        now = State.of(self.choices)
        self.put_back()
        try:
            yield
        finally:
            now.put_back()


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode for the length of a with block; then each of their parts gets its own flag back."""
    training = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, flag in training.items():
            part.training = flag


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module runs on, that of its first parameter or buffer; the CPU where there is none.

    Raises:
        VitasError: something lies on the meta device, where there are no numbers.
    """
    tensors = list(chain(module.parameters(), module.buffers()))
    if any(tensor.is_meta for tensor in tensors):
        raise VitasError(f"{type(module).__name__} is on the meta device, without numbers; build or load it on a real one")
    return tensors[0].device if tensors else torch.device("cpu")


def arguments_of(inputs: Any, what: str = "inputs") -> tuple[Any, ...]:
    """Return the positional arguments that `inputs` stands for: a tuple as it is, anything else alone.

    Raises:
        ChoiceError: no tensor among them.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(arguments)):
        raise ChoiceError(f"{what}: expected a tensor, or a tuple with a tensor among them, got {shown(inputs)}")
    return arguments

"""Where a model holds its choices: a walk over its modules, through wrappers, noting what must hold for each to run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from vitas.choice import Choice
from vitas.space.model import looks_like_a_wrapper, unwrap

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
        inner = path if looks_like_a_wrapper(module) else (*path, name)
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

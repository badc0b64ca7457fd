"""The parts of a model that are timed one by one, and which of them a subnet runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vitas import plain
from vitas.cost import Cost
from vitas.measure.latency import Latency, timed
from vitas.measure.runners import Runner, prepared
from vitas.nn.layer import exported, is_layer
from vitas.space import AnyChoice, Gate, SearchSpace, gated_children, held, holders, unwrap


class Shape(NamedTuple):
    """Stands for a tensor in the arguments of a call."""

    size: tuple[int, ...]
    dtype: torch.dtype


Call = tuple[tuple[Any, ...], dict[str, Any]]


_IDLE = (nn.Identity, nn.Dropout, plain.DropPath)
"""What does nothing in eval mode."""


class PartTimer:
    """Times modules on a device, with random tensors of given shapes; what is of one make and shape is timed once.

    Attributes:
        statistic: Which of the runs counts.
        timed: How often something was timed: the configurations that share no shape.
        busy: In how many of these the machine was too busy to believe the times.
    """

    def __init__(self, device: torch.device, warmup: int, runs: int, amp: bool, runner: Runner, statistic: str) -> None:
        self.device, self.warmup, self.runs, self.amp = device, warmup, runs, amp
        self.runner, self.statistic = runner, statistic
        self.timed = self.busy = 0
        self.tensors: dict[Shape, Tensor] = {}
        self.known: dict[str, float] = {}
        self.generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay as they are

    def tensor(self, shape: Shape) -> Tensor:
        if shape not in self.tensors:
            made = torch.zeros(shape.size, dtype=shape.dtype, device=self.device)
            self.tensors[shape] = made.normal_(generator=self.generator) if made.is_floating_point() else made
        return self.tensors[shape]

    def nanoseconds(self, module: nn.Module, calls: Sequence[Call]) -> int:
        """Return the time of a part without choices, summed over all its calls in one forward pass."""
        work = repr(_work(module, {}))
        total = 0.0
        for call in calls:
            key = f"{work} {call}"
            if key not in self.known:
                args, kwargs = pytree.tree_map_only(Shape, self.tensor, call, is_leaf=lambda leaf: isinstance(leaf, Shape))
                self.known[key] = self.milliseconds(module, args, kwargs)
            total += self.known[key]
        return round(total * 1e6)

    def milliseconds(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Return the time of one call, measured now."""
        with torch.autocast(self.device.type, enabled=self.amp):
            found = timed(prepared(self.runner, module, args, kwargs), self.device, self.warmup, self.runs)
        self.timed += 1
        self.busy += found.busy
        return STATISTICS[self.statistic](found)


STATISTICS: dict[str, Callable[[Latency], float]] = {
    "median": lambda latency: latency.median,
    "fastest": lambda latency: latency.fastest,
}


class Parts:
    """Finds the parts of a model, what each one's time depends on, and measures them."""

    def __init__(
        self, model: nn.Module, space: SearchSpace, arguments: tuple[Any, ...], timer: PartTimer, most: int
    ) -> None:
        self.model, self.timer, self.most = model, timer, most
        self.choices: tuple[AnyChoice, ...] = tuple(space.choices.values())
        self.number = {choice: k for k, choice in enumerate(self.choices)}
        self.arguments = arguments
        self.known_calls: dict[tuple[int, ...], dict[nn.Module, list[Call]]] = {}
        self.known_times: dict[str, NDArray[np.int64]] = {}
        self.visited: set[nn.Module] = set()

    def visit(self, module: nn.Module, path: tuple[str, ...], gates: tuple[Gate, ...]) -> Iterator[Cost]:
        """Yield the cost of each part in a module, in nanoseconds; of a module that stands in two places once."""
        module = unwrap(module)
        if isinstance(module, _IDLE) or module in self.visited:
            return
        self.visited.add(module)
        leaf = not any(True for _ in module.children())
        slots = hasattr(module, "gate_of")  # of which not all run: blocks, private copies
        if leaf or (path and not slots and (is_layer(module) or not any(holders(module)))):
            part = self.part(module, gates)
            if part is not None and (leaf or part.size <= self.most):
                yield self.cost(part, module, gates).under(".".join(path))
                return
        for name, child, gate in gated_children(module):
            yield from self.visit(child, (*path, name), gates if gate is None else (*gates, gate))

    def part(self, module: nn.Module, gates: tuple[Gate, ...]) -> _Part | None:
        """Return what the time of a module depends on; None if it is never called."""
        base = [len(choice.values) - 1 for choice in self.choices]
        for gate in gates:
            base[self.number[gate.choice]] = max(gate.indices)
        calls = self.calls(base).get(module)
        if calls is None:
            return None
        shaping = [k for k in range(len(base)) if self.calls(_changed(base, {k: 0})).get(module, calls) != calls]
        axes = list(dict.fromkeys([*(self.number[holder.choice] for holder in holders(module)), *shaping]))
        return _Part(base, axes, shaping, math.prod(len(self.choices[k].values) for k in axes))

    def calls(self, indices: Sequence[int]) -> dict[nn.Module, list[Call]]:
        """Return what each module is called with in a subnet, found by running it."""
        key = tuple(indices)
        if key not in self.known_calls:
            self.activate(indices)
            found: dict[nn.Module, list[Call]] = {}

            def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                call = pytree.tree_map_only(Tensor, lambda x: Shape(tuple(x.shape), x.dtype), (args, kwargs))
                found.setdefault(module, []).append(call)

            hooks = [part.register_forward_pre_hook(note, with_kwargs=True) for part in self.model.modules()]
            try:
                with torch.autocast(self.timer.device.type, enabled=self.timer.amp):  # it decides what types parts are given
                    self.model(*self.arguments)
            finally:
                for hook in hooks:
                    hook.remove()
            self.known_calls[key] = found
        return self.known_calls[key]

    def activate(self, indices: Sequence[int]) -> None:
        for choice, index in zip(self.choices, indices, strict=True):
            choice.index = index

    def cost(self, part: _Part, module: nn.Module, gates: tuple[Gate, ...]) -> Cost:
        """Return the table of a part over its choices, 0 where it does not run."""
        allowed = {self.number[gate.choice]: gate.indices for gate in gates}
        sizes = [len(self.choices[k].values) for k in part.axes]
        calls: dict[tuple[int, ...], list[Call]] = {}
        for index in np.ndindex(*sizes):
            chosen = dict(zip(part.axes, index, strict=True))
            if all(i in allowed.get(k, (i,)) for k, i in chosen.items()):
                shapes = self.calls(_changed(part.base, {k: chosen[k] for k in part.shaping}))
                calls[index] = shapes.get(module, [])
        same = repr((_work(module, {}), sizes, calls))
        if same not in self.known_times:
            times = self.known_times[same] = np.zeros(sizes, dtype=np.int64)
            for index, made in calls.items():
                self.activate(_changed(part.base, dict(zip(part.axes, index, strict=True))))
                times[index] = self.timer.nanoseconds(exported(module), made)
        cost = Cost()
        cost._add("", "", tuple(self.choices[k] for k in part.axes), self.known_times[same])
        for gate in gates:
            if self.number[gate.choice] not in part.axes:
                cost *= Cost.table(gate.choice, (int(i in gate.indices) for i in range(len(gate.choice.values))))
        return cost


class _Part(NamedTuple):
    base: list[int]  # numbers of the values of all choices, with which it runs
    axes: list[int]  # the choices that its time depends on
    shaping: list[int]  # those of them that change the shape of its input
    size: int  # configurations


def _changed(indices: Sequence[int], changes: Mapping[int, int]) -> list[int]:
    return [changes.get(k, index) for k, index in enumerate(indices)]


def _work(module: nn.Module, order: dict[AnyChoice, int]) -> tuple[Any, ...]:
    """Return what decides how much work a module does: equal for modules that take equally long.

    Choices stand there by their values and by their order of appearance, so that equal ties are equal.
    """
    module = unwrap(module)
    own = {name: value for name, value in vars(module).items() if name not in ("training", "_compiled_call_impl")}
    settings = [(name, repr(value)) for name, value in own.items() if _is_setting(value)]
    choices = [
        (name, [(order.setdefault(base, len(order)), base.values) for base in choice.bases], choice.table().tolist())
        for name, choice in held(module)
    ]
    held_by_name = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False), *own.items())
    tensors = [(name, tuple(it.shape), it.dtype) for name, it in held_by_name if isinstance(it, Tensor)]
    children = [(name, _work(child, order)) for name, child in module.named_children()]
    return type(module), settings, choices, tensors, children


def _is_setting(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_setting(part) for part in value)
    function = callable(value) and not isinstance(value, nn.Module)
    return function or value is None or isinstance(value, (bool, int, float, str, torch.dtype))

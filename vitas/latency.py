"""How long a network takes: measured, or for the subnets of a superformer predicted from a table of its parts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vitas import plain
from vitas.cost import Codes, Cost, CostModel
from vitas.errors import VitasError, shown
from vitas.nn.base import exported, exports_itself
from vitas.space import SearchSpace, search_space
from vitas.subnet import Number
from vitas.walk import AnyChoice, Gate, arguments_of, device_of, eval_mode, gated_children, held, holders, unwrap


@dataclass(frozen=True)
class Latency:
    """Milliseconds that one batch takes; float() gives the median.

    Attributes:
        median: Median over the runs.
        spread: Distance between the quartiles.
        fastest: The quickest run; other work on the machine only slows one down.
        runs: How many runs were timed.
    """

    median: float
    spread: float
    fastest: float
    runs: int

    def __float__(self) -> float:
        return self.median

    def __str__(self) -> str:
        return f"{self.median:.3g} ms (spread {self.spread:.2g}, fastest {self.fastest:.3g}, {self.runs} runs)"


def measure_latency(
    module: nn.Module, inputs: Tensor | tuple[Any, ...], *, warmup: int = 5, runs: int = 30, amp: bool = False
) -> Latency:
    """Return how many milliseconds a module takes for one batch, in eval mode and without gradients.

    The device is waited for before and after every run. The module's training mode comes back. Of a superformer the active
    path is timed; what counts after the search is `vitas.export_subnet(model)`.

    Args:
        module: Any module.
        inputs: A batch, or a tuple of arguments; tensors are moved to the module's device first.
        warmup: Runs that are not timed.
        runs: Runs that are timed.
        amp: Whether to run under torch's autocast.

    Raises:
        VitasError: no module, or one on the meta device; inputs without a tensor, `warmup` below 0, `runs` below 1.
    """
    if not isinstance(module, nn.Module):
        raise VitasError(f"module: expected a torch.nn.Module, got {shown(module)}")
    _check_count("warmup", warmup, 0)
    _check_count("runs", runs, 1)
    device = device_of(module)
    arguments = _arguments(inputs, device)
    with eval_mode(module), torch.no_grad(), torch.autocast(device.type, enabled=amp):
        for _ in range(warmup):
            module(*arguments)
        seconds = [_seconds(module, arguments, {}, device) for _ in range(runs)]
    low, median, high = (float(1000 * q) for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Latency(median, high - low, 1000 * min(seconds), runs)


def _check_count(what: str, number: int, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise VitasError(f"{what}: expected an int of at least {least}, got {shown(number)}")


def _arguments(inputs: Any, device: torch.device) -> tuple[Any, ...]:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), arguments_of(inputs))  # type: ignore[no-any-return]


def _seconds(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    module(*args, **kwargs)
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class LatencyTable:
    """Milliseconds of any subnet of a space, from the times of its parts; made by `latency_table(model, inputs)`.

    Attributes:
        space: The search space.
        cost: The table as a Cost in nanoseconds: a sum of tables over the choices that each part depends on.
        configurations: How many configurations of parts were measured.
    """

    def __init__(self, space: SearchSpace, cost: Cost, configurations: int) -> None:
        self.space, self.cost, self.configurations = space, cost, configurations
        self._tables = CostModel(space, cost, Cost())

    def latency_ms(self, codes: Codes) -> Any:
        """Return the milliseconds of encoded subnets, (n, choices) -> (n,) float64, or of one Subnet as a float.

        Args:
            codes: An array of vectors as `space.encode` makes them, or a subnet of the space.

        Raises:
            ChoiceError: as CostModel.flops.
        """
        return self._tables.flops(codes) / 1e6

    def by_module(self, subnet: Mapping[str, Number]) -> dict[str, float]:
        """Return the milliseconds of each part that runs, by module path; "" is what belongs to no part.

        Raises:
            ChoiceError: not a subnet of the space.
        """
        times: dict[str, float] = {}
        for path, _, amount in self.cost.parts(self.space.indices(subnet)):
            if amount:
                times[path] = times.get(path, 0.0) + amount / 1e6
        return times

    def __repr__(self) -> str:
        return f"LatencyTable of {len(self.space)} choices, {self.configurations} configurations measured"


def latency_table(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    warmup: int = 2,
    runs: int = 10,
    calibrate: int = 8,
    most: int = 5000,
    amp: bool = False,
) -> LatencyTable:
    """Measure the parts of a superformer once, to predict the milliseconds of any of its subnets for a batch like `inputs`.

    A part is an elastic layer (attention, MLP, norm, patch embedding) or a layer without choices. Each is exported and timed
    at every configuration that occurs: the values of the choices that it holds, and of those that change the shape of its
    input, which is found by running the model. Equal parts (functions that they hold have to be the same) are measured once.
    What belongs to no part (residual adds, tokens, pooling, calls) is put right by a line, offset + factor * sum, fitted to
    whole subnets. The model's active subnet and training mode come back, the state of the random numbers too.

    Source: sums of measured layer times as in ProxylessNAS (Cai et al., arXiv:1812.00332); finding the
    choices that a layer's time depends on, and the fitted line, are ours.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile; it is timed as exported, not compiled.
        inputs: A batch, or a tuple of arguments, of the shapes to predict for.
        warmup: Runs of each part that are not timed.
        runs: Runs that are timed: of a part the fastest counts, of a whole subnet the median.
        calibrate: How many whole subnets are timed, drawn from the prior with a fixed seed, besides the smallest and the
            largest; 0: no line is fitted and the sum stands as it is.
        most: Most configurations of a part; a part with more is taken apart into its children.
        amp: Whether to run under torch's autocast.

    Raises:
        ChoiceError: a model without choices.
        VitasError: a model on the meta device; inputs without a tensor; numbers out of range.
    """
    for what, number, least in (("warmup", warmup, 0), ("runs", runs, 1), ("calibrate", calibrate, 0), ("most", most, 1)):
        _check_count(what, number, least)
    model = unwrap(model)
    space = search_space(model)
    state = space.state()
    timer = _Timer(device_of(model), warmup, runs, amp)
    arguments = _arguments(inputs, timer.device)
    try:
        with eval_mode(model), torch.no_grad():
            parts = _Parts(model, space, arguments, timer, most)
            cost = sum(parts.visit(model, (), ()), Cost())
            if calibrate:
                cost = _fitted(cost, model, space, arguments, timer, calibrate)
    finally:
        state.put_back()
    return LatencyTable(space, cost, parts.configurations)


class _Timer:
    """Times calls of modules on a device, with random tensors of given shapes."""

    def __init__(self, device: torch.device, warmup: int, runs: int, amp: bool) -> None:
        self.device, self.warmup, self.runs, self.amp = device, warmup, runs, amp
        self.tensors: dict[_Shape, Tensor] = {}
        self.generator = torch.Generator(device).manual_seed(0)  # the caller's random numbers stay as they are

    def tensor(self, shape: _Shape) -> Tensor:
        if shape not in self.tensors:
            made = torch.zeros(shape.size, dtype=shape.dtype, device=self.device)
            self.tensors[shape] = made.normal_(generator=self.generator) if made.is_floating_point() else made
        return self.tensors[shape]

    def nanoseconds(self, module: nn.Module, calls: Sequence[_Call]) -> int:
        """Return the fastest run's time, summed over all calls of the module in one forward pass."""
        total = 0.0
        with torch.autocast(self.device.type, enabled=self.amp):
            for call in calls:
                args, kwargs = pytree.tree_map_only(_Shape, self.tensor, call, is_leaf=lambda leaf: isinstance(leaf, _Shape))
                for _ in range(self.warmup):
                    module(*args, **kwargs)
                total += min(_seconds(module, args, kwargs, self.device) for _ in range(self.runs))
        return round(total * 1e9)


class _Shape(NamedTuple):
    """Stands for a tensor in the arguments of a call."""

    size: tuple[int, ...]
    dtype: torch.dtype


_Call = tuple[tuple[Any, ...], dict[str, Any]]
_IDLE = (nn.Identity, nn.Dropout, plain.DropPath)
"""What does nothing in eval mode."""


class _Parts:
    """Finds the parts of a model, what each one's time depends on, and measures them."""

    def __init__(self, model: nn.Module, space: SearchSpace, arguments: tuple[Any, ...], timer: _Timer, most: int) -> None:
        self.model, self.timer, self.most = model, timer, most
        self.choices: tuple[AnyChoice, ...] = tuple(space.choices.values())
        self.number = {choice: k for k, choice in enumerate(self.choices)}
        self.arguments = arguments
        self.known_calls: dict[tuple[int, ...], dict[nn.Module, list[_Call]]] = {}
        self.known_times: dict[str, NDArray[np.int64]] = {}
        self.configurations = 0
        self.visited: set[nn.Module] = set()

    def visit(self, module: nn.Module, path: tuple[str, ...], gates: tuple[Gate, ...]) -> Iterator[Cost]:
        """Yield the cost of each part in a module, in nanoseconds; of a module that stands in two places once."""
        module = unwrap(module)
        if isinstance(module, _IDLE) or module in self.visited:
            return
        self.visited.add(module)
        leaf = not any(True for _ in module.children())
        slots = hasattr(module, "gate_of")  # of which not all run: blocks, private copies
        if leaf or (path and not slots and (exports_itself(module) or not any(holders(module)))):
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

    def calls(self, indices: Sequence[int]) -> dict[nn.Module, list[_Call]]:
        """Return what each module is called with in a subnet, found by running it."""
        key = tuple(indices)
        if key not in self.known_calls:
            self.activate(indices)
            found: dict[nn.Module, list[_Call]] = {}

            def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                call = pytree.tree_map_only(Tensor, lambda x: _Shape(tuple(x.shape), x.dtype), (args, kwargs))
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
            choice._set(index)

    def cost(self, part: _Part, module: nn.Module, gates: tuple[Gate, ...]) -> Cost:
        """Return the table of a part over its choices, 0 where it does not run."""
        allowed = {self.number[gate.choice]: gate.indices for gate in gates}
        sizes = [len(self.choices[k].values) for k in part.axes]
        calls: dict[tuple[int, ...], list[_Call]] = {}
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
                self.configurations += 1
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


def _fitted(cost: Cost, model: nn.Module, space: SearchSpace, arguments: tuple[Any, ...], timer: _Timer, times: int) -> Cost:
    """Return offset + factor * cost, fitted to whole subnets by least squares of the relative errors, neither negative."""
    generator = torch.Generator().manual_seed(0)
    subnets = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(times))]
    sums, measured = np.zeros(len(subnets)), np.zeros(len(subnets))
    for number, subnet in enumerate(subnets):
        space.activate(subnet)
        latency = measure_latency(exported(model), arguments, warmup=timer.warmup, runs=timer.runs, amp=timer.amp)
        sums[number], measured[number] = cost.at(space.indices(subnet)), latency.median * 1e6
    relative = np.stack([1 / measured, sums / measured], axis=1)
    offset, factor = np.linalg.lstsq(relative, np.ones(len(subnets)), rcond=None)[0]
    if offset < 0 or factor <= 0:
        offset, factor = 0.0, relative[:, 1].sum() / np.square(relative[:, 1]).sum()
    fitted = Cost(round(offset))
    for (path, operator, bases), table in cost.terms.items():
        fitted._add(path, operator, bases, np.rint(table * factor))
    return fitted

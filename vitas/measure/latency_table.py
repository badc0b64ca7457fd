"""How long any subnet takes, predicted from the times of its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitas.checks import as_count
from vitas.cost import Cost, stated_cost, stated_params
from vitas.cost.model import Codes, TableSum
from vitas.cost.watch import Stated, Watch
from vitas.errors import FileError, VitasError, brief, is_one_of, listed, one_of, shown
from vitas.measure.latency import batch_arguments
from vitas.measure.parts import STATISTICS, Parts, PartTimer
from vitas.measure.runners import Runner, as_runner
from vitas.nn.images import as_exported
from vitas.nn.layer import exported
from vitas.space import Number, SearchSpace, StatesCost, device_of, eval_mode, needs_tokens, search_space, unwrap


@dataclass(frozen=True)
class Measured:
    """How the times of a table came about.

    Attributes:
        statistic: Which of the runs counts, "median" or "fastest", of parts and of whole subnets alike.
        runs: How many runs of each were timed.
        runner: What they ran in.
        threads: How many threads torch had, and ONNX Runtime with it.
        configurations: How many configurations of parts were measured; those that share a shape count once.
        busy: In how many of these, or of the whole subnets, the machine was too busy to believe the times.
    """

    statistic: str
    runs: int
    runner: str
    threads: int
    configurations: int
    busy: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        busy = f", the machine was busy in {self.busy} of them" if self.busy else ""
        return (
            f"{self.statistic} of {self.runs} runs in {self.runner}, {threads}, {self.configurations} configurations{busy}"
        )


class LatencyTable:
    """Milliseconds of any subnet of a space, from the times of its parts; made by `latency_table(model, inputs)`.

    Attributes:
        space: The search space.
        cost: The table as a Cost in nanoseconds: a sum of tables over the choices that each part depends on.
        measured: How the times came about: statistic, runs, runner, threads, configurations, and how often the machine was
            busy.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16, depth=[1, 2])
        >>> table = vitas.latency_table(model, torch.randn(1, 3, 16, 16), runs=1, calibrate=2)
        >>> milliseconds = table.by_module(vitas.search_space(model).smallest())
        >>> milliseconds["blocks.0.attn"] > 0
        True
    """

    def __init__(self, space: SearchSpace, cost: Cost, measured: Measured, watch: Watch | None = None) -> None:
        self.space, self.cost, self.measured, self._watch = space, cost, measured, watch
        self._nanoseconds = TableSum(space, cost)

    def latency_ms(self, codes: Codes) -> Any:
        """Return the milliseconds of encoded subnets, (n, choices) -> (n,) float64, or of one Subnet as a float.

        Args:
            codes: An array of vectors as `space.encode` makes them, or a subnet of the space.

        Raises:
            ChoiceError: as CostModel.flops.
            VitasError: the model has changed since it was measured: its image size, its head or another part.
        """
        if self._watch is not None:
            self._watch.check()
        return self._nanoseconds.of(codes) / 1e6

    def by_module(self, subnet: Mapping[str, Number]) -> dict[str, float]:
        """Return the milliseconds of each part that runs, by module path; "" is what belongs to no part.

        Raises:
            ChoiceError: not a subnet of the space.
            VitasError: the model has changed since it was measured.
        """
        if self._watch is not None:
            self._watch.check()
        times: dict[str, float] = {}
        for path, _, amount in self.cost.parts(self.space.indices(subnet)):
            if amount:
                times[path] = times.get(path, 0.0) + amount / 1e6
        return times

    def nanoseconds(self, space: SearchSpace) -> Cost:
        """Return the table over the choices of a space: the one that was measured, or that of another copy of the model.

        Raises:
            VitasError: the space of another model; the model has changed since it was measured.
        """
        if self._watch is not None:
            self._watch.check()
        here, there = self.space.choices, space.choices
        if _values(here) != _values(there):
            raise VitasError(
                "the latency table is of another model: its choices differ; make one by latency_table(model, inputs)"
            )
        return self.cost.over({here[name]: there[name] for name in here})

    def to_json(self) -> str:
        """Return the table as text, for a search in another process or on another machine; see `from_json`."""
        name_of = {choice: name for name, choice in self.space.choices.items()}
        terms = [
            [path, [name_of[base] for base in bases], table.tolist()] for (path, _, bases), table in self.cost.terms.items()
        ]
        return json.dumps({"choices": _values(self.space.choices), "measured": asdict(self.measured), "nanoseconds": terms})

    @classmethod
    def from_json(cls, text: str, model: nn.Module) -> LatencyTable:
        """Read what `to_json` wrote, for the same model made again.

        Args:
            text: What `to_json` returned.
            model: A model with the same choices, for images of the size that was measured: the table does not know it.

        Raises:
            ChoiceError: a model without choices.
            FileError: another text.
            VitasError: the table of another model.
        """
        space = search_space(model)
        lists = isinstance(text, str) and text.count("[") + text.count("{")
        if not isinstance(text, str) or len(text) > _MOST_CHARACTERS or lists > _MOST_LISTS:
            raise FileError(f"latency table: expected text of at most {_MOST_CHARACTERS} characters and {_MOST_LISTS} lists")
        try:
            told = json.loads(text)
            choices, measured, terms = told["choices"], _measured(told["measured"]), _terms(told["nanoseconds"])
        except FileError:
            raise
        except (ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
            raise FileError(f"latency table: expected what to_json returned ({brief(error, kind=True)})") from None
        if choices != _values(space.choices):
            raise VitasError(
                "the latency table is of another model: its choices differ; make one by latency_table(model, inputs)"
            )
        cost = Cost()
        for path, names, table in terms:
            if len(set(names)) < len(names) or not set(names) <= space.choices.keys():
                raise FileError(f"latency table: expected names of choices, each once, got {shown(names)}")
            bases = tuple(space.choices[name] for name in names)
            if table.shape != tuple(len(base.values) for base in bases):
                raise FileError(
                    f"latency table: expected a time for each value of {listed(names, 2)}, got {shown(table.shape, 30)}"
                )
            cost._add(path, "", bases, table)
        return cls(space, cost, measured, _watch_of(unwrap(model)))

    def __repr__(self) -> str:
        return f"LatencyTable of {len(self.space)} choices: {self.measured}"


def _measured(told: Mapping[str, Any]) -> Measured:
    """Return what JSON values tell.

    Raises:
        FileError: values that are none of these.
        LookupError, TypeError: other fields.
    """
    statistic, runner, numbers = told["statistic"], told["runner"], {**told}
    if not is_one_of(list(STATISTICS), statistic):
        raise FileError(f"latency table: statistic: {one_of(list(STATISTICS), statistic)}")
    if not isinstance(runner, str) or len(runner) > _MOST_NAME or not runner.isprintable():
        raise FileError(f"latency table: runner: expected its name, got {shown(runner)}")
    for name in ("runs", "threads", "configurations", "busy"):
        numbers[name] = as_count(told[name], f"latency table: {name}", 0, error=FileError)
    return Measured(**numbers)


def _terms(told: Any) -> list[tuple[str, tuple[str, ...], NDArray[np.int64]]]:
    """Return what JSON values tell of the parts: where each stands, the names of its choices, its times.

    Raises:
        FileError: anything else; more parts, or longer times, than any model has.
    """
    if not isinstance(told, list) or len(told) > _MOST_PARTS:
        raise FileError(f"latency table: nanoseconds: expected a list of at most {_MOST_PARTS} parts, got {shown(told)}")
    terms = []
    for part in told:
        path, names, table = part if isinstance(part, list) and len(part) == 3 else (None, None, None)
        if not isinstance(path, str) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FileError(f"latency table: nanoseconds: expected lists of a path, names and times, got {shown(part)}")
        terms.append((path, tuple(names), _whole(table)))
    if sum(int(table.max()) for _, _, table in terms) > _MOST_NANOSECONDS:
        raise FileError(f"latency table: nanoseconds: expected at most {_MOST_NANOSECONDS} in all")
    return terms


_MOST_CHARACTERS, _MOST_LISTS = 2**22, 2**18  # of a table's JSON, which has some hundred thousand and some thousand
_MOST_PARTS = 2**12  # which are some hundred
_MOST_NAME = 200
_MOST_NANOSECONDS = 2**50


def _whole(times: Any) -> NDArray[np.int64]:
    """Return an array of whole numbers, none negative.

    Raises:
        FileError: anything else.
        ValueError: lists of several lengths.
    """
    array = np.array(times)
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0 or int(array.max()) > _MOST_NANOSECONDS:
        raise FileError(f"latency table: nanoseconds: expected ints from 0 to {_MOST_NANOSECONDS}, got {shown(times, 40)}")
    return array.astype(np.int64)


def _values(choices: Mapping[str, Any]) -> dict[str, list[Number]]:
    return {name: list(choice.values) for name, choice in choices.items()}


def latency_table(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    warmup: int = 2,
    runs: int = 10,
    calibrate: int = 8,
    most: int = 5000,
    amp: bool = False,
    runner: str | Runner = "torch",
    statistic: str = "median",
) -> LatencyTable:
    """Measure the parts of a superformer once, to predict the milliseconds of any of its subnets for a batch like `inputs`.

    A part is an elastic layer (attention, MLP, norm, patch embedding) or a layer without choices. Each is exported and timed
    at every configuration that occurs: the values of the choices that it holds, and of those that change the shape of its
    input, which is found by running the model. Equal parts, and configurations that come to the same layers and shapes, are
    measured once (functions that they hold have to be the same).
    What belongs to no part (residual adds, tokens, pooling, calls) is put right by a line, offset + factor * sum, fitted to
    whole subnets. The model's active subnet and training mode come back, the state of the random numbers too.

    Source: sums of measured layer times as in ProxylessNAS (Cai et al., arXiv:1812.00332); finding the
    choices that a layer's time depends on, and the fitted line, are ours.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile; it is timed as exported.
        inputs: A batch, or a tuple of arguments, of the shapes to predict for.
        warmup: Runs of each part that are not timed.
        runs: Runs that are timed.
        calibrate: How many whole subnets are timed, drawn from the prior with a fixed seed, besides the smallest and the
            largest; 0: no line is fitted and the sum stands as it is.
        most: Most configurations of a part; a part with more is taken apart into its children.
        amp: Whether to run under torch's autocast.
        runner: What parts and whole subnets run in: "torch"; "torch.compile", which takes seconds a configuration;
            "onnxruntime" (extra `onnx`), on the CPU, with as many threads as torch has; or a function of one's own that gets
            an exported part and a tuple of its tensors, and returns a function without arguments that runs it once.
        statistic: Which of the runs counts, of parts and of whole subnets: "median", as float(measure_latency(...)), or
            "fastest", which other work on the machine changes least.

    Raises:
        ChoiceError: a model without choices.
        VitasError: a model on the meta device; inputs without a tensor; numbers out of range; another runner or statistic; a
            runner that is not installed.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16, depth=[1, 2])
        >>> table = vitas.latency_table(model, torch.randn(1, 3, 16, 16), runs=1, calibrate=2)
        >>> subnet = vitas.sample_subnet(model, latency=(table, "50%"))
        >>> table.latency_ms(subnet) > 0
        True
    """
    warmup, runs = as_count(warmup, "warmup", 0, error=VitasError), as_count(runs, "runs", error=VitasError)
    calibrate, most = as_count(calibrate, "calibrate", 0, error=VitasError), as_count(most, "most", error=VitasError)
    if not is_one_of([*STATISTICS], statistic):
        raise VitasError(f"statistic: {one_of([*STATISTICS], statistic)}")
    model = unwrap(model)
    space = search_space(model)
    state = space.state()
    timer = PartTimer(device_of(model), warmup, runs, amp, as_runner(runner), statistic)
    arguments = batch_arguments(inputs, timer.device)
    try:
        with eval_mode(model), torch.no_grad():
            parts = Parts(model, space, arguments, timer, most)
            cost = sum(parts.visit(model, (), ()), Cost())
            configurations = timer.timed
            if calibrate:
                cost = _fitted(cost, model, space, arguments, timer, calibrate)
    finally:
        state.put_back()
    named = runner.__qualname__ if isinstance(runner, FunctionType) else runner
    named = named[:_MOST_NAME] if isinstance(named, str) else shown(named, _MOST_NAME)
    measured = Measured(statistic, runs, named, torch.get_num_threads(), configurations, timer.busy)
    return LatencyTable(space, cost, measured, _watch_of(model))


def _watch_of(model: nn.Module) -> Watch:
    """Return what notices that the model is another one than was measured."""
    stated = [Stated(partial(stated_params, model), stated_params(model))]
    if isinstance(model, StatesCost) and not needs_tokens(model):
        with suppress(VitasError):  # a part that states none
            stated.append(Stated(partial(stated_cost, model), stated_cost(model)))
    return Watch(model, "latency_table", stated)


def _fitted(
    cost: Cost, model: nn.Module, space: SearchSpace, arguments: tuple[Any, ...], timer: PartTimer, times: int
) -> Cost:
    """Return offset + factor * cost, fitted to whole subnets by least squares of the relative errors, neither negative."""
    generator = torch.Generator().manual_seed(0)
    subnets = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(times))]
    sums, measured = np.zeros(len(subnets)), np.zeros(len(subnets))
    for number, subnet in enumerate(subnets):
        space.activate(subnet)
        sums[number] = cost.at(space.indices(subnet))
        measured[number] = 1e6 * timer.milliseconds(exported(model).eval(), as_exported(model, arguments), {})
    relative = np.stack([1 / measured, sums / measured], axis=1)
    offset, factor = np.linalg.lstsq(relative, np.ones(len(subnets)), rcond=None)[0]
    if offset < 0 or factor <= 0:
        offset, factor = 0.0, relative[:, 1].sum() / np.square(relative[:, 1]).sum()
    fitted = Cost()
    fitted.terms = {key: np.rint(table * factor).astype(np.int64) for key, table in cost.terms.items()}
    return fitted + Cost(round(offset))

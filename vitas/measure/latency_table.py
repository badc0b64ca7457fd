"""How long any subnet takes, predicted from the times of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitas.checks import as_count
from vitas.cost import Cost, params_of, stated_cost
from vitas.cost.model import Codes, TableSum
from vitas.cost.watch import Stated, Watch
from vitas.errors import VitasError
from vitas.measure.latency import batch_arguments, measure_latency
from vitas.measure.parts import Parts, PartTimer
from vitas.nn.layer import exported
from vitas.space import Number, SearchSpace, StatesCost, device_of, eval_mode, needs_tokens, search_space, unwrap


class LatencyTable:
    """Milliseconds of any subnet of a space, from the times of its parts; made by `latency_table(model, inputs)`.

    Attributes:
        space: The search space.
        cost: The table as a Cost in nanoseconds: a sum of tables over the choices that each part depends on.
        configurations: How many configurations of parts were measured.
    """

    def __init__(self, space: SearchSpace, cost: Cost, configurations: int, watch: Watch | None = None) -> None:
        self.space, self.cost, self.configurations, self._watch = space, cost, configurations, watch
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
    warmup, runs = as_count(warmup, "warmup", 0, error=VitasError), as_count(runs, "runs", error=VitasError)
    calibrate, most = as_count(calibrate, "calibrate", 0, error=VitasError), as_count(most, "most", error=VitasError)
    model = unwrap(model)
    space = search_space(model)
    state = space.state()
    timer = PartTimer(device_of(model), warmup, runs, amp)
    arguments = batch_arguments(inputs, timer.device)
    try:
        with eval_mode(model), torch.no_grad():
            parts = Parts(model, space, arguments, timer, most)
            cost = sum(parts.visit(model, (), ()), Cost())
            if calibrate:
                cost = _fitted(cost, model, space, arguments, timer, calibrate)
    finally:
        state.put_back()
    stated = [Stated(partial(params_of, model), params_of(model))]
    if isinstance(model, StatesCost) and not needs_tokens(model):
        with suppress(VitasError):  # a part that states none
            stated.append(Stated(partial(stated_cost, model), stated_cost(model)))
    return LatencyTable(space, cost, parts.configurations, Watch(model, "latency_table", stated))


def _fitted(
    cost: Cost, model: nn.Module, space: SearchSpace, arguments: tuple[Any, ...], timer: PartTimer, times: int
) -> Cost:
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
    fitted = Cost()
    fitted.terms = {key: np.rint(table * factor).astype(np.int64) for key, table in cost.terms.items()}
    return fitted + Cost(round(offset))

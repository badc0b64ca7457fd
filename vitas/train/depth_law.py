"""How likely an identity has to be for the mean cost to meet a target."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitas.choice import conditioned
from vitas.cost import Cost, params_of, stated_cost
from vitas.errors import BudgetError, ChoiceError, shown
from vitas.nn import ShiftableIdentity
from vitas.nn.depth import binomial_law
from vitas.sample import Chain, Window, extremes, window_of
from vitas.space import AnyChoice, search_space, unwrap


def depth_law_for(model: nn.Module, *, flops: Any = None, params: Any = None) -> float:
    """Return the probability of an identity in each slot for which the mean cost of a drawn subnet meets a target.

    All depths follow binomial laws of that probability (without the depths that are not among their values; in steps, each
    group of slots is drawn as one), and every other choice its own prior. The mean is computed from the cost tables, and
    solved for the probability by bisection.
    Use the result when the model is built: `create_superformer(name, depth_p=p)`.

    Cost: the mean of the space in MACs (or parameters) per image.
    Source: the aim is that of the public ViTAS code (July 2021), which takes means of 1,000 drawn paths and steps of
        0.01; the closed form is ours.

    Args:
        model: A model with a depth to be searched, possibly wrapped by DDP or torch.compile.
        flops: Target mean multiply-adds: a number, or a percentage of the costliest subnet such as "30%".
        params: Target mean parameters, likewise; exactly one of both.

    Raises:
        BudgetError: none or two targets, a window, or a target that no probability reaches, with the range of means.
        ChoiceError: a model without a searchable depth.
    """
    if (flops is None) == (params is None):
        raise BudgetError("depth_law_for: give one target, flops=... or params=...")
    what, target = ("flops", flops) if params is None else ("params", params)
    if isinstance(target, (tuple, list)):
        raise BudgetError(f"{what}: the mean meets one number, got {shown(target)}")
    space, model = search_space(model), unwrap(model)
    cost = stated_cost(model) if what == "flops" else params_of(model)
    mean = _mean_given_depths(model, cost)
    window: Window = window_of(target, what, int(extremes(Chain(space, [cost]))[1][0]))
    most, least = mean(0.0), mean(1 - 1e-9)
    if not least <= window.high <= most:
        raise BudgetError(f"{what}: a mean of {window.high:,} cannot be reached; means go from {least:,.0f} to {most:,.0f}")
    low, high = 0.0, 1 - 1e-9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mean(middle) > window.high else (low, middle)
    return (low + high) / 2


def _mean_given_depths(model: nn.Module, cost: Cost) -> Any:
    """Return the mean cost as a function of the probability of an identity."""
    depths = {
        choice
        for part in model.modules()
        if isinstance(part, ShiftableIdentity)
        for choice in ([part.depth] if part.shift else part.use)
        if not choice.fixed
    }
    if not depths:
        raise ChoiceError("the model has no depth to be searched: give `depth` several values")

    def law(choice: AnyChoice, identity: float) -> NDArray[np.float64]:
        p: NDArray[np.float64] = np.array(choice.p)
        if choice in depths:
            step = math.gcd(*choice.values)  # slots that leave together are one draw, as a float `p` means it there
            groups = np.array(binomial_law(choice.largest // step, identity, 0))
            p = np.array(conditioned(tuple(groups[[value // step for value in choice.values]]), choice.left))
        p /= p.sum()
        return p

    # The other choices are averaged over once: what is left depends on the depths alone.
    tables: dict[tuple[AnyChoice, ...], NDArray[np.float64]] = {}
    for bases, table in cost.merged().items():
        average: Any = table.astype(float)
        for axis in reversed(range(len(bases))):
            if bases[axis] not in depths:
                average = np.tensordot(average, law(bases[axis], 0.0), (axis, 0))
        left = tuple(base for base in bases if base in depths)
        tables[left] = tables.get(left, np.zeros(())) + average

    def mean(identity: float) -> float:
        total = 0.0
        for bases, table in tables.items():
            for base in reversed(bases):
                table = table @ law(base, identity)
            total += float(table)
        return total

    return mean

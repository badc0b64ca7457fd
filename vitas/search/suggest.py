"""Subnets out of the suggestions of an Optuna study of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitas.errors import VitasError
from vitas.sample import MEASURES, SubnetSampler
from vitas.space import AnyChoice, Subnet


def suggest_subnet(
    trial: Any,
    model: nn.Module,
    *,
    flops: Any = None,
    params: Any = None,
    latency: Any = None,
    fixed: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
) -> Subnet:
    """Return a subnet made of a trial's suggestions, for an Optuna study of one's own, with any sampler.

    One categorical parameter for each live choice, under its name in the search space. Nothing is activated.

    Args:
        trial: An `optuna.Trial`.
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: Budget as in sample_subnet. Optuna's samplers know nothing of it: a trial outside is pruned before it is
            evaluated, while `evolve` stays inside.
        params: As in sample_subnet.
        latency: As in sample_subnet.
        fixed: As in sample_subnet; a choice of one value is suggested too.
        only: As in sample_subnet. Optuna wants the same values in all trials of a study.

    Raises:
        ChoiceError: a model without choices; as `SearchSpace.restrict`.
        BudgetError: a malformed budget, or an empty window.
        VitasError: not a trial; as SubnetSampler.
        optuna.TrialPruned: a subnet outside the budget.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> import optuna
        >>> study = optuna.create_study()
        >>> subnet = vitas.suggest_subnet(study.ask(), model)
        >>> subnet in vitas.search_space(model)
        True
    """
    if not hasattr(trial, "suggest_categorical"):
        raise VitasError(f"trial: expected an optuna.Trial, got {type(trial).__name__}")

    sampler = SubnetSampler(model, flops=flops, params=params, latency=latency, fixed=fixed, only=only)
    space = sampler.space

    def pick(name: str, choice: AnyChoice) -> Any:
        return trial.suggest_categorical(name, space.values[name])

    subnet = space.compose(pick)
    code = space.encode(subnet)[None]
    if sampler.windows and not sampler.contains(code)[0]:
        import optuna

        costs = sampler.costs(code)
        got = ", ".join(f"{name} {MEASURES[name].said(int(costs[name][0]))}" for name in sampler.windows)
        raise optuna.TrialPruned(f"expected {sampler.wanted()}, got {got}")
    return subnet

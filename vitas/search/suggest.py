"""Subnets out of the suggestions of an Optuna study of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitas.errors import VitasError
from vitas.space import AnyChoice, Subnet, search_space


def suggest_subnet(
    trial: Any, model: nn.Module, *, fixed: Mapping[str, Any] | None = None, only: Mapping[str, Any] | None = None
) -> Subnet:
    """Return a subnet made of a trial's suggestions, for an Optuna study of one's own, with any sampler.

    One categorical parameter for each live choice, under its name in the search space. Nothing is activated.

    Args:
        trial: An `optuna.Trial`.
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        fixed: As in sample_subnet; a choice of one value is suggested too.
        only: As in sample_subnet. Optuna wants the same values in all trials of a study.

    Raises:
        ChoiceError: a model without choices; as `SearchSpace.restrict`.
        VitasError: not a trial.
    """
    if not hasattr(trial, "suggest_categorical"):
        raise VitasError(f"trial: expected an optuna.Trial, got {type(trial).__name__}")

    space = search_space(model).restrict(fixed, only)

    def pick(name: str, choice: AnyChoice) -> Any:
        return trial.suggest_categorical(name, space.values[name])

    return space.compose(pick)

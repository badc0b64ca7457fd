"""Subnets out of the suggestions of an Optuna study of one's own."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitas.errors import VitasError
from vitas.space import AnyChoice, Subnet, search_space


def suggest_subnet(trial: Any, model: nn.Module) -> Subnet:
    """Return a subnet made of a trial's suggestions, for an Optuna study of one's own, with any sampler.

    One categorical parameter for each live choice, under its name in the search space. Nothing is activated.

    Args:
        trial: An `optuna.Trial`.
        model: A model with choices, possibly wrapped by DDP or torch.compile.

    Raises:
        ChoiceError: a model without choices.
        VitasError: not a trial.
    """
    if not hasattr(trial, "suggest_categorical"):
        raise VitasError(f"trial: expected an optuna.Trial, got {type(trial).__name__}")

    def pick(name: str, choice: AnyChoice) -> Any:
        return trial.suggest_categorical(name, choice.values)

    return search_space(model).compose(pick)

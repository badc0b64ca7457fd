"""Costs that were set up once, and whether they are still those of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import nn

from vitas.cost.expression import Cost
from vitas.errors import VitasError


class Stated(NamedTuple):
    """What a model said that it costs, and how it says so."""

    say: Callable[[], Cost]
    said: Cost


class Watch:
    """Notices that a model no longer costs what it did: another image size, another head, other classes.

    A look at the modules, at the shapes of their tensors and at the image size takes a fraction of a millisecond. Only where
    these are not what they were is the model asked again, and what it says compared.

    Args:
        model: The model, without wrappers.
        what: What was made of the costs, for the error.
        costs: The costs in use.
    """

    def __init__(self, model: nn.Module, what: str, costs: Sequence[Stated]) -> None:
        self._model, self._what, self._costs = model, what, tuple(costs)
        self._seen = _look(model)

    def check(self) -> None:
        """Go on where the costs still hold.

        Raises:
            VitasError: they do not.
        """
        seen = _look(self._model)
        if seen == self._seen:
            return
        if not all(_equal(say(), said) for say, said in self._costs):
            raise VitasError(
                f"make a new {self._what}: since this one was made, the {type(self._model).__name__} has changed (its image"
                " size, its head or another part), and its subnets no longer cost what they did"
            )
        self._seen = seen


@runtime_checkable
class _HasImages(Protocol):
    def image_shape(self) -> tuple[int, int, int]: ...


def _look(model: nn.Module) -> tuple[list[nn.Module], list[Any], object]:
    """Return all modules, the shapes of their parameters and buffers, and the shape of an image where the model says it."""
    parts, shapes = [model], []
    for part in parts:  # which grows
        parts += [child for child in part._modules.values() if child is not None]
        for tensors in (part._parameters, part._buffers):
            shapes += [tensor.shape for tensor in tensors.values() if tensor is not None]
    image = None
    if isinstance(model, _HasImages):
        with suppress(VitasError):
            image = model.image_shape()
    return parts, shapes, image


def _equal(one: Cost, other: Cost) -> bool:
    return one.terms.keys() == other.terms.keys() and all(np.array_equal(one.terms[k], other.terms[k]) for k in one.terms)

"""Costs that were set up once, and whether they are still those of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import is_
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import nn

from vitas.cost.expression import Cost
from vitas.errors import VitasError


class Stated(NamedTuple):
    """What a model said that it costs, and how it says so."""

    say: Callable[[], Cost | None]
    said: Cost


class Watch:
    """Notices that a model no longer costs what it did: another image size, another head, other classes.

    A look at the modules, their tensors and the image size takes a tenth of a millisecond. Only where these are others than
    before is the model asked again, and what it says compared. A layer of one's own whose cost depends on something else
    is not noticed.

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
        if len(seen[0]) == len(self._seen[0]) and all(map(is_, seen[0], self._seen[0])) and seen[1] == self._seen[1]:
            return
        if any((now := say()) is None or said.differs(now) is not None for say, said in self._costs):
            raise VitasError(
                f"make a new {self._what}: the {type(self._model).__name__} has changed (its image size, its head or another"
                " part), so its subnets cost something else now"
            )
        self._seen = seen


@runtime_checkable
class _HasImages(Protocol):
    def image_shape(self) -> tuple[int, int, int]: ...


def _look(model: nn.Module) -> tuple[list[object], object]:
    """Return all modules, parameters and buffers, and the shape of an image where the model says it."""
    parts: list[Any] = [model]
    found: list[object] = []
    for part in parts:  # which grows
        if part._modules:
            parts += [child for child in part._modules.values() if child is not None]
        found += part._parameters.values()
        if part._buffers:
            found += part._buffers.values()
    image = None
    if isinstance(model, _HasImages):
        with suppress(VitasError):
            image = model.image_shape()
    return [*parts, *found], image

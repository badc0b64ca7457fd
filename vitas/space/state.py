"""What is active in some choices, to be put back later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from vitas.choice import Dim
from vitas.space.walk import AnyChoice, holders


class State(NamedTuple):
    """What was active in some choices, to be put back later."""

    choices: tuple[AnyChoice, ...]
    indices: tuple[int, ...]
    sides: tuple[int, ...]

    @classmethod
    def of(cls, choices: Iterable[AnyChoice]) -> State:
        """Return the present state of `choices`."""
        choices = tuple(choices)
        return cls(choices, tuple(c._index for c in choices), tuple(getattr(c, "_side", 0) for c in choices))

    @classmethod
    def of_module(cls, module: nn.Module) -> State:
        """Return the present state of every choice that `module` holds."""
        return cls.of({holder.choice: None for holder in holders(module)})

    def put_back(self) -> None:
        """Activate what was active."""
        for choice, index, side in zip(*self, strict=True):
            if isinstance(choice, Dim):
                choice._side = side
            choice._set(index)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Activate what was active for the length of a with block."""
        now = State.of(self.choices)
        self.put_back()
        try:
            yield
        finally:
            now.put_back()

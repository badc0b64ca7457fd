"""What is active in some choices, to be put back later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from vitas.space.walk import AnyChoice, holders


class State(NamedTuple):
    """What was active in some choices, to be put back later."""

    choices: tuple[AnyChoice, ...]
    states: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, choices: Iterable[AnyChoice]) -> State:
        """Return the present state of `choices`."""
        choices = tuple(choices)
        return cls(choices, tuple([choice.state() for choice in choices]))

    @classmethod
    def of_module(cls, module: nn.Module) -> State:
        """Return the present state of every choice that `module` holds."""
        return cls.of({holder.choice: None for holder in holders(module)})

    def largest(self) -> State:
        """Return the state of the same choices in which each has its largest value."""
        return State(self.choices, tuple([(len(choice.values) - 1, 0) for choice in self.choices]))

    def smallest(self) -> State:
        """Return the state of the same choices in which each has its smallest value."""
        return State(self.choices, tuple([(0, 0) for _ in self.choices]))

    def put_back(self) -> None:
        """Activate what was active; an interrupt in the middle is raised when all is done."""
        try:
            self._restore()
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        for choice, state in zip(self.choices, self.states, strict=True):
            choice.restore(state)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Activate what was active for the length of a with block."""
        now = State.of(self.choices)
        self.put_back()
        try:
            yield
        finally:
            now.put_back()

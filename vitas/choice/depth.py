"""How many blocks of a row run, and which: a depth knows the order in which they leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch

from vitas.checks import are_several, is_int
from vitas.choice.dim import Choice
from vitas.choice.marks import Mark, compiling
from vitas.errors import ChoiceError, shown


class Depth(Choice[int]):
    """A number of blocks that run, which knows which ones do, as a Dim knows which channels.

    Slots leave one by one in an order, which is the same in every subnet; those that run keep their places.

    Args:
        values: Legal numbers, the largest that of all slots.
        leave: Numbers of slots in the order in which they leave; after them the others leave, the last first.
        p: As in Choice.
        name: As in Choice.

    Raises:
        ChoiceError: as in Choice; slots that are not different numbers in 0..n - 1.

    Attributes:
        turns: For each slot, how many are still there when it leaves: it runs where the depth is above that.
    """

    def __init__(
        self,
        values: Iterable[int],
        *,
        leave: Iterable[int] = (),
        p: Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(values, p=p, name=name)
        n = self.largest
        first: list[Any] = list(islice(leave, n + 1)) if are_several(leave) else [None]
        if not all(is_int(slot, 0, n - 1) for slot in first) or len(set(first)) < len(first):
            raise ChoiceError(f"leave: {self.label} counts blocks 0..{n - 1}; expected different ones, got {shown(leave)}")
        order = [*map(int, first), *(slot for slot in reversed(range(n)) if slot not in first)]
        self.turns = tuple(n - 1 - order.index(slot) for slot in range(n))

    def uses(self) -> tuple[Sequence[Any], ...]:
        """Return the depths, and the slots that run at each."""
        slots = range(len(self.turns))
        return self.values, tuple(tuple(slot for slot in slots if self.turns[slot] < depth) for depth in self.values)

    @property
    def from_the_end(self) -> bool:
        """Whether the last blocks leave first, as they do where nothing else was said."""
        return self.turns == tuple(range(len(self.turns)))

    def runs(self, slot: int) -> bool:
        """Say whether the block of a slot runs in the active subnet."""
        return self.turns[slot] < self.active

    def earlier(self, slot: Mark[int], device: torch.device | None = None) -> Any:
        """Return how many blocks run before that of a slot, where that runs; compiled, a symbol or a tensor on `device`."""
        number = slot.read(0)
        if self.from_the_end:
            return number
        if compiling():
            turns = torch.tensor(self.turns, device=device)
            return ((turns < self.active) & (torch.arange(len(self.turns), device=device) < number)).sum()
        return sum(turn < self.active for turn in self.turns[:number])

"""What is active of several values: the one state of a choice, who follows it, and what copies and pickles keep."""

import weakref
from typing import Any, Generic, Protocol

import numpy as np

from vitas.checks import is_int
from vitas.choice.marks import Mark
from vitas.choice.values import V
from vitas.errors import ChoiceError, one_of, shown


class Follower(Protocol):
    """What keeps something for the active value of a choice, see `Choice.follow`."""

    def refresh(self) -> None:
        """Read the choice again: another value has become active."""


class Active(Generic[V]):
    """Several values, ascending, of which one is active: the first half of a Choice."""

    name: str | None
    _values: tuple[V, ...]
    _index: int
    _kind = "Choice"
    _side = 0

    def _build(self) -> None:
        """Make what copies and pickles leave out."""
        self.owner = None
        self._followers: list[weakref.ref[Follower]] = []
        self._look_up()
        self.restore(self.state())

    def _look_up(self) -> None:
        """Make what follows from the values."""
        self._index_of: dict[Any, int] = {value: index for index, value in enumerate(self.values)}
        self._marks: tuple[list[Mark[V]], ...] = self._make_marks()

    def _make_marks(self) -> tuple[list[Mark[V]], ...]:
        """Return the marks of the values, for each side."""
        fixed = self.fixed or not all(isinstance(value, int) for value in self.values)
        return ([Mark(value, fixed=fixed) for value in self.values],)

    _left_out = ("_owner", "_followers", "_index_of", "_marks", "mark")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in self._left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build()

    @property
    def values(self) -> tuple[V, ...]:
        """The legal values, ascending."""
        return self._values

    @property
    def label(self) -> str:
        """What errors call it."""
        return self.name or self._kind

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.values) == 1

    @property
    def smallest(self) -> V:
        """The smallest value."""
        return self.values[0]

    @property
    def largest(self) -> V:
        """The largest value; for a Dim also the number of channels of the shared weights."""
        return self.values[-1]

    @property
    def active(self) -> V:
        """The value in use, the only state; the largest at first.

        Raises:
            ChoiceError: on setting a value that is not one of `values`.
            CheckpointError: on reading inside the recomputation of reentrant checkpointing.
        """
        return self.mark.read(0)

    @active.setter
    def active(self, value: V) -> None:
        self.restore((self.index_of(value), self._side))

    def index_of(self, value: object) -> int:
        """Return the position of `value` among `values`.

        Raises:
            ChoiceError: not one of `values` (bools, NaN and strings never are).
        """
        try:
            index = None if isinstance(value, (bool, np.bool_)) else self._index_of.get(value)
        except TypeError:  # not hashable
            index = None
        if index is not None:
            return index
        raise ChoiceError(f"{self.label}: {one_of(self.values, value)}")

    @property
    def index(self) -> int:
        """The position of the active value among `values`; setting it makes another value active.

        Raises:
            ChoiceError: on setting anything but a position.
        """
        return self._index

    @index.setter
    def index(self, index: int) -> None:
        if not is_int(index, 0, len(self.values) - 1):
            raise ChoiceError(f"{self.label}: expected an index in 0..{len(self.values) - 1}, got {shown(index)}")
        self.active = self.values[index]

    def state(self) -> tuple[int, int]:
        """Return all that is active, to be restored later: the index, and for a Dim the number of its side (else 0)."""
        return self._index, self._side

    def restore(self, state: tuple[int, int]) -> None:
        """Make active what `state()` returned; nothing is checked."""
        self._index, self._side = state
        self.mark: Mark[V] = self._marks[self._side][self._index]
        for reference in self._followers:
            if (follower := reference()) is not None:
                follower.refresh()

    def follow(self, follower: Follower) -> None:
        """Call `follower.refresh()` whenever another value becomes active, as long as the follower is alive."""
        self._followers = [reference for reference in self._followers if reference() is not None]
        self._followers.append(weakref.ref(follower))

    @property
    def owner(self) -> Any:
        """Who has claimed it: a model, whose copies claim copies of it; None: nobody, or nobody who is still alive."""
        return None if self._owner is None else self._owner()

    @owner.setter
    def owner(self, owner: Any) -> None:
        self._owner = None if owner is None else weakref.ref(owner)

"""One searchable value (Choice) and one searchable channel count (Dim): objects that layers share by identity.

A Choice's only state is its active value. A Dim also knows which channels of a shared weight each count uses. Layers that
must agree hold the same object: that is how a residual add, a norm and a classifier always have the same width.
"""

import uuid
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Generic, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitas.checks import LONGEST_NAME, MOST_CHANNELS, is_int, is_name
from vitas.choice.marks import Mark
from vitas.choice.products import products_of
from vitas.choice.take import take
from vitas.choice.values import V, checked_p, checked_values, fractions_of, in_order, refuse_too_many
from vitas.errors import ChoiceError, ShapeError, fault_of_name, is_one_of, one_of, shown
from vitas.sharing import Run, Sharing, runs_of

SIDES = ("left", "right")
"""Bilateral sharing gives each count two runs."""


class Follower(Protocol):
    """What keeps something for the active value of a choice, see `Choice.follow`."""

    def refresh(self) -> None:
        """Read the choice again: another value has become active."""


class Choice(Generic[V]):
    """One searchable value: a head count, a depth, a patch size, a ratio.

    A choice of a single value is fixed: layers hold one where a plain int was given, and a search space leaves it out.

    Args:
        values: Legal values, in any order; kept ascending.
        p: Probability (or weight) of each value, in the order of `values`; None: equal. The only home of sampling
            probabilities.
        name: Name in the search space; None: the shortest attribute path to a holder.

    Raises:
        ChoiceError: no values, repeated, negative, not numbers; weights that are not probabilities.
    """

    name: str | None

    def __init__(self, values: Iterable[V], *, p: Sequence[float] | None = None, name: str | None = None) -> None:
        if name is not None and (fault := fault_of_name(name, LONGEST_NAME)):
            raise ChoiceError(f"name: {fault}")
        self.name = name
        values, p = in_order(values, p)
        self._values: tuple[V, ...] = checked_values(values, self.label, self._least)
        self._p = checked_p(p, len(self.values), self.label)
        self._index = len(self.values) - 1
        self.origin = uuid.uuid4().hex  # kept by copies: two of one origin in one model are a broken tie
        self._build()

    _kind = "Choice"
    _least = 0.0
    _side = 0

    def _build(self) -> None:
        """Make what copies and pickles leave out."""
        self.owner = None
        self._followers: list[weakref.ref[Follower]] = []
        self._index_of: dict[Any, int] = {value: index for index, value in enumerate(self.values)}
        self._marks: tuple[list[Mark[V]], ...] = self._make_marks()
        self.restore(self.state())

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
    def p(self) -> tuple[float, ...]:
        """The probability of each value."""
        return self._p

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

    @property
    def bases(self) -> "tuple[Choice[Any], ...]":
        """The choices that decide this value: itself, or for a product its factors."""
        return (self,)

    def table(self) -> NDArray[Any]:
        """Return the value for every combination of the values of `bases`, one axis for each base."""
        return np.array(self.values)

    def __mul__(self, other: "int | Choice[Any]") -> "Dim":
        if not isinstance(other, Choice) and not is_int(other):
            return NotImplemented
        return _Product(self, other)

    __rmul__ = __mul__

    def brief(self) -> str:
        """Return "96 of 32..192", for the printed model."""
        active = self.values[self._index]
        return str(active) if self.fixed else f"{active} of {self.smallest}..{self.largest}"

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        return f"{self._kind}({', '.join(map(str, self.values))}{name}, active={self.values[self._index]})"


class Dim(Choice[int]):
    """A searchable channel count that knows which channels each count uses.

    The shared weights have `largest` channels along this dimension, seen as a ring; a count uses one contiguous run of it.
    `heads * 64` and `ratio * width` make Dims that follow their factors: they add no choice, and have runs of their own.

    Source: sharing patterns, see vitas.sharing. One object for all layers that must agree is ours.

    Args:
        values: Channel counts, positive ints; kept ascending.
        sharing: "ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired", or a rule (values, largest, p) -> starts.
        p: As in Choice.
        name: As in Choice.

    Raises:
        ChoiceError: as in Choice; counts that are not positive ints; an unknown pattern.
    """

    _kind = "Dim"
    _least = 1

    def __init__(
        self,
        values: Iterable[int],
        *,
        sharing: Sharing = "cyclic",
        p: Sequence[float] | None = None,
        name: str | None = None,
    ) -> None:
        what = name if is_name(name) else self._kind
        values, p = in_order(values, p)
        values = checked_values(values, what, self._least)
        if not all(isinstance(value, int) for value in values):
            raise ChoiceError(f"{what}: channel counts are ints, got {shown(list(values))}")
        refuse_too_many(values[-1], what)
        self.sharing = sharing if isinstance(sharing, str) else getattr(sharing, "__name__", "custom")
        p = checked_p(p, len(values), what)
        self.sides: tuple[tuple[Run, ...], ...] = runs_of(sharing, values, p)
        super().__init__(values, p=p, name=name)

    @classmethod
    def fractions(cls, largest: int, fractions: Iterable[float], **options: Any) -> "Dim":
        """Return a Dim of round(largest * fraction) channels for each fraction.

        Source: the width rule of the public ViTAS code (Python's rounding): 384 -> 38, 77, 115 ... 384.

        Args:
            largest: Channels of the shared weights.
            fractions: Numbers in (0, 1].
            options: Other arguments of Dim.

        Raises:
            ChoiceError: `largest` is no channel count; fractions outside (0, 1], or two that round to one count.
        """
        name = options.get("name")
        what = name if is_name(name) else cls._kind
        return cls(fractions_of(largest, fractions, what), **options)

    def _make_marks(self) -> tuple[list[Mark[int]], ...]:
        return tuple([Mark(length, start, fixed=self.fixed) for start, length in side] for side in self.sides)

    @property
    def side(self) -> str:
        """Which of its runs a count uses, "left" or (bilateral sharing) "right"; part of the activation, not of a Subnet.

        Raises:
            ChoiceError: on setting "right" where the pattern is not bilateral, or another word.
        """
        return SIDES[self._side]

    @side.setter
    def side(self, side: str) -> None:
        if not is_one_of(SIDES, side):
            raise ChoiceError(f"side: {one_of(SIDES, side)}")
        if SIDES.index(side) >= len(self.sides):
            raise ChoiceError(f"side: {self.label} shares its channels by {shown(self.sharing)}, which has no right side")
        self.restore((self._index, SIDES.index(side)))

    @property
    def run(self) -> Run:
        """(start, length) of the active channels on the ring."""
        return self.mark.read(1), self.mark.read(0)

    def channels(self) -> Tensor:
        """Return the indices of the active channels in order, (K,); for tests and pictures."""
        start, length = self.run
        return (torch.arange(length) + start) % self.largest

    def take(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Return the active channels of `tensor` along `axis`; the gradient is zero elsewhere.

        Shapes: (..., L, ...) -> (..., K, ...), L = largest, K = active.

        Raises:
            ShapeError: `tensor` does not have L channels along `axis`.
        """
        if not -tensor.ndim <= axis < tensor.ndim:
            raise ShapeError(f"{self.label}: axis {axis} of a tensor of shape {tuple(tensor.shape)}")
        return take(it=(tensor, *(None for _ in range(axis % tensor.ndim)), self))["it"]


class _Product(Dim):
    """A Dim that follows other choices: the product of their values and of ints, rounded down.

    Where all are ints it is used in whole runs of `scale` channels: `heads * 64` in whole heads.
    """

    scale: int

    def __init__(self, *factors: int | Choice[Any]) -> None:
        scale, sharing = 1, "cyclic"
        bases: list[Choice[Any]] = []
        for factor in factors:
            if isinstance(factor, _Product):
                scale *= factor.scale
                bases.extend(factor.bases)
                sharing = factor.sharing
            elif isinstance(factor, Choice):
                bases.append(factor)
                sharing = factor.sharing if isinstance(factor, Dim) else sharing
            else:
                scale *= int(factor)
        if not 1 <= scale <= MOST_CHANNELS:
            raise ChoiceError(f"{bases[0].label} * {shown(scale)}: expected a positive number of at most {MOST_CHANNELS}")
        if sharing not in ("ordinal", "bilateral", "cyclic-chain"):
            sharing = "cyclic"  # pairs of complements, or a rule of one's own, do not carry over to products
        self._bases, self.scale, self.sharing, self.name = tuple(bases), scale, sharing, None
        whole_runs = all(isinstance(value, int) for base in bases for value in base.values)  # not for ratios
        unit, times = (scale, 1) if whole_runs else (1, scale)
        counts, self._p, self._number_of = products_of(bases, times, unit, self.label)
        self._values = tuple(count * unit for count in counts)
        follows = bases[0] if len(bases) == 1 and isinstance(bases[0], Dim) else None
        sides = follows.sides if follows else runs_of(sharing, counts, self.p)
        self.sides = tuple(tuple((start * unit, length * unit) for start, length in side) for side in sides)
        self._index = len(counts) - 1
        self.origin = uuid.uuid4().hex
        self._build()

    @property
    def bases(self) -> tuple[Choice[Any], ...]:
        return self._bases

    @property
    def label(self) -> str:
        names = [base.label for base in self._bases] + ([str(self.scale)] if self.scale > 1 else [])
        return " * ".join(names)

    def table(self) -> NDArray[Any]:
        table = np.empty([len(base.values) for base in self._bases], dtype=np.int64)
        for indices, number in self._number_of.items():
            table[indices] = self.values[number]
        return table

    def _build(self) -> None:
        super()._build()
        for base in self._bases:
            base.follow(self)
        self.refresh()

    def refresh(self) -> None:
        """Follow the factors."""
        sides = [base._side for base in self._bases if isinstance(base, Dim)]
        side = min(max(sides, default=0), len(self.sides) - 1)
        self.restore((self._number_of[tuple([base._index for base in self._bases])], side))

    @property
    def side(self) -> str:
        """The side of its factors."""
        return SIDES[self._side]

    @side.setter
    def side(self, side: str) -> None:
        self.index_of(side)

    def index_of(self, value: object) -> int:
        raise ChoiceError(f"{self.label} follows its factors; set {' or '.join(base.label for base in self._bases)} instead")

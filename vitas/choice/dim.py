"""One searchable value (Choice) and one searchable channel count (Dim): objects that layers share by identity.

A Choice's only state is its active value. A Dim also knows which channels of a shared weight each count uses. Layers that
must agree hold the same object: that is how a residual add, a norm and a classifier always have the same width.
"""

import math
import uuid
import weakref
from collections.abc import Iterable, Sequence
from itertools import islice, product
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitas.checks import LONGEST_NAME, MOST_CHANNELS, MOST_VALUES, are_several, is_int, is_name, is_number
from vitas.choice.slicing import mark, marked, refuse_reentrant
from vitas.choice.take import take
from vitas.choice.values import V, checked_p, checked_values, in_order, refuse_too_many
from vitas.errors import ChoiceError, ShapeError, fault_of_name, is_one_of, one_of, shown
from vitas.sharing import Run, Sharing, runs_of

SIDES = ("left", "right")


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
        self._origin = uuid.uuid4().hex  # kept by copies: two of one origin in one model are a broken tie
        self._index = len(self.values) - 1
        self._build()

    _kind = "Choice"
    _least = 0.0

    def _build(self) -> None:
        """Make what copies and pickles leave out."""
        self._followers: list[weakref.ref[Any]] = []  # products and private copies: they have a _refresh()
        self._model: weakref.ref[Any] | None = None
        self._index_of: dict[Any, int] = {value: index for index, value in enumerate(self.values)}
        self._marks = self._make_marks()
        self._set(self._index)

    def _make_marks(self) -> tuple[Sequence[Tensor | None], ...]:
        if self.fixed or not all(isinstance(value, int) for value in self.values):
            return ([None] * len(self.values),)
        return ([mark(int(value)) for value in self.values],)

    _left_out = ("_followers", "_model", "_index_of", "_marks", "_mark")

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
        if self._mark is None:
            return self._values[self._index]
        if torch.compiler.is_compiling():
            return marked(self._mark, 0)
        refuse_reentrant()
        return self._values[self._index]

    @active.setter
    def active(self, value: V) -> None:
        self._set(self.index_of(value))

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

    def _set(self, index: int) -> None:
        self._index = index
        self._mark = self._marks[0][index]
        for follower in self._followers:
            if (it := follower()) is not None:
                it._refresh()

    def _follow(self, follower: Any) -> None:
        """Let `follower` be refreshed whenever another value becomes active."""
        self._followers = [ref for ref in self._followers if ref() is not None]
        self._followers.append(weakref.ref(follower))

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
        return _Product.of(self, other)

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
        self._side = 0
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
        if not are_several(fractions):
            raise ChoiceError(f"{what}: expected several fractions, got {shown(fractions)}")
        largest = as_dim(largest, what).largest
        fractions = [f.item() if isinstance(f, np.generic) else f for f in islice(fractions, MOST_VALUES + 1)]
        for fraction in fractions:
            if not is_number(fraction) or not 0 < fraction <= 1:
                raise ChoiceError(f"{what}: fractions lie in (0, 1], got {shown(fraction)}")
        return cls([round(largest * fraction) for fraction in fractions], **options)

    def _make_marks(self) -> tuple[Sequence[Tensor | None], ...]:
        if self.fixed:
            return tuple([None] for _ in self.sides)
        return tuple([mark(length, start) for start, length in side] for side in self.sides)

    def _set(self, index: int) -> None:
        self._index = index
        self._mark = self._marks[self._side][index]
        for follower in self._followers:
            if (it := follower()) is not None:
                it._refresh()

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
        self._side = SIDES.index(side)
        self._set(self._index)

    @property
    def run(self) -> Run:
        """(start, length) of the active channels on the ring."""
        if self._mark is not None:
            if torch.compiler.is_compiling():
                return marked(self._mark, 1), marked(self._mark, 0)
            refuse_reentrant()
        return self.sides[self._side][self._index]

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

    _kind = "Dim"

    @classmethod
    def of(cls, *factors: "int | Choice[Any]") -> "_Product":
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
        if sharing not in ("ordinal", "bilateral", "cyclic-chain"):
            sharing = "cyclic"  # pairs of complements, or a rule of one's own, do not carry over to products
        dim = cls.__new__(cls)
        dim._derive(tuple(bases), scale, sharing)
        return dim

    def _derive(self, bases: tuple[Choice[Any], ...], scale: int, sharing: str) -> None:
        if not 1 <= scale <= MOST_CHANNELS:
            raise ChoiceError(f"{bases[0].label} * {shown(scale)}: expected a positive number of at most {MOST_CHANNELS}")
        if len(set(map(id, bases))) < len(bases):
            raise ChoiceError(f"{bases[0].label} stands twice in one product")
        self._bases, self.scale, self.sharing, self.name = bases, scale, sharing, None
        self._origin = uuid.uuid4().hex
        whole_runs = all(isinstance(value, int) for base in bases for value in base.values)  # not for ratios
        unit, times = (scale, 1) if whole_runs else (1, scale)
        if math.prod(len(base.values) for base in bases) > 8 * MOST_VALUES:
            raise ChoiceError(f"{self.label}: a product of more than {8 * MOST_VALUES} combinations")
        weights: dict[int, float] = {}
        counts: dict[tuple[int, ...], int] = {}
        for indices in product(*(range(len(base.values)) for base in bases)):
            channels = math.prod(base.values[i] for base, i in zip(bases, indices, strict=True)) * times
            refuse_too_many(channels * unit, self.label)
            count = int(channels)
            if count < 1:
                raise ChoiceError(f"{self.label}: a product of {count} channels")
            counts[indices] = count
            p = math.prod(base.p[i] for base, i in zip(bases, indices, strict=True))
            weights[count] = weights.get(count, 0.0) + p
        whole = sorted(weights)
        self._position = {indices: whole.index(count) for indices, count in counts.items()}
        self._refuse_equal_products()
        self._values = tuple(count * unit for count in whole)
        self._p = tuple(weights[count] for count in whole)
        follows = bases[0] if len(bases) == 1 and isinstance(bases[0], Dim) else None
        sides = follows.sides if follows else runs_of(sharing, whole, self.p)
        self.sides = tuple(tuple((start * unit, length * unit) for start, length in side) for side in sides)
        self._side = 0
        self._index = len(whole) - 1
        self._build()

    def _refuse_equal_products(self) -> None:
        """One network, one subnet: no two values of a factor may give one count, the other factors being equal."""
        for axis, base in enumerate(self._bases):
            seen: dict[tuple[Any, ...], Any] = {}
            for indices, position in self._position.items():
                key = (*indices[:axis], *indices[axis + 1 :], position)
                if key in seen:
                    twin = base.values[seen[key]]
                    raise ChoiceError(f"{base.label}: {twin} and {base.values[indices[axis]]} give the same channel count")
                seen[key] = indices[axis]

    @property
    def bases(self) -> tuple[Choice[Any], ...]:
        return self._bases

    @property
    def label(self) -> str:
        names = [base.label for base in self._bases] + ([str(self.scale)] if self.scale > 1 else [])
        return " * ".join(names)

    def table(self) -> NDArray[Any]:
        table = np.empty([len(base.values) for base in self._bases], dtype=np.int64)
        for indices, position in self._position.items():
            table[indices] = self.values[position]
        return table

    def _build(self) -> None:
        super()._build()
        for base in self._bases:
            base._follow(self)
        self._refresh()

    def _refresh(self) -> None:
        sides = [base._side for base in self._bases if isinstance(base, Dim)]
        self._side = min(max(sides, default=0), len(self.sides) - 1)
        self._set(self._position[tuple([base._index for base in self._bases])])

    @property
    def side(self) -> str:
        """The side of its factors."""
        return SIDES[self._side]

    @side.setter
    def side(self, side: str) -> None:
        self.index_of(side)

    def index_of(self, value: object) -> int:
        raise ChoiceError(f"{self.label} follows its factors; set {' or '.join(base.label for base in self._bases)} instead")


def as_dim(dim: int | Dim, what: str = "channels") -> Dim:
    """Return `dim` itself, or a fixed Dim for a plain int.

    Raises:
        ChoiceError: not a positive int or a Dim.
    """
    if isinstance(dim, Dim):
        return dim
    if not is_int(dim):
        raise ChoiceError(f"{what}: expected a positive int or a Dim, got {shown(dim)}")
    return Dim(checked_values([dim], what, 1))


def as_choice(value: "V | Choice[V]", what: str = "value") -> "Choice[V]":
    """Return the Choice itself, or a fixed one for a plain number.

    Raises:
        ChoiceError: not a number or a Choice.
    """
    if isinstance(value, Choice):
        return value
    if not is_number(value):
        raise ChoiceError(f"{what}: expected a number or a Choice, got {shown(value)}")
    return Choice(checked_values([value], what, 0))  # type: ignore[list-item]  # is_number forgets which of both it is

"""One searchable value (Choice) and one searchable channel count (Dim): objects that layers share by identity.

A Choice's only state is its active value. A Dim also knows which channels of a shared weight each count uses. Layers that
must agree hold the same object: that is how a residual add, a norm and a classifier always have the same width. Values may
leave the search space or join it later; whatever a value uses of the shared weights it goes on using.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitas.checks import LONGEST_NAME, MOST_CHANNELS, is_int, is_name
from vitas.choice.active import Active
from vitas.choice.marks import Mark, refuse_onnx
from vitas.choice.products import products_of
from vitas.choice.runs import fitting, laid_around, scaled
from vitas.choice.take import take
from vitas.choice.values import (
    V,
    checked_new,
    checked_p,
    checked_values,
    conditioned,
    fractions_of,
    in_order,
    joined_p,
    refuse_too_many,
)
from vitas.errors import ChoiceError, ShapeError, fault_of_name, is_one_of, listed, one_of, shown
from vitas.sharing import Run, Sharing, runs_of

SIDES = ("left", "right")
"""Bilateral sharing gives each count two runs."""


class Choice(Active[V]):
    """One searchable value: a head count, a depth, a patch size, a ratio.

    A choice of a single value is fixed: layers hold one where a plain int was given, and a search space leaves it out.

    Args:
        values: Legal values, in any order; kept ascending.
        p: Probability (or weight) of each value, in the order of `values`; None: equal. The only home of sampling
            probabilities.
        name: Name in the search space; None: the shortest attribute path to a holder.

    Raises:
        ChoiceError: no values, repeated, negative, not numbers; weights that are not probabilities.

    Example:
        >>> heads = vitas.Choice([2, 4, 8], p=[1, 1, 2], name="heads")
        >>> heads.active
        8
        >>> heads.active = 2
        >>> heads
        Choice(2, 4, 8, name='heads', active=2)
    """

    version = 0
    """How often other values were left or joined: what was made of the choice before is old."""

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

    _least = 0.0
    _left: tuple[int, ...] | None = None

    @property
    def p(self) -> tuple[float, ...]:
        """The probability of each value; 0 for those that are not left."""
        return conditioned(self._p, self.left)

    @property
    def left(self) -> tuple[int, ...]:
        """The numbers of the values that the search space has: all of them, until `vitas.narrow` takes some out."""
        return tuple(range(len(self.values))) if self._left is None else self._left

    # -- which values there are --------------------------------------------------------------------------------------

    def leave(self, left: Iterable[int]) -> None:
        """Say which values the search space has, by their numbers; nothing else changes.

        Where the active value is none of them, the largest of them becomes active.
        """
        self._left = tuple(sorted(set(left)))
        index = self._index if self._index in self._left else self._left[-1]
        self._changed((index, self._side))

    def add(self, values: Iterable[V]) -> None:
        """Take more values, none above the largest; those that were there use the same of the shared weights as before.

        A new value is as likely as the others are on average, and which channels a new width uses says
        `vitas.sharing.run_of_new`. Values that were known and not left are left again.

        Raises:
            ChoiceError: values that are none for this choice, or above the largest.
        """
        known: tuple[V, ...] = self._values
        asked: tuple[V, ...] = checked_values(values, self.label, self._least)
        new: list[V] = checked_new(asked, known, self.label)
        if new and new[-1] > self.largest:
            raise ChoiceError(f"{self.label}: {self._too_large(new[-1])}")
        active, left = known[self._index], {*(known[number] for number in self.left), *asked}
        self._values = tuple(sorted(known + tuple(new)))
        self._p = joined_p(self._p, known, self._values, self.label)
        self._left = tuple(number for number, value in enumerate(self._values) if value in left)
        self._lay(known)
        self._look_up()
        self._changed((self._index_of[active], self._side))

    def _too_large(self, value: V) -> str:
        """Say why a value cannot be added."""
        return f"expected at most {self.largest}, for which the shared weights were made, got {value}"

    def _lay(self, known: Sequence[V]) -> None:
        """Say which part of the shared weights each value uses, those in `known` the same as before."""

    def _changed(self, state: tuple[int, int]) -> None:
        """Make a state active after the values have changed."""
        self.version += 1
        self._renew(state)

    def _renew(self, state: tuple[int, int]) -> None:
        """Make a state active, and let products follow values and runs that may have changed."""
        self._index, self._side = state
        for product in self.products:
            product.recount()
        self.restore(state)

    def uses(self) -> tuple[Sequence[Any], ...]:
        """Return the values, and for each side what of the shared weights each of them uses; nothing where all use all."""
        return ()

    @property
    def products(self) -> "tuple[_Product, ...]":
        """The Dims that are products of this choice and others."""
        followers = [reference() for reference in self._followers]
        return tuple(follower for follower in followers if isinstance(follower, _Product))

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
        """Return "96 of 32..192", for the printed model.

        Raises:
            ExportError: torch.onnx.export prints the model.
        """
        active = self.values[self._index]
        if self.fixed:
            return str(active)
        refuse_onnx()
        return f"{active} of {self.values[self.left[0]]}..{self.values[self.left[-1]]}"

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        left = "" if self._left is None else f", left={[self.values[number] for number in self._left]}"
        return f"{self._kind}({', '.join(map(str, self.values))}{name}{left}, active={self.values[self._index]})"


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

    Example:
        >>> width, heads = vitas.Dim([32, 48, 64], name="width"), vitas.Choice([1, 2])
        >>> layer = vitas.nn.CyclicLinear(width, heads * 8)
        >>> width.active = 48
        >>> layer(torch.randn(5, 48)).shape
        torch.Size([5, 16])
        >>> width.run
        (48, 48)
    """

    _kind = "Dim"
    _least = 1
    _unit = 1
    """What the starts and lengths of its runs are multiples of."""

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
        with torch.device("cpu"):  # a rule of one's own may compute by tensors, also while a model is made on meta
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
            ChoiceError: `largest` is not a channel count; fractions outside (0, 1], or two that round to one count.
        """
        name = options.get("name")
        what = name if is_name(name) else cls._kind
        return cls(fractions_of(largest, fractions, what), **options)

    def uses(self) -> tuple[Sequence[Any], ...]:
        return self.values, *self.sides

    def _make_marks(self) -> tuple[list[Mark[int]], ...]:
        return tuple([Mark(length, start, fixed=self.fixed) for start, length in side] for side in self.sides)

    def _too_large(self, value: int) -> str:
        around = [length for start, length in self.sides[0] if start + length > self.largest]
        cut = f"the runs of {listed(map(str, around))} go around the end of the ring, where new channels would be"
        why = cut if around else "more channels are more weights than there are"
        return f"expected at most {self.largest}, got {value}: {why}; train a model of that width"

    def adopt(self, runs: Mapping[int, Sequence[Run]]) -> None:
        """Use the channels that other weights were trained with.

        Args:
            runs: Width -> its run on each side; widths that are not named come to stand around these, as in `add`.

        Raises:
            ChoiceError: runs that do not fit: another number of sides, another length, a start off the ring.
        """
        known = fitting(runs, self._values, len(self.sides), self._unit, self.label)
        self._lay_around(known)
        self._look_up()
        self._renew(self.state())

    def _lay(self, known: Sequence[int]) -> None:
        self._lay_around({width: sides for width, *sides in zip(known, *self.sides, strict=True)})

    def _lay_around(self, known: Mapping[int, Sequence[Run]]) -> None:
        self.sides = laid_around(known, self._values, self._p, self.sharing, len(self.sides), self._unit)

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
        self._count()
        follows, unit = self._follows, self._unit
        sides = follows.sides if follows else runs_of(sharing, [count // unit for count in self._values], self.p)
        self.sides = scaled(sides, unit)
        self._index = len(self._values) - 1
        self.origin = uuid.uuid4().hex
        self._build()

    def _count(self) -> None:
        """Work out which counts there are."""
        whole_runs = all(isinstance(value, int) for base in self._bases for value in base.values)  # not for ratios
        self._unit, times = (self.scale, 1) if whole_runs else (1, self.scale)
        counts, self._p, self._number_of = products_of(self._bases, times, self._unit, self.label)
        self._values = tuple(count * self._unit for count in counts)

    @property
    def _follows(self) -> Dim | None:
        """The Dim whose runs its own are, in units."""
        base = self._bases[0]
        return base if len(self._bases) == 1 and isinstance(base, Dim) else None

    def recount(self) -> None:
        """Follow factors whose values or runs have changed; counts that were there keep their channels.

        Raises:
            ChoiceError: a product that cannot be: no channels, too many, or two values of a factor that give one count.
        """
        known = self._values
        self._count()
        if follows := self._follows:
            self.sides = scaled(follows.sides, self._unit)
        else:
            self._lay(known)
        self._look_up()
        self.refresh()

    def adopt(self, runs: Mapping[int, Sequence[Run]]) -> None:
        """Use the channels that other weights were trained with, see `Dim.adopt`.

        Raises:
            ChoiceError: as there; other runs than those of the one Dim that it follows.
        """
        if follows := self._follows:
            for width, *sides in zip(self.values, *self.sides, strict=True):
                if width in runs and [tuple(run) for run in runs[width]] != sides:
                    raise ChoiceError(
                        f"{self.label}: {width} channels use those of {follows.label}, {sides}, got {runs[width]}"
                    )
            return
        super().adopt(runs)

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

    def _renew(self, state: tuple[int, int]) -> None:
        self.refresh()

    def add(self, values: Iterable[int]) -> None:
        self.index_of(values)

    def leave(self, left: Iterable[int]) -> None:
        self.index_of(left)

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

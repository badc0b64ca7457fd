"""Subnets as vectors of ints.

A subnet has two forms: a `Subnet` of names and values, to be read, kept and handed in, and a *code*, to compute with: its
number k says which value of choice k it has, -1 that this choice is not live. Many codes are an array (n, choices).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vitas.checks import is_int
from vitas.choice import conditioned
from vitas.errors import ChoiceError, listed, one_of, shown, unknown
from vitas.space.left import Left
from vitas.space.liveness import Liveness
from vitas.space.subnet import Number, Subnet, well_formed
from vitas.space.walk import AnyChoice


class Encoding:
    """What subnets of a space are as codes.

    Args:
        choices: Name -> Choice, in the order of codes.
        liveness: Which of them are live.
        left: For each choice the numbers of the values that subnets may have.

    Attributes:
        prior: For each choice the probability of its values, 0 for those that are not left. Where the choice's own `p` gives
            nothing to any value that is left, these are equally likely.
        cumulative: The same, summed up.

    Raises:
        ChoiceError: a name that no subnet may have.
    """

    def __init__(self, choices: Mapping[str, AnyChoice], liveness: Liveness, left: Left) -> None:
        self.choices, self.liveness, self.left = choices, liveness, left
        self.prior = [conditioned(choice.p, numbers) for choice, numbers in zip(choices.values(), left, strict=True)]
        self.cumulative = [list(accumulate(p)) for p in self.prior]
        self._names = list(Subnet(dict.fromkeys(choices, 0)))  # which refuses names that no subnet may have
        self._values = [choice.values for choice in choices.values()]
        self._index_of: list[dict[Any, int]] = [
            {values[number]: number for number in numbers} for values, numbers in zip(self._values, left, strict=True)
        ]

    def code(self, subnet: Subnet, *, fill: str | None = None, strict: bool = True) -> list[int]:
        """Return the code of a subnet.

        Args:
            subnet: Names and values.
            fill: What a live choice that is not named gets: "largest", "smallest", or None for an error.
            strict: Whether choices that are not live are refused, or left out.

        Raises:
            ChoiceError: unknown names, illegal values, missing choices, choices that are not live.
        """
        names, index_of, missing = self._names, self._index_of, []
        left = dict(subnet.items())

        def number_of(k: int) -> int:
            value = left.pop(names[k], None)
            if value is not None:
                index = index_of[k].get(value)
                return self._refuse(k, value) if index is None else index
            if fill is None:
                missing.append(names[k])
            return self.left[k][0 if fill == "smallest" else -1]

        code = self.liveness.fill(number_of)
        if left:
            self._check_dead(left, strict)
        if missing:
            more = "complete them by search_space(model).subnet(values, fill='largest')"
            raise ChoiceError(f"missing choices: {listed(missing, 3)}; {more}")
        return code

    def _check_dead(self, values: Mapping[str, Number], strict: bool) -> None:
        """Check what is said about choices that are not live."""
        strange = [name for name in values if name not in self.choices]
        if len(strange) > 1:
            raise ChoiceError(f"a subnet of another model: this one has no choices {listed(map(shown, strange), 3)}")
        for name, value in values.items():
            if name not in self.choices:
                raise ChoiceError(unknown("choice", self._names, name, "search_space(model).choices"))
            k = self._names.index(name)
            if value not in self._values[k]:
                self._refuse(k, value)
        if strict:
            dead = [name for name in self._names if name in values]
            raise ChoiceError(f"not live in this subnet: {listed(dead)}; space.subnet(...) leaves such choices out")

    def _refuse(self, k: int, value: Number) -> NoReturn:
        held = "; fixed or only holds it" if len(self.left[k]) < len(self._values[k]) else ""
        raise ChoiceError(f"{self._names[k]}: {one_of(list(self._index_of[k]), value)}{held}")

    def left_number(self, k: int, number: int) -> int:
        """Return the number of a value, which has to be left.

        Raises:
            ChoiceError: it is not.
        """
        return number if number in self.left[k] else self._refuse(k, self._values[k][number])

    def subnet(self, code: Iterable[int]) -> Subnet:
        """Return the subnet of a code."""
        rows = zip(self._names, self._values, code, strict=True)
        return well_formed({name: values[number] for name, values, number in rows if number >= 0})

    def decoded(self, vector: Sequence[int] | NDArray[Any]) -> Subnet:
        """Return the subnet of a vector from outside; numbers of choices that are not live are ignored.

        Raises:
            ChoiceError: wrong length, not ints, numbers out of range.
        """
        numbers = codes_of([vector], len(self._names), "vector")[0].tolist()

        def number_of(k: int) -> int:
            if not 0 <= numbers[k] < len(self._values[k]):
                most = len(self._values[k]) - 1
                raise ChoiceError(f"{self._names[k]}: expected a number in 0..{most}, got {numbers[k]}")
            return self.left_number(k, int(numbers[k]))

        return self.subnet(self.liveness.fill(number_of))

    def holds(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return in which canonical codes, (n, choices), every live choice has a value that is left, (n,)."""
        inside = np.ones(len(codes), dtype=bool)
        for k, numbers in enumerate(self.left):
            if len(numbers) < len(self._values[k]):
                inside &= (codes[:, k] < 0) | np.isin(codes[:, k], numbers)
        return inside

    def canonical(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return codes, (n, choices), with -1 for the choices that are not live: equal networks have equal codes."""
        return np.where(self.liveness.of(codes), codes, -1)

    def completed(self, codes: NDArray[np.int64], drawn: Iterable[int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return canonical codes, (n, choices), in which the choices numbered `drawn` are drawn from the prior."""
        codes = codes.copy()
        for k in drawn:
            cumulative = self.cumulative[k]
            codes[:, k] = np.searchsorted(cumulative, rng.random(len(codes)) * cumulative[-1], side="right")
        return self.canonical(codes)


def codes_of(codes: object, n: int, what: str) -> NDArray[np.int64]:
    """Return codes from outside as an array, (codes, n).

    Raises:
        ChoiceError: not vectors of n ints each.
    """
    if isinstance(codes, (list, tuple)) and len(codes) == 1 and isinstance(codes[0], np.ndarray):
        codes = codes[0][None]
    if isinstance(codes, np.ndarray):
        if codes.ndim != 2 or codes.shape[1] != n or not np.issubdtype(codes.dtype, np.integer):
            raise ChoiceError(f"{what}: expected rows of {n} ints, got shape {codes.shape} of {codes.dtype}")
        return codes
    if not isinstance(codes, (list, tuple)):
        raise ChoiceError(f"{what}: expected rows of {n} ints, got {shown(codes)}")
    for code in codes:
        if isinstance(code, np.ndarray):
            fits = code.ndim == 1 and np.issubdtype(code.dtype, np.integer)
        else:
            fits = isinstance(code, (list, tuple)) and all(is_int(number, -1, 2**31 - 1) for number in code)
        if not fits or len(code) != n:
            raise ChoiceError(f"{what}: expected {n} ints, got {shown(code)}")
    return np.array(codes, dtype=np.int64).reshape(len(codes), n)

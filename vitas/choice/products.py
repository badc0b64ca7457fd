"""The channel counts that a product of choices can have, and how probable each is."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple, Protocol

from vitas.checks import MOST_VALUES
from vitas.choice.values import refuse_too_many
from vitas.errors import ChoiceError

Indices = tuple[int, ...]
"""The number of a value for each factor."""


class Factor(Protocol):
    """A choice, as far as a product needs it."""

    @property
    def values(self) -> Sequence[Any]: ...
    @property
    def p(self) -> Sequence[float]: ...
    @property
    def label(self) -> str: ...


class Products(NamedTuple):
    """The distinct products of some factors.

    Attributes:
        counts: Channel counts, ascending.
        p: The probability of each.
        number_of: For the number of each factor's value the number of their product among `counts`.
    """

    counts: tuple[int, ...]
    p: tuple[float, ...]
    number_of: dict[Indices, int]


def products_of(factors: Sequence[Factor], times: int, unit: int, label: str) -> Products:
    """Return the products of the factors' values and of `times`, rounded down, in units of `unit` channels.

    Args:
        factors: The choices that are multiplied.
        times: A number that is multiplied with them before rounding.
        unit: A number that the product is multiplied with later; here it only counts for the most that is allowed.
        label: What errors call the product.

    Raises:
        ChoiceError: a factor twice, too many combinations, products without a channel or with too many, or two values of a
            factor that give one product.
    """
    if len(set(map(id, factors))) < len(factors):
        raise ChoiceError(f"{factors[0].label} stands twice in one product")
    if math.prod(len(factor.values) for factor in factors) > 8 * MOST_VALUES:
        raise ChoiceError(f"{label}: a product of more than {8 * MOST_VALUES} combinations")
    weights: dict[int, float] = {}
    count_of: dict[Indices, int] = {}
    for indices in product(*(range(len(factor.values)) for factor in factors)):
        channels = math.prod(factor.values[i] for factor, i in zip(factors, indices, strict=True)) * times
        refuse_too_many(channels * unit, label)
        count = int(channels)
        if count < 1:
            raise ChoiceError(f"{label}: a product of {count} channels")
        count_of[indices] = count
        p = math.prod(factor.p[i] for factor, i in zip(factors, indices, strict=True))
        weights[count] = weights.get(count, 0.0) + p
    counts = sorted(weights)
    number_of = {indices: counts.index(count) for indices, count in count_of.items()}
    _refuse_equal_products(factors, number_of)
    return Products(tuple(counts), tuple(weights[count] for count in counts), number_of)


def _refuse_equal_products(factors: Sequence[Factor], number_of: dict[Indices, int]) -> None:
    """One network, one subnet: no two values of a factor may give one count, the other factors being equal."""
    for axis, factor in enumerate(factors):
        seen: dict[tuple[int, ...], int] = {}
        for indices, number in number_of.items():
            key = (*indices[:axis], *indices[axis + 1 :], number)
            if key in seen:
                twin, value = factor.values[seen[key]], factor.values[indices[axis]]
                raise ChoiceError(f"{factor.label}: {twin} and {value} give the same channel count")
            seen[key] = indices[axis]

"""What layers make of an argument that may be a plain number or a choice."""

from vitas.checks import is_int, is_number
from vitas.choice.dim import Choice, Dim
from vitas.choice.values import V, checked_values
from vitas.errors import ChoiceError, shown


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

"""One value for each live choice of a search space: a frozen mapping that travels as JSON."""

import json
from collections import Counter
from collections.abc import ItemsView, Iterator, Mapping
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np

from vitas.checks import LONGEST_NAME, as_number
from vitas.errors import ChoiceError, UnknownChoice, brief, fault_of_name, is_one_of, shown, unknown
from vitas.tables import by_block, html_table, text_table

Number = int | float


_MOST_CHARACTERS = 2**20
"""Of a subnet's JSON, which has some thousand."""


class Subnet(Mapping[str, Number]):
    """Names of choices and their values; equal and hashable by content, whatever the order.

    `SearchSpace.subnet` makes one that is complete and canonical; this class only checks that it is well formed.

    Args:
        values: Name -> int or float; numpy's numbers become Python's. NaN and None, which stand in tables where a choice is
            not live, are left out.

    Raises:
        ChoiceError: names that are not strings; bools, infinities, strings or other things as values.

    Example:
        >>> subnet = vitas.Subnet({"depth": 2, "embed_dim": 64})
        >>> subnet["depth"]
        2
        >>> subnet == {"embed_dim": 64, "depth": 2}
        True
        >>> vitas.Subnet.from_json(subnet.to_json()) == subnet
        True
    """

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Number]) -> None:
        if not isinstance(values, Mapping):
            meant = f"; search_space(model).{values}() is that subnet" if is_one_of(["largest", "smallest"], values) else ""
            raise ChoiceError(f"subnet: expected a mapping of names to numbers, got {shown(values)}{meant}")
        for name in values:
            if fault := fault_of_name(name, LONGEST_NAME):
                raise ChoiceError(f"subnet: a name: {fault}")
        self._values = {name: as_number(value, name) for name, value in values.items() if not is_missing(value)}
        self._hash = hash(frozenset(self._values.items()))

    def __getitem__(self, name: str) -> Number:
        try:
            return self._values[name]
        except KeyError:
            raise UnknownChoice(unknown("choice", list(self._values), name, "list(subnet)")) from None

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a choice, or `default` where it has none, as a dict does."""
        return self._values.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> ItemsView[str, Number]:
        """Return names and values, as fast as a dict does."""
        return self._values.items()

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Subnet, (self._values,)

    def to_json(self) -> str:
        """Return a JSON object of names and numbers."""
        return json.dumps(self._values)

    @classmethod
    def from_json(cls, text: str) -> "Subnet":
        """Read what `to_json` wrote.

        Raises:
            ChoiceError: not JSON, not an object, a name twice, a value that is not a finite number, beyond 2**20 characters.
        """
        if isinstance(text, (str, bytes, bytearray)) and len(text) > _MOST_CHARACTERS:
            raise ChoiceError(f"subnet: a text of length {len(text):,}, more than {_MOST_CHARACTERS:,}")
        try:
            values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, ChoiceError):
                raise
            raise ChoiceError(f"subnet: not a JSON object of names and numbers ({brief(error)})") from None
        return cls(values)

    def __repr__(self) -> str:
        single, columns, blocks = by_block(self)
        first = max(map(len, [*single, *blocks]), default=0)
        lines = [f"Subnet of {len(self)} choices"]
        if single:
            lines.append(text_table((name.ljust(first), value) for name, value in single.items()))
        if blocks:
            rows = ([name, *(row.get(word, "") for word in columns)] for name, row in blocks.items())
            lines.append(text_table([[" " * first, *columns], *rows], "<>"))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        single, columns, blocks = by_block(self)
        rows = [[name, *(row.get(word, "") for word in columns)] for name, row in blocks.items()]
        return html_table(single.items()) + (html_table(rows, ["", *columns]) if rows else "")


@runtime_checkable
class TableRow(Protocol):
    """A row of a table, such as a pandas.Series: values by the names of columns."""

    def keys(self) -> Any: ...

    def __getitem__(self, name: str) -> Any: ...


def is_missing(value: object) -> bool:
    """Say whether this stands for no value, as NaN does in the cells of a table."""
    return value is None or (isinstance(value, (float, np.floating)) and bool(value != value))


def as_subnet(values: Mapping[str, Number]) -> Subnet:
    """Return a Subnet itself, and one of any other mapping.

    Raises:
        ChoiceError: as Subnet.
    """
    return values if isinstance(values, Subnet) else Subnet(values)


def well_formed(values: dict[str, Number]) -> Subnet:
    """Return the subnet of names and Python numbers that are known to be well formed, unchecked."""
    subnet = Subnet.__new__(Subnet)
    subnet._values, subnet._hash = values, hash(frozenset(values.items()))
    return subnet


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in values if counts[name] > 1)
        raise ChoiceError(f"subnet: {shown(twice)} stands twice")
    return values


def _no_constant(word: str) -> NoReturn:
    raise ChoiceError(f"subnet: expected finite numbers, got {word}")

"""Small tables, described once and rendered as text or as HTML; and numbers in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from html import escape
from typing import Any, NamedTuple

from vitas.choice import Choice


class Table(NamedTuple):
    """Lines of cells, the first of which is a name.

    Attributes:
        lines: The cells of each line, as many as there are words in `head`, if any, and one more.
        head: Words above the cells; below words cells stand to the right, as numbers do.
    """

    lines: Sequence[tuple[str, ...]]
    head: tuple[str, ...] = ()

    def text(self, first: int = 0) -> list[str]:
        """Return the table as it is printed, line by line; names take at least `first` characters."""
        lines = [("", *self.head), *self.lines] if self.head else self.lines
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        name = f"<{max([first, *widths[:1]])}"
        formats = [name, *(f">{width}" if self.head else "" for width in widths[1:])]
        return ["  ".join(format(cell, how) for cell, how in zip(line, formats, strict=True)) for line in lines]

    def html(self) -> str:
        """Return the lines of an HTML table."""
        head = "".join(f"<th>{escape(word)}</th>" for word in ("", *self.head))
        lines = ["".join(f"<td>{escape(cell)}</td>" for cell in cells) for _, *cells in self.lines]
        named = [f"<tr><th>{escape(line[0])}</th>{cells}</tr>" for line, cells in zip(self.lines, lines, strict=True)]
        return "".join([f"<tr>{head}</tr>", *named] if self.head else named)


class SpaceTable(NamedTuple):
    """A search space in words and numbers.

    Attributes:
        size: How many choices and networks there are.
        costs: What the networks cost; empty where nothing is known of that.
        choices: Names and values of the choices.
    """

    size: str
    costs: str
    choices: Table

    @classmethod
    def of(cls, choices: Mapping[str, Choice[Any]], size: int, costs: tuple[int, int, int] | None) -> SpaceTable:
        """Return the table of choices that span `size` networks; costs of the cheapest, a middle and the costliest."""
        words = f"{len(choices)} choices, {readable_size(size)} networks"
        return cls(words, "" if costs is None else readable_costs(costs), table_of(choices))

    def text(self) -> str:
        """Return the table as it is printed."""
        return "\n  ".join([f"SearchSpace of {self.size}", *filter(None, [self.costs]), *self.choices.text()])

    def html(self) -> str:
        """Return the table as a notebook shows it."""
        return f"<b>{self.size}</b><br>{escape(self.costs)}<table>{self.choices.html()}</table>"


def table_of(choices: Mapping[str, Choice[Any]]) -> Table:
    """Return names and values of choices, one line for what is equal in several blocks."""
    alike: dict[tuple[str, tuple[Any, ...]], list[str]] = {}
    for name, choice in choices.items():
        pattern = re.sub(r"\.\d+\.(?!.*\.\d+\.)", ".*.", f".{name}").removeprefix(".")  # the last number
        alike.setdefault((pattern, choice.values), []).append(name)
    lines = []
    for (pattern, values), names in alike.items():
        listed = ", ".join(map(str, values))
        lines.append((names[0], listed) if len(names) == 1 else (pattern, f"{listed}  (x{len(names)})"))
    return Table(lines)


def readable_costs(costs: tuple[int, int, int]) -> str:
    """Return the costs of three networks in words: "1 M / 2 M / 4 M multiply-adds (cheapest / median / costliest)"."""
    return f"{' / '.join(map(readable_amount, costs))} multiply-adds (cheapest / median / costliest)"


def readable_size(size: int) -> str:
    """Return a number of networks in words: "1,200", "1.292e+43"."""
    return f"{size:,}" if size < 10**6 else f"{Decimal(size):.3e}"


def readable_amount(amount: int) -> str:
    """Return an amount with three digits: "950", "1.3 G"."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "K")):
        if amount >= 0.9995 * unit:  # 999,500 is 1 M, not 1e+03 K
            return f"{amount / unit:.3g} {name}" if amount < 999.5 * unit else f"{amount / unit:,.0f} {name}"
    return str(amount)

"""Small tables of what objects print: as text in terminals, as HTML in notebooks."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TypeVar

Value = TypeVar("Value")


def text_table(rows: Iterable[Sequence[object]], align: str = "<") -> str:
    """Return rows as lines of text, two blanks between columns.

    Args:
        rows: Cells of any type; a row may be shorter than others.
        align: One sign a column, "<" (left) or ">" (right); the last one stands for all columns that follow.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    columns = max(map(len, cells), default=0)
    widths = [max(len(row[column]) for row in cells if column < len(row)) for column in range(columns)]
    aligned = align + align[-1] * columns
    lines = ("  ".join(f"{cell:{aligned[k]}{widths[k]}}" for k, cell in enumerate(row)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def html_table(rows: Iterable[Sequence[object]], header: Sequence[object] = ()) -> str:
    """Return rows as an HTML table, every cell escaped; the first cell of a row is its heading."""
    lines = ["".join(f"<th>{escape(str(cell))}</th>" for cell in header)] if header else []
    for first, *others in rows:
        lines.append(f"<th>{escape(str(first))}</th>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in others))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def by_block(
    values: Mapping[str, Value],
) -> tuple[dict[str, Value], list[str], dict[str, dict[str, Value]]]:
    """Lay out values with dotted names, such as those of a subnet, as a table with a row for each block.

    Returns:
        Values whose name has no dot; the columns, last words of the other names; block -> column -> value. Where most
        of such a table would be empty, all values are of the first kind.
    """
    single: dict[str, Value] = {}
    blocks: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        block, _, word = name.rpartition(".")
        if block:
            blocks.setdefault(block, {})[word] = value
        else:
            single[name] = value
    columns = list(dict.fromkeys(word for row in blocks.values() for word in row))
    if len(columns) * len(blocks) > _MOST_EMPTY * len(values):
        return dict(values), [], {}
    return single, columns, blocks


_MOST_EMPTY = 64
"""Cells of a table for each value in it."""


def pattern_of(name: str) -> str:
    """Return a dotted name with a star for each number: "blocks.*.mlp_dim"."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))

"""The HTML of a card: one Jinja template, in which every text is escaped.

Colours work on light and dark pages: text takes the page's own, bars lie on a translucent grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

BLUE, ORANGE, GREEN = "#3f86c6", "#d9822b", "#3a9d74"  # at least 3 : 1 on white and on black


class Cell(NamedTuple):
    """What stands in one cell of a card's table."""

    text: str = ""
    faint: str = ""
    """Said after the text, paler."""
    bold: bool = False
    share: float | None = None
    """In 0..1: a bar of that length stands before the text."""
    colour: str = BLUE
    columns: Sequence[float] = ()
    """Heights in 0..1: a small chart of columns in place of the text."""


class Table(NamedTuple):
    """Rows of cells below a header, which may be empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


_CARD = """
{%- set cell_style = "padding:2px 10px 2px 0;text-align:left;border:0;background:none;vertical-align:middle;
white-space:nowrap" -%}
{%- macro bar(share, colour) -%}
<span style="display:inline-block;width:84px;background:rgba(128,128,128,.22);vertical-align:middle">
<span style="display:block;height:9px;width:{{ "%.0f" % (100 * share) }}%;min-width:2px;background:{{ colour }}">
{#- -#} </span></span>{{ " " }}
{%- endmacro -%}
{%- macro chart(heights, colour) -%}
<span style="display:inline-block;height:18px;line-height:18px">
{%- for height in heights -%}
<span style="display:inline-block;width:5px;margin-right:1px;vertical-align:bottom;
height:{{ [1, (18 * height) | round | int] | max }}px;background:{{ colour }}"></span>
{%- endfor -%}
</span>
{%- endmacro -%}
{%- macro content(cell) -%}
{%- if cell.share is not none %}{{ bar(cell.share, cell.colour) }}{% endif -%}
{%- if cell.columns %}{{ chart(cell.columns, cell.colour) }}{% endif -%}
{%- if cell.bold %}<b>{{ cell.text }}</b>{% else %}{{ cell.text }}{% endif -%}
{%- if cell.faint %}<span style="opacity:.65">{{ cell.faint }}</span>{% endif -%}
{%- endmacro -%}
<div style="font-size:13px;line-height:1.45;max-width:100%;overflow-x:auto;font-variant-numeric:tabular-nums">
<div style="margin:0 0 6px"><b>{{ title }}</b> &ensp;{{ facts | select | join(" \u00b7 ") }}</div>
{%- for table in tables %}
<table style="border-collapse:collapse;border:0;margin:0 0 4px;font-size:inherit;color:inherit">
{%- if table.header %}
<tr style="background:none;border:0">
{%- for word in table.header %}<th style="{{ cell_style }};font-weight:600;opacity:.75">{{ word }}</th>{% endfor -%}
</tr>
{%- endif %}
{%- for row in table.rows %}
<tr style="background:none;border:0">
{%- for cell in row %}<td style="{{ cell_style }}">{{ content(cell) }}</td>{% endfor -%}
</tr>
{%- endfor %}
</table>
{%- endfor %}
{%- for note in notes %}
<div style="margin-top:6px;opacity:.75;max-width:70em">{{ note }}</div>
{%- endfor %}
</div>
"""


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined  # slow to import, and seldom used

    return Environment(autoescape=True, undefined=StrictUndefined).from_string(_CARD)


def card_html(title: str, facts: Iterable[str], tables: Iterable[Table], notes: Iterable[str] = ()) -> str:
    """Return a card as an HTML fragment with its styles inside: a title with facts, tables, notes."""
    return str(_template().render(title=title, facts=list(facts), tables=list(tables), notes=list(notes)))

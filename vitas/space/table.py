"""A search space as a table, and numbers in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from html import escape

from vitas.tables import html_table, text_table


def space_text(values: Mapping[str, tuple[float, ...]], size: int, costs: str) -> str:
    """Return a space of `size` networks as it is printed; `costs` is a line on what they cost, or empty."""
    head = [f"SearchSpace of {_counts(values, size)}", *filter(None, [costs])]
    return "\n  ".join([*head, *text_table(_alike(values)).split("\n")])


def space_html(values: Mapping[str, tuple[float, ...]], size: int, costs: str) -> str:
    """Return the same as a notebook shows it."""
    return f"<b>{_counts(values, size)}</b><br>{escape(costs)}{html_table(_alike(values))}"


def _counts(values: Mapping[str, tuple[float, ...]], size: int) -> str:
    return f"{len(values)} choices, {readable_size(size)} networks"


def _alike(values: Mapping[str, tuple[float, ...]]) -> list[tuple[str, str]]:
    """Return names and values of choices, one row for what is equal in several blocks."""
    alike: dict[tuple[str, tuple[float, ...]], list[str]] = {}
    for name, own in values.items():
        pattern = re.sub(r"\.\d+\.(?!.*\.\d+\.)", ".*.", f".{name}").removeprefix(".")  # the last number
        alike.setdefault((pattern, own), []).append(name)
    rows = []
    for (pattern, own), names in alike.items():
        listed = ", ".join(map(str, own))
        rows.append((names[0], listed) if len(names) == 1 else (pattern, f"{listed}  (x{len(names)})"))
    return rows


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

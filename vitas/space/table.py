"""A search space as a table, and numbers in words."""

from __future__ import annotations

from decimal import Decimal


def readable_size(size: int) -> str:
    """Return a number of networks in words: "1,200", "1.292e+43"."""
    return f"{size:,}" if size < 10**6 else f"{Decimal(size):.3e}"


def readable_amount(amount: int) -> str:
    """Return an amount with three digits: "950", "1.3 G"."""
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "K")):
        if amount >= 0.9995 * unit:  # 999,500 is 1 M, not 1e+03 K
            return f"{amount / unit:.3g} {name}" if amount < 999.5 * unit else f"{amount / unit:,.0f} {name}"
    return str(amount)

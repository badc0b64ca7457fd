"""Subnets as vectors of ints."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitas.errors import ChoiceError, shown


def codes_of(rows: object, n: int, what: str) -> NDArray[np.int64]:
    """Return encoded subnets as an array, (rows, n).

    Raises:
        ChoiceError: not rows of n ints each.
    """
    if isinstance(rows, (list, tuple)) and len(rows) == 1 and isinstance(rows[0], np.ndarray):
        rows = rows[0][None]
    if isinstance(rows, np.ndarray):
        if rows.ndim != 2 or rows.shape[1] != n or not np.issubdtype(rows.dtype, np.integer):
            raise ChoiceError(f"{what}: expected rows of {n} ints, got shape {rows.shape} of {rows.dtype}")
        return rows
    if not isinstance(rows, (list, tuple)):
        raise ChoiceError(f"{what}: expected rows of {n} ints, got {shown(rows)}")
    for row in rows:
        ints = isinstance(row, np.ndarray) and row.ndim == 1 and np.issubdtype(row.dtype, np.integer)
        if (not ints and not (isinstance(row, (list, tuple)) and all(map(_is_code, row)))) or len(row) != n:
            raise ChoiceError(f"{what}: expected {n} ints, got {shown(row)}")
    return np.array(rows, dtype=np.int64).reshape(len(rows), n)


def _is_code(number: object) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool) and bool(-1 <= number < 2**31)

"""Subnets as vectors of ints."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitas.checks import is_int
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
        if isinstance(row, np.ndarray):
            fits = row.ndim == 1 and np.issubdtype(row.dtype, np.integer)
        else:
            fits = isinstance(row, (list, tuple)) and all(is_int(number, -1, 2**31 - 1) for number in row)
        if not fits or len(row) != n:
            raise ChoiceError(f"{what}: expected {n} ints, got {shown(row)}")
    return np.array(rows, dtype=np.int64).reshape(len(rows), n)

"""Position tables for another image size."""

from pathlib import Path
from typing import Any

from torch import Tensor

from vitas import plain
from vitas.checks import MOST_CHANNELS, is_int
from vitas.errors import FileError
from vitas.memory import refuse_beyond_memory


def is_size(value: object) -> bool:
    """Say whether a value is the height and width of an image."""
    return isinstance(value, list) and len(value) == 2 and all(is_int(side, 1, MOST_CHANNELS) for side in value)


def resampled_positions(table: Tensor, old: Any, new: Any, patch: int, prefix: Any, where: Path) -> Tensor:
    """Return a table of positions, (1, prefix + N, D), for images of another size.

    Raises:
        FileError: patches that do not divide the image; a size that no machine like this one holds.
    """
    if any(n % patch for n in new):
        raise FileError(f"{where}: img_size: patches of {patch} pixels do not divide an image of {new[0]} x {new[1]}")
    grids = [(size[0] // patch, size[1] // patch) for size in (old, new)]
    if table.shape[1] != prefix + grids[0][0] * grids[0][1]:
        raise FileError(f"{where}: pos_embed: {table.shape[1]} positions do not fit an image of {old[0]} x {old[1]} pixels")
    refuse_beyond_memory(
        table.shape[2] * table.element_size() * grids[1][0] * grids[1][1], f"{where}: img_size: the table", FileError
    )
    return plain.resample_positions(table, grids[0], grids[1], prefix)

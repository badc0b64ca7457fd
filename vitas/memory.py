"""What no machine like this one can hold is refused before it is asked for."""

import importlib
import os
import sys
from math import prod

import torch

from vitas.errors import ChoiceError, VitasError


def machine_memory() -> int | None:
    """Return the bytes of memory that this machine has, or lets this process have; None where it does not say."""
    if sys.platform == "win32":
        return None
    resource = importlib.import_module("resource")  # which Windows does not have
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        there = 0
    return min((size for size in (allowed, there) if size > 0), default=None)


def refuse_beyond_memory(size: int, what: str, error: type[VitasError]) -> None:
    """Refuse what takes more bytes than there are: whoever asks torch for them may get them, and then be killed.

    Raises:
        VitasError: `error`, with both sizes.
    """
    there = machine_memory()
    if there is not None and size > there:
        raise error(f"{what} takes {_readable(size)}, and this machine has {_readable(there)} of memory")


def refuse_huge(shape: tuple[int, ...], what: str, device: torch.device | str | None = None) -> None:
    """Refuse to make a parameter that no machine like this one holds; on the meta device it takes nothing.

    Raises:
        ChoiceError: with its size.
    """
    if takes_memory(device):
        refuse_beyond_memory(prod(shape) * torch.get_default_dtype().itemsize, f"{what} of shape {shape}", ChoiceError)


def takes_memory(device: torch.device | str | None = None) -> bool:
    """Say whether what is made there, or by default, takes the memory of this machine."""
    return torch.empty(0, device=device).device.type == "cpu"


def _readable(size: int) -> str:
    return f"{size / 2**30:,.1f} GB" if size < 2**60 else "more than 2**60 bytes"

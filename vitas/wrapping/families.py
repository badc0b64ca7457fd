"""The families of timm that can be wrapped."""

from __future__ import annotations

from typing import Any

from vitas.errors import VitasError


def timm_families() -> tuple[Any, ...]:
    """Return the files that make the families of timm's models searchable."""
    try:
        from vitas.wrapping import timm_twins, timm_vit
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "timm":
            raise
        raise VitasError('timm is not installed: pip install "vitas[timm]"') from None
    return timm_vit, timm_twins

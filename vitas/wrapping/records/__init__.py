"""Records of the classes of libraries, one line each; see vitas/wrapping/record.py for how they read.

timm.py          classes of timm
"""

from vitas.wrapping.records.timm import TIMM

RECORDS: dict[str, str] = {**TIMM}
"""The record of each class, by its full name."""

__all__ = ["RECORDS"]

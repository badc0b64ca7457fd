"""Records of the classes of libraries, one line each; see vitas/wrapping/record.py for how they read.

timm.py          classes of timm
transformers.py  classes of Hugging Face's transformers
"""

from vitas.wrapping.records.timm import TIMM
from vitas.wrapping.records.transformers import TRANSFORMERS

RECORDS: dict[str, str] = {**TIMM, **TRANSFORMERS}
"""The record of each class, by its full name."""

__all__ = ["RECORDS"]

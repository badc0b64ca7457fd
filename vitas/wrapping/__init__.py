"""A timm model that you already have, made searchable.

    wrap.py        wrap: from the model and its arguments to choices
    arguments.py   numbers and percentages of what a model has
    order.py       a permutation of channels that keeps the function
    timm_vit.py    timm's Vision Transformer with properties that read choices
    timm_twins.py  timm's Twins by the same classes
    families.py    which of the two a model belongs to
    report.py      what of an export timm's constructor can build: export_report
    register.py    exports under a name that timm.create_model knows

The files named after timm import timm, so they are imported when a model is wrapped. Imports export and what stands
before it.
"""

from vitas.wrapping.register import register
from vitas.wrapping.report import export_report
from vitas.wrapping.wrap import wrap

__all__ = [
    "export_report",
    "register",
    "wrap",
]

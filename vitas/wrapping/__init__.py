"""A timm model that you already have, made searchable.

    wrap.py        wrap: from the model and its arguments to choices
    arguments.py   numbers and percentages of what a model has
    order.py       a permutation of channels that keeps the function
    sizes.py       the sizes of a row of blocks, and the choices that take their place
    timm_layers.py layers of timm with properties that read choices
    timm_model.py  what searchable models of timm have in common
    timm_vit.py    timm's Vision Transformer
    timm_twins.py  timm's Twins
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

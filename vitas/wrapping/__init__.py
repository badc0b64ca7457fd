"""A model that you already have, made searchable: one line for each class says what follows what.

    record.py     the notation of these lines
    records/      the lines for classes of libraries
    narrow.py     a class narrowed by its record, and exports
    rows.py       blocks in a row of which the first run
    slots.py      the blocks themselves, and stochastic depth over them
    layers.py     layers whose library's code would not follow the choices, or read each weight apart
    attention.py  attention that its library ties to the width of the input
    counted.py    what every subnet costs, from one counted run
    plan.py       what each part of a model becomes, and what is refused
    constructor.py  what of a subnet timm's constructors can build
    origin.py     what an export was made of, in plain data
    model.py      whole models: their methods and features
    pretrained.py whole models of transformers: their configs
    order.py      a permutation of channels that keeps the function
    arguments.py  numbers and percentages of what a model has
    stages.py     where the blocks stand, and their choices
    wrap.py       wrap: from the model and its arguments to choices
    remake.py     from what an export was made of to the export
    check.py      whether records say the truth: check_records
    report.py     what of an export the library's constructor can build: export_report

No file imports timm before it is used. Imports measure and what stands before it.
"""

from vitas.wrapping.check import check_records
from vitas.wrapping.report import export_report
from vitas.wrapping.wrap import wrap

__all__ = [
    "check_records",
    "export_report",
    "wrap",
]

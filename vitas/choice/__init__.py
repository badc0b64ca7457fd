"""A dimension is an object: what can be chosen, and which channels a choice of width uses.

    dim.py        Choice and Dim, and the products of them; with nn/linear.py it explains the library
    active.py     what of a choice is active, and who follows it
    depth.py      a depth, which knows in which order blocks leave
    arguments.py  plain numbers and choices as arguments of layers
    values.py     the legal values of a choice and their probabilities; which are left
    products.py   the channel counts that a product of choices can have
    runs.py       the runs of widths whose set has changed
    take.py       the active part of a layer's shared weights
    slicing.py    how a run of channels is cut out of a tensor and its gradient put back
    marks.py      what is active, as eager code, compiled code and checkpoints can each read it

What other rooms need of what is active: `choice.active`, `choice.index`, `dim.run` and `dim.side`, each of which can be set
but for the run; `state()` and `restore(state)`; `follow(follower)`. A *run* is here a stretch of channels on the ring. What
a choice can be changes by `leave`, `add` and `adopt` alone, which `vitas.space.change` calls.

Knows no module and no model. Imports errors, checks and sharing only.
"""

from vitas.choice.arguments import as_choice, as_dim
from vitas.choice.depth import Depth
from vitas.choice.dim import SIDES, Choice, Dim
from vitas.choice.marks import Mark, compiling, mark_sizes, noted, outside_graphs, restored
from vitas.choice.take import take
from vitas.choice.values import conditioned

__all__ = [
    "SIDES",
    "Choice",
    "Depth",
    "Dim",
    "Mark",
    "as_choice",
    "as_dim",
    "compiling",
    "conditioned",
    "mark_sizes",
    "noted",
    "outside_graphs",
    "restored",
    "take",
]

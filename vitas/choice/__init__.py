"""A dimension is an object: what can be chosen, and which channels a choice of width uses.

    dim.py       Choice and Dim, and the products of them; with nn/linear.py it explains the library
    values.py    the legal values of a choice and their probabilities
    take.py      the active part of a layer's shared weights
    slicing.py   how a run of channels is cut out of a tensor and its gradient put back: all autograd code

Knows no module and no model. Imports errors, checks and sharing only.
"""

from vitas.choice.dim import SIDES, Choice, Dim, as_choice, as_dim
from vitas.choice.slicing import mark, mark_sizes, marked, noted, outside_graphs, restored
from vitas.choice.take import take

__all__ = [
    "SIDES",
    "Choice",
    "Dim",
    "as_choice",
    "as_dim",
    "mark",
    "mark_sizes",
    "marked",
    "noted",
    "outside_graphs",
    "restored",
    "take",
]

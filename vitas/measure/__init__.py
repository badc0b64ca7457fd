"""How good a subnet is, how long it takes, and what another library counts.

    score.py           a mean over images that are read once
    accuracy.py        the fraction of images that it classifies right
    cross_entropy.py   the loss of its outputs
    zero_cost.py       an indicator that needs no training
    runners.py         what times are measured in: torch, torch.compile, ONNX Runtime, a function of one's own
    latency.py         the time of a network, measured
    parts.py           the parts of a model that are timed one by one
    latency_table.py   the time of any subnet, predicted from those of its parts
    difference.py      how far two tensors are apart
    second_opinion.py  its multiply-adds, counted by fvcore

Functions of a model that a search, or anyone, calls. Imports superformer and what stands before it.
"""

from vitas.measure.accuracy import accuracy
from vitas.measure.cross_entropy import cross_entropy
from vitas.measure.difference import relative_error
from vitas.measure.latency import Latency, measure_latency
from vitas.measure.latency_table import LatencyTable, latency_table
from vitas.measure.second_opinion import flop_analysis
from vitas.measure.zero_cost import zero_cost

__all__ = [
    "Latency",
    "LatencyTable",
    "accuracy",
    "cross_entropy",
    "flop_analysis",
    "latency_table",
    "measure_latency",
    "relative_error",
    "zero_cost",
]

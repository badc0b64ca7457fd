"""Subnets drawn at random, also inside a budget; exact, and counted.

    subnet.py       what users call: sample_subnet, use_subnet, count_subnets
    sampler.py      SubnetSampler: a subnet for each step, as a function of seed and step
    budget.py       budgets as people type them
    decisions.py    the decisions that a space consists of, and tables over them
    chain.py        the decisions in order, as a layered graph; begins with a worked example
    lattice.py      what the decisions so far can cost
    bins.py         bounds on the probability of ending inside windows of cost
    conditional.py  draws from the prior inside windows of cost
    counting.py     how many subnets lie inside
    outermost.py    the least and the greatest cost inside a window
    nearest.py      what can be reached beside an empty window

Letters: M measures (FLOPs, parameters, nanoseconds), N nodes before a step of the chain, V values that it decides, n draws.

Asks a model for its space and its cost, and knows no layer. Imports cost and what stands before it.
"""

from vitas.sample.budget import MEASURES, Window, window_of
from vitas.sample.chain import Chain
from vitas.sample.lattice import extremes
from vitas.sample.sampler import SubnetSampler
from vitas.sample.subnet import activate_subnet, active_subnet, count_subnets, sample_subnet, use_subnet

__all__ = [
    "MEASURES",
    "Chain",
    "SubnetSampler",
    "Window",
    "activate_subnet",
    "active_subnet",
    "count_subnets",
    "extremes",
    "sample_subnet",
    "use_subnet",
    "window_of",
]

"""Subnets drawn at random, also inside a budget; exact, and counted.

    subnet.py       what users call: sample_subnet, use_subnet, count_subnets
    sampler.py      SubnetSampler: a subnet for each step, as a function of seed and step
    budget.py       budgets as people type them
    chain.py        a space as a chain of small decisions
    rows.py         what the decisions so far can cost
    conditional.py  draws from the prior inside windows of cost
    counting.py     how many subnets lie inside
    outermost.py    the least and the greatest cost inside a window
    nearest.py      what can be reached beside an empty window

Knows costs and spaces, no layer and no model. Imports cost and what stands before it.
"""

from vitas.sample.budget import Window, window_of
from vitas.sample.chain import Chain
from vitas.sample.rows import extremes
from vitas.sample.sampler import SubnetSampler
from vitas.sample.subnet import activate_subnet, active_subnet, count_subnets, sample_subnet, use_subnet

__all__ = [
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

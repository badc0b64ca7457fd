"""What a subnet costs: an algebra of small integer tables over choices.

    expression.py  Cost: sums and products of ints, Choices and tables
    stated.py      what a model and its parts say that they cost
    count.py       the cost of one subnet, in parts: count_flops, count_params
    learned.py     the cost of a model that states none, from a few counted passes
    watch.py       do costs that were set up once still hold
    model.py       the costs of a million subnets: cost_model

Layers state their cost in these words, so no layer is imported here. Imports space, plain and what stands before them.
"""

from vitas.cost.count import FlopCount, count_flops, count_params, counted
from vitas.cost.expression import Cost, Map, as_map, product_of
from vitas.cost.learned import learned_cost
from vitas.cost.model import CostModel, cost_model
from vitas.cost.stated import cost_of, params_of, stated_cost, stated_params

__all__ = [
    "Cost",
    "CostModel",
    "FlopCount",
    "Map",
    "as_map",
    "cost_model",
    "cost_of",
    "count_flops",
    "count_params",
    "counted",
    "learned_cost",
    "params_of",
    "product_of",
    "stated_cost",
    "stated_params",
]

"""A search space as a chain of decisions, each charged where the last decision that it depends on is made.

The prior and the cost of a subnet are products and sums of tables over a few decisions. Making the decisions in order, and
remembering only those that later tables need, turns the space into a layered graph: what is remembered before a step is a
*node*, and each value that the step can decide leads to a node of the next step, with a weight (the prior) and a cost. A
path through the graph is a subnet. Global choices, blocks and stages need no names here: they appear by themselves.

Example: two linear layers share their input, `w` channels wide (2, 3 or 5), and have `a` and `b` outputs (1 or 4 each), so
that a subnet costs w * a + w * b. The table w * a is charged when w is settled, and a is forgotten; w * b when b is::

    step 1: a         step 2: w                      step 3: b                     end
    1 node            2 nodes, a = 1, 4              3 nodes, w = 2, 3, 5          1 node
    weight 1/2        weight 1/3                     weight 1/2
    cost 0            cost 2,  3,  5  after a = 1    cost 2,  8  after w = 2
                           8, 12, 20  after a = 4         3, 12  after w = 3
                                                          5, 20  after w = 5

Every draw and count walks this graph. The costs so far before step 3 are 2 and 8 at w = 2, 3 and 12 at w = 3, 5 and 20 at
w = 5 (lattice.py). How likely is it to end inside a window from 6 to 15? Going back from the end (bins.py)::

    before step 3     w = 2: 1/2 at cost 2, 1/2 at 8      w = 3: 1 at 3, 1/2 at 12      w = 5: 1/2 at 5, 0 at 20
    before step 2     a = 1: 2/3                          a = 4: 1/3
    before step 1     1/2: half of the prior lies inside

Going forward, a value is drawn in proportion to its weight times the probability that follows (conditional.py): a = 1 or 4
as 2 : 1, then after a = 1 the width w = 2, 3 or 5 as 1 : 2 : 1, and so on: only subnets inside arrive, each as often as the
others. With weights of 1 the same sums count them, 6 of 12 (counting.py).

Source: variable elimination on factor graphs (Dechter 1999, Bucket elimination); its use on search spaces is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitas.cost import Cost
from vitas.errors import VitasError
from vitas.sample.decisions import Decided, Decision, Decisions, Floats, Ints, Table, in_good_order
from vitas.space import SearchSpace


@dataclass(frozen=True)
class Step:
    """One decision, for every node.

    Attributes:
        entry: Number of the choice that it decides.
        adds: Whether the value decided is added to the choice's number (a slot more) or is the number.
        weight: Prior (or count) of each value, (N, V).
        cost: What each value adds to every measure, (M, N, V).
        target: The node of the next step that each value leads to, (N, V).
        nodes_after: How many nodes the next step has.
    """

    entry: int
    adds: bool
    weight: Floats
    cost: Ints
    target: Ints
    nodes_after: int


class TooManyNodes(VitasError):
    """So many choices depend on one another that no chain of small decisions exists."""


class Chain:
    """The decisions of a space, with the costs of some measures.

    Args:
        space: The search space.
        costs: One expression a measure.
        counting: Whether every live value weighs 1, so that weights count subnets, or its prior.
        most: How many nodes a step may have.

    Attributes:
        steps: The decisions in order.
        start: What every subnet costs, (M,).
        free: Choices on which neither a cost nor another choice depends; they are not among the steps.
        times: In how many ways (counting) the free choices that are always live can be made.

    Raises:
        TooManyNodes: more nodes than that.
    """

    def __init__(self, space: SearchSpace, costs: Sequence[Cost], *, counting: bool = False, most: int = 10**5) -> None:
        decisions = Decisions(space)
        amounts = [decisions.costs(cost) for cost in costs]
        self.start = np.array([int(tables.pop((), 0)) for tables in amounts], dtype=np.int64)
        self._priced = [[Table(*item) for item in tables.items()] for tables in amounts]
        deciding = {decision.entry for tables in self._priced for table in tables for decision in table.decisions}
        self.free = [k for k in range(len(space)) if k not in deciding and k not in decisions.gating]
        self._counting, self._most = counting, most
        self._weigh(decisions)

    def restricted(self, space: SearchSpace) -> Chain:
        """Return the chain of the same space in which other values are left; the costs are not worked out again."""
        if space is self.space:
            return self
        part = copy(self)
        part._weigh(Decisions(space))
        return part

    def _weigh(self, decisions: Decisions) -> None:
        """Put the decisions in order, with the prior of the values that are left."""
        self.space = space = decisions.space
        self.times = 1
        weights: list[Table] = []
        for k in range(len(space)):
            if k not in self.free:
                weights += decisions.weights(k, self._counting)
                continue
            ways = decisions.ways(k, self._counting)  # drawn apart; only how often it can be drawn matters here
            if not ways.decisions:
                self.times *= round(float(ways.numbers))
            elif not np.allclose(ways.numbers, 1.0, rtol=0, atol=1e-12):
                weights.append(ways)
        asked = [decision for k in range(len(space)) if k not in self.free for decision in decisions.of(k)]
        met = [table.decisions for tables in (weights, *self._priced) for table in tables]
        self.steps = _steps(in_good_order(asked, met), weights, self._priced, self._most)


def _steps(order: Sequence[Decision], weights: Sequence[Table], costs: Sequence[Sequence[Table]], most: int) -> list[Step]:
    """Return a step for each decision: every table is charged when the last of its decisions is made."""
    time = {decision: t for t, decision in enumerate(order)}
    forgotten = dict(time)  # the step after which a decision is needed no more
    charged: list[list[tuple[int | None, Table]]] = [[] for _ in order]  # measure, None: the prior
    for measure, tables in [(None, weights), *enumerate(costs)]:
        for table in tables:
            last = max(time[decision] for decision in table.decisions)
            charged[last].append((measure, table))
            for decision in table.decisions:
                forgotten[decision] = max(forgotten[decision], last)
    steps = []
    before: Decided = ()
    for t, decision in enumerate(order):
        if math.prod(kept.size for kept in before) > most:
            raise TooManyNodes(f"more than {most:,} combinations of choices interact")
        here = (*before, decision)
        after = tuple(kept for kept in here if forgotten[kept] > t)
        steps.append(_step(here, after, charged[t], len(costs)))
        before = after
    return steps


def _step(here: Decided, after: Decided, charged: Sequence[tuple[int | None, Table]], measures: int) -> Step:
    """Return the step that makes the last decision of `here`, remembers the others, and keeps `after`."""
    shape = [decision.size for decision in here]  # N as an axis for each remembered decision, then V
    axis_of = {decision: axis for axis, decision in enumerate(here)}
    weight: NDArray[Any] = np.ones(shape)
    cost = np.zeros([measures, *shape], dtype=np.int64)
    for measure, table in charged:
        if measure is None:
            weight = weight * _spread(table, axis_of)
        else:
            cost[measure] += _spread(table, axis_of)
    answers = np.indices(shape)  # (decisions, N, V)
    target: Ints = np.zeros(shape, dtype=np.int64)
    for kept in after:
        target[...] = target * kept.size + answers[axis_of[kept]]
    nodes, values = math.prod(shape[:-1]), shape[-1]
    return Step(
        entry=here[-1].entry,
        adds=here[-1].threshold > 0,
        weight=weight.reshape(nodes, values),
        cost=cost.reshape(measures, nodes, values),
        target=target.reshape(nodes, values),
        nodes_after=math.prod(decision.size for decision in after),
    )


def _spread(table: Table, axis_of: Mapping[Decision, int]) -> NDArray[Any]:
    """Return a table with one axis for each remembered decision, of length 1 where it does not depend on it."""
    order = sorted(range(len(table.decisions)), key=lambda axis: axis_of[table.decisions[axis]])
    shape = [1] * len(axis_of)
    for decision in table.decisions:
        shape[axis_of[decision]] = decision.size
    return table.numbers.transpose(order).reshape(shape)

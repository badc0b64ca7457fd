"""The worked example of vitas/sample/chain.py and docs/budgets.md, number by number, and depths slot by slot."""

import itertools

import numpy as np
import pytest
from torch import nn

from vitas import Choice, Dim, search_space
from vitas.cost.expression import Cost
from vitas.nn.linear import CyclicLinear
from vitas.sample import nearest
from vitas.sample.budget import Window
from vitas.sample.chain import Chain
from vitas.sample.conditional import Conditional
from vitas.sample.counting import count_inside
from vitas.sample.decisions import Decisions
from vitas.sample.lattice import narrowed, reach
from vitas.sample.nearest import Beside, beside, explain_empty, is_empty
from vitas.sample.outermost import TooManyCosts
from vitas.space import Gate

WINDOW = Window(6, 15)


@pytest.fixture(scope="module")
def two_layers():
    """Return the space of two linear layers that share their input, and what a subnet costs."""
    w, a, b = Dim([2, 3, 5], name="w"), Dim([1, 4], name="a"), Dim([1, 4], name="b")
    model = nn.ModuleList([CyclicLinear(w, a), CyclicLinear(w, b)])
    return search_space(model), sum((layer.cost(Cost(1)) for layer in model), Cost())


def test_steps_of_the_example(two_layers):
    space, cost = two_layers
    chain = Chain(space, [cost])
    assert [list(space.choices)[step.entry] for step in chain.steps] == ["a", "w", "b"]
    for step, n, values in zip(chain.steps, (1, 2, 3), (2, 3, 2), strict=True):
        np.testing.assert_allclose(step.weight, np.full((n, values), 1 / values))
    a, w, b = chain.steps
    assert a.cost.tolist() == [[[0, 0]]]
    assert w.cost.tolist() == [[[2, 3, 5], [8, 12, 20]]]
    assert b.cost.tolist() == [[[2, 8], [3, 12], [5, 20]]]
    assert [step.target.tolist() for step in chain.steps] == [[[0, 1]], [[0, 1, 2]] * 2, [[0, 0]] * 3]
    assert [step.nodes_after for step in chain.steps] == [2, 3, 1]


def test_costs_so_far_of_the_example(two_layers):
    space, cost = two_layers
    before = reach(Chain(space, [cost]))[2]
    lattices = zip(before.low[0].tolist(), before.high[0].tolist(), before.gcd[0].tolist(), strict=True)
    assert list(lattices) == [(2, 8, 6), (3, 12, 9), (5, 20, 15)]


def test_probabilities_of_the_example(two_layers):
    space, cost = two_layers
    conditional = Conditional(Chain(space, [cost]), [WINDOW])

    def probabilities(t):
        bins, scale = conditional.bins[t], np.prod(conditional.scales[t:])
        return [bound * scale for node in range(bins.low.shape[1]) for bound in bins.block(node)]

    np.testing.assert_allclose(probabilities(2), [1 / 2, 1 / 2, 1, 1 / 2, 1 / 2])  # the bin of 20 is cut off
    np.testing.assert_allclose(probabilities(1), [2 / 3, 1 / 3])
    np.testing.assert_allclose(probabilities(0), [1 / 2])
    assert conditional.bound == pytest.approx(1 / 2)


def test_draws_and_count_of_the_example(two_layers):
    space, cost = two_layers
    inside = [
        (w, a, b) for w, a, b in itertools.product([2, 3, 5], [1, 4], [1, 4]) if WINDOW.low <= w * (a + b) <= WINDOW.high
    ]
    assert len(inside) == count_inside(Chain(space, [cost], counting=True), [WINDOW]) == 6
    assert [sum(a == value for _, a, _ in inside) for value in (1, 4)] == [4, 2]
    assert [sum((w, a) == (value, 1) for w, a, _ in inside) for value in (2, 3, 5)] == [1, 2, 1]
    codes, costs = Conditional(Chain(space, [cost]), [WINDOW]).propose(12_000, np.random.default_rng(0))
    assert len(codes) == 12_000  # every bin is one cost, so nothing is rejected
    assert ((costs >= WINDOW.low) & (costs <= WINDOW.high)).all()
    drawn, times = np.unique(codes, axis=0, return_counts=True)
    expected = [space.encode({"w": w, "a": a, "b": b}).tolist() for w, a, b in inside]
    assert drawn.tolist() == sorted(expected)
    assert times.tolist() == pytest.approx([2000] * 6, abs=200)


def test_what_cannot_reach_the_window_is_cut_off(two_layers):
    space, cost = two_layers
    lattices = narrowed(Chain(space, [cost]), [Window(36, 40)])
    assert lattices[2].alive.tolist() == [False, False, True]
    assert (lattices[2].low[0, 2], lattices[2].high[0, 2]) == (20, 20)


def test_what_lies_beside_an_empty_window(two_layers, monkeypatch):
    """The costs are 4, 10, 16 at w = 2, 6, 15, 24 at w = 3 and 10, 25, 40 at w = 5."""
    space, cost = two_layers
    chain = Chain(space, [cost])
    assert beside(chain, [Window(11, 14)], 0) == Beside(4, 40, below=10, above=15, exact=True)
    assert beside(chain, [Window(0, 3)], 0) == Beside(4, 40, below=None, above=4, exact=True)
    assert beside(chain, [Window(41, 99)], 0) == Beside(4, 40, below=40, above=None, exact=True)
    assert explain_empty(chain, {"flops": Window(11, 14)}) == (
        "no subnet has flops from 11 to 14: the subnets reach from 4 to 40, nearest: 10 below and 15 above"
    )

    def too_many(*arguments):
        raise TooManyCosts("too many")

    monkeypatch.setattr(nearest, "outermost", too_many)
    assert beside(chain, [Window(11, 14)], 0) == Beside(4, 40, below=10, above=15, exact=False)
    assert "4 to 40, near: 10 below" in explain_empty(chain, {"flops": Window(11, 14)})
    assert not is_empty(chain, [Window(11, 14)])  # it cannot be told


class Slots(nn.Module):
    """Depth 1, 2 or 3: the second slot has a choice of its own."""

    def __init__(self):
        super().__init__()
        self.depth = Choice([1, 2, 3], name="depth")
        self.second = nn.Module()
        self.second.width = Choice([1, 2], name="width")

    def gate_of(self, name):
        return Gate(self.depth, frozenset([1, 2])) if name == "second" else None


def test_a_depth_is_decided_slot_by_slot():
    """As in the docstring of decisions.py: 5, 8, 11 for depths 1, 2, 3 is 5 + 3 [at least 2] + 3 [at least 3]."""
    model = Slots()
    space = search_space(model)
    decisions = Decisions(space)
    depth = list(space.choices).index("depth")
    slots = decisions.of(depth)
    assert decisions.slotted == {depth}
    assert [(slot.threshold, slot.size) for slot in slots] == [(1, 2), (2, 2)]
    tables = decisions.costs(Cost.table(model.depth, [5, 8, 11]))
    assert {key: table.tolist() for key, table in tables.items()} == {(): 5, (slots[0],): [0, 3], (slots[1],): [0, 3]}
    chain = Chain(space, [Cost.table(model.depth, [5, 8, 11])], counting=True)
    assert [int(count_inside(chain, [Window(cost, cost)])) for cost in (5, 8, 11)] == [1, 2, 2]

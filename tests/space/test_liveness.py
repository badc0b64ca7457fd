import doctest
from itertools import product

import numpy as np
import pytest

from vitas.space import liveness as module
from vitas.space.liveness import Liveness

ALWAYS = ((),)


def test_the_example_in_its_docstring():
    assert doctest.testmod(module).failed == 0


# A depth of 1..3; a width a block; one choice that two blocks share, and one inside a private copy of the second block.
SHARED = (((0, frozenset({1, 2})),), ((0, frozenset({2})), (3, frozenset({0}))))
PRIVATE = (((0, frozenset({1, 2})), (1, frozenset({1}))),)
CASES = {
    "none": ([2, 3], [ALWAYS, ALWAYS]),
    "depth": ([3, 2, 2, 2], [ALWAYS, ALWAYS, (((0, frozenset({1, 2})),),), (((0, frozenset({2})),),)]),
    "shared": ([3, 2, 2, 2, 3, 2], [ALWAYS, ALWAYS, ALWAYS, ALWAYS, SHARED, PRIVATE]),
    "never": ([2, 5], [ALWAYS, ()]),
    "in a row": ([2, 2, 2], [ALWAYS, (((0, frozenset({1})),),), (((1, frozenset({1})),),)]),
}


def live_by_definition(conditions, numbers):
    live = []
    for condition in conditions:
        live.append(any(all(live[k] and numbers[k] in allowed for k, allowed in gates) for gates in condition))
    return live


@pytest.mark.parametrize("case", CASES)
def test_one_and_many_are_live_by_definition_and_all_networks_are_counted(case):
    sizes, conditions = CASES[case]
    liveness = Liveness(sizes, conditions)
    codes = np.array(list(product(*map(range, sizes))))
    expected = np.array([live_by_definition(conditions, code) for code in codes])
    assert np.array_equal(liveness.of(codes), expected)
    filled = [liveness.fill(code.__getitem__) for code in codes.tolist()]
    assert np.array_equal(filled, np.where(expected, codes, -1))
    assert liveness.count([range(size) for size in sizes]) == len(np.unique(filled, axis=0))
    rng = np.random.default_rng(0)
    for _ in range(5):
        left = [sorted(rng.permutation(size)[: rng.integers(1, size + 1)].tolist()) for size in sizes]
        inside = [code for code in filled if all(k in (-1, *own) for k, own in zip(code, left, strict=True))]
        assert liveness.count(left) == len(np.unique(inside, axis=0))


def test_only_live_choices_are_asked_for_in_order():
    asked = []
    sizes, conditions = CASES["depth"]
    assert Liveness(sizes, conditions).fill(lambda k: asked.append(k) or 0) == [0, 0, -1, -1]
    assert asked == [0, 1]

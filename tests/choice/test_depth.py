"""A depth knows which blocks run: the order in which slots leave."""

import copy
import itertools
import pickle

import pytest

from vitas.choice import Depth, Mark
from vitas.errors import ChoiceError


def running(depth):
    return [slot for slot in range(depth.largest) if depth.runs(slot)]


def test_the_last_blocks_leave_first():
    depth = Depth([2, 3, 4])
    assert depth.from_the_end
    for active in depth.values:
        depth.active = active
        assert running(depth) == list(range(active))


@pytest.mark.parametrize("leave", list(itertools.permutations(range(4), 2)))
def test_blocks_leave_in_the_order_that_is_given_and_then_from_the_end(leave):
    depth = Depth([1, 2, 3, 4], leave=leave)
    others = [slot for slot in (3, 2, 1, 0) if slot not in leave]
    for active in depth.values:
        depth.active = active
        left = [*leave, *others][: 4 - active]
        assert running(depth) == [slot for slot in range(4) if slot not in left]
        for slot in running(depth):
            assert depth.earlier(Mark(slot)) == running(depth).index(slot)
    assert depth.from_the_end == (leave == (3, 2))


def test_copies_and_pickles_keep_the_order():
    depth = Depth([2, 3, 4], leave=[1])
    depth.active = 3
    for twin in (copy.deepcopy(depth), pickle.loads(pickle.dumps(depth))):
        assert running(twin) == [0, 2, 3]


@pytest.mark.parametrize("leave", [itertools.count(), [4], [-1], [1, 1], [1.0], [True], "1", 1, None, ["1"]])
def test_what_names_no_slots_is_refused(leave):
    with pytest.raises(ChoiceError, match=r"leave: deep counts blocks 0\.\.3; expected different ones, got"):
        Depth([2, 4], leave=leave, name="deep")

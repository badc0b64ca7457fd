"""The public state of a choice: index, state and restore, follow, owner."""

import copy
import gc
import pickle

import numpy as np
import pytest

from vitas import Choice, ChoiceError, Dim
from vitas.choice import Mark


class Follower:
    def __init__(self, choice):
        self.choice, self.seen = choice, []
        choice.follow(self)

    def refresh(self):
        self.seen.append(self.choice.active)


@pytest.mark.parametrize("kind", [Choice, Dim])
def test_the_index_is_the_position_of_the_active_value(kind):
    choice = kind([2, 4, 7])
    follower, product = Follower(choice), choice * 3
    for index in (0, 2, np.int64(1)):
        choice.index = index
        assert (choice.index, choice.active, product.active) == (index, choice.values[index], 3 * choice.values[index])
    assert follower.seen == [2, 7, 4]


@pytest.mark.parametrize("index", [-1, 3, 1.0, True, "1", None])
def test_an_index_that_is_no_position_is_refused(index):
    choice = Choice([2, 4, 7], name="width")
    with pytest.raises(ChoiceError, match=r"width: expected an index in 0\.\.2"):
        choice.index = index
    assert choice.index == 2


def test_a_product_follows_and_is_not_set():
    product = Dim([2, 4], name="width") * 3
    with pytest.raises(ChoiceError, match=r"width \* 3 follows its factors; set width instead"):
        product.index = 0
    assert product.index == 1


def test_a_state_is_restored_side_included():
    dim = Dim([2, 4, 7], sharing="bilateral")
    product = dim * 2
    dim.active, dim.side = 4, "right"
    state, run, whole = dim.state(), dim.run, product.run
    dim.active, dim.side = 2, "left"
    assert dim.run != run
    dim.restore(state)
    assert (dim.active, dim.side, dim.run, product.run) == (4, "right", run, whole)


def test_a_follower_that_is_gone_is_forgotten():
    choice = Choice([1, 2])
    seen = Follower(choice).seen
    gc.collect()
    choice.active = 1
    assert seen == []


def test_an_owner_is_neither_kept_alive_nor_copied():
    choice, owner = Choice([1, 2]), Follower(Choice([1]))
    assert choice.owner is None
    choice.owner = owner
    assert choice.owner is owner
    assert copy.deepcopy(choice).owner is None
    assert copy.deepcopy(choice).origin == choice.origin
    del owner
    gc.collect()
    assert choice.owner is None


@pytest.mark.parametrize("travel", [copy.deepcopy, lambda mark: pickle.loads(pickle.dumps(mark))])
def test_a_mark_reads_the_same_after_travelling(travel):
    for mark in (Mark(3, 0), Mark(0.5, fixed=True)):
        copied = travel(mark)
        assert copied.numbers == mark.numbers
        assert (copied.tensor is None) == (mark.tensor is None)
        assert [copied.read(k) for k in range(len(mark.numbers))] == list(mark.numbers)

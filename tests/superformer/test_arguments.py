"""Arguments of superformers, before anything is built of them."""

import itertools

import numpy as np
import pytest

from tests.superformer import test_deit, test_twins
from vitas import ChoiceError, search_space
from vitas.checks import MOST_VALUES, check_flags, check_numbers
from vitas.superformer.arguments import MOST_BLOCKS, depths_of, reusable


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (3, (3, 3, 1)),
        ([2], (2, 2, 1)),
        (range(1, 4), (1, 3, 1)),
        ([6, 2, 4], (2, 6, 2)),
        (iter([4, 7]), (4, 7, 3)),
        (range(1, MOST_BLOCKS + 1), (1, MOST_BLOCKS, 1)),
    ],
)
def test_depths_are_the_smallest_the_largest_and_the_step(depth, expected):
    assert depths_of(depth) == expected


@pytest.mark.parametrize("depth", [MOST_BLOCKS + 1, [1, MOST_BLOCKS + 1]])
def test_more_blocks_than_networks_have_are_refused(depth):
    with pytest.raises(ChoiceError, match=f"depth: expected at most {MOST_BLOCKS} blocks, got {MOST_BLOCKS + 1}"):
        depths_of(depth)


@pytest.mark.parametrize("name", ["embed_dim", "mlp_dim", "num_heads", "mlp_ratio", "patch_size"])
def test_text_is_no_size(name):
    with pytest.raises(ChoiceError, match=f"{name}: expected (an int|a number).*, got '64'"):
        test_deit.small(**{"mlp_dim": None, name: "64"})


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (test_deit.small, {"num_heads": [2, 4], "qkv_dim": [8, 12], "mlp_dim": [4, 6]}),
        (test_deit.small, {"mlp_dim": None, "mlp_ratio": [1, 2]}),
        (test_twins.small, {"num_heads": [[1, 2], [2, 4]], "qkv_dims": [[4, 8], [8, 12]], "mlp_dims": [[3, 6], [4, 8]]}),
    ],
)
def test_an_iterator_serves_every_block(build, options):
    def once(values):
        if isinstance(values, list):
            return [iter(each) for each in values] if isinstance(values[0], list) else iter(values)
        return values

    lists, iterators = build(**options), build(**{name: once(values) for name, values in options.items()})
    assert search_space(iterators).description() == search_space(lists).description()


def test_one_value_and_text_stay_as_they_are_and_an_endless_iterator_ends():
    assert reusable(2) == 2
    assert reusable("25%") == "25%"
    assert len(reusable(itertools.count())) == MOST_VALUES + 1  # one more than a choice takes, so that it is refused


def test_numbers_that_float32_holds_are_taken_and_others_refused():
    check_numbers(init_values=-0.5, norm_eps=1e-6, final_norm_eps=None)
    for number in (1e31, -1e31):
        with pytest.raises(ChoiceError, match="init_values: expected a number that float32 holds"):
            check_numbers(norm_eps=1e-6, init_values=number)


def test_flags_are_true_or_false_of_python_or_numpy():
    check_flags(shift=True, qk_norm=np.False_)
    for flag in ("no", 1, None):
        with pytest.raises(ChoiceError, match="shift: expected True or False, got "):
            check_flags(qk_norm=False, shift=flag)

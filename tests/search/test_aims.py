"""Objectives and limits: what is read out of scores."""

import math

import numpy as np
import pytest
import torch

from vitas.errors import SearchError
from vitas.search.aims import Aims


@pytest.fixture
def aims():
    return Aims({"accuracy": "max", "flops": "min"}, {"ms": (2, 10), "flops": 50})


@pytest.mark.parametrize("value", [1.5, np.float32(1.5), np.float64(1.5), torch.tensor(1.5), torch.tensor(1.5).half()])
def test_numbers_of_all_kinds_are_scores(value):
    scores = Aims({"accuracy": "max"}, None).read(value, {})
    assert scores == {"accuracy": 1.5}


@pytest.mark.parametrize("value", [None, "0.9", True, np.True_, [1.0], torch.ones(2), 1j])
def test_other_things_are_no_scores(value):
    with pytest.raises(SearchError, match="accuracy: expected a number, got"):
        Aims({"accuracy": "max"}, None).read(value, {})


def test_a_number_is_what_the_model_does_not_count_be_it_an_objective_or_a_limited_value():
    counts = {"flops": 7, "params": 3}
    assert Aims({"flops": "min", "error": "min"}, None).read(0.25, counts) == {**counts, "error": 0.25}
    assert Aims({"flops": "min"}, {"accuracy": (0.8, None), "params": 5}).read(0.9, counts) == {**counts, "accuracy": 0.9}
    assert Aims({"flops": "min"}, None).read(0.25, {}) == {"flops": 0.25}  # a model that states no cost
    with pytest.raises(SearchError, match=r"evaluate: expected a mapping with the names of what it measured, .*, got 0\.5"):
        Aims({"flops": "min"}, {"params": 5}).read(0.5, counts)  # it would take the place of the count
    assert Aims({"flops": "min"}, None).read({"accuracy": 0.5}, counts) == {**counts, "accuracy": 0.5}
    with pytest.raises(SearchError, match=r"expected a mapping with a, b, got 0\.5"):
        Aims({"a": "max", "b": "min"}, None).read(0.5, {"flops": 7})


def test_what_evaluate_returns_rules_over_the_counts_and_all_of_it_is_kept(aims):
    scores = aims.read({"accuracy": 1, "ms": 4, "flops": 40.5, "beside": 3}, {"flops": 41, "params": 5})
    assert scores == {"accuracy": 1, "ms": 4, "flops": 40.5, "beside": 3, "params": 5}


def test_smaller_values_are_better(aims):
    assert aims.values({"accuracy": 0.75, "flops": 40}).tolist() == [-0.75, 40]


@pytest.mark.parametrize(
    ("ms", "flops", "excesses"),
    [
        (2, 50, [0, 0]),  # both bounds belong to the limit
        (10, 49, [0, -1]),
        (1, 50, [0.5, 0]),  # half of 2 is missing
        (12, 60, [0.2, 0.2]),
        (7, 0, [-3, -50]),
    ],
)
def test_limits_are_exceeded_relative_to_the_bound(aims, ms, flops, excesses):
    scores = {"ms": ms, "flops": flops}
    assert aims.excesses(scores) == pytest.approx(excesses)
    assert aims.violation(scores) == pytest.approx(sum(excess for excess in excesses if excess > 0))


def test_a_limit_without_bound_below_is_met_by_anything_small():
    assert Aims({"a": "max"}, {"ms": (None, 1)}).excesses({"ms": -1e308}) == [-1e300]  # databases know no infinity


def test_both_bounds_may_be_one_number_and_that_may_be_nought():
    aims = Aims({"a": "max"}, {"drop": (0, 0)})
    assert aims.excesses({"drop": 0}) == [0]
    assert aims.excesses({"drop": 2e-12}) == [2]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["accuracy", "ms"])
def test_scores_that_are_no_numbers_are_failures(aims, name, bad):
    scores = {"accuracy": 1.0, "ms": 3.0, "flops": 40.0, "beside": math.nan}
    assert aims.failure(scores) is None
    assert aims.failure({**scores, name: bad}) == f"evaluate returned {bad} for {name}"

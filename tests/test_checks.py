import math

import numpy as np
import pytest
import torch

from vitas import ChoiceError, VitasError
from vitas.checks import (
    ANY_INT,
    MOST_CHANNELS,
    as_count,
    as_flag,
    as_number,
    as_percentage,
    check_flags,
    check_numbers,
    check_rates,
    is_int,
    is_number,
)
from vitas.errors import SearchError


@pytest.mark.parametrize("three", [3, np.int64(3), np.uint8(3), np.int32(3)])
def test_ints_are_pythons_or_numpys(three):
    assert is_int(three)
    assert is_number(three)
    assert type(as_count(three, "n")) is int
    assert type(as_number(three, "n")) is int
    assert as_count(three, "n") == as_number(three, "n") == 3


@pytest.mark.parametrize("half", [0.5, np.float32(0.5), np.float16(0.5), np.float64(0.5)])
def test_floats_are_pythons_or_numpys(half):
    assert is_number(half)
    assert not is_int(half)
    assert type(as_number(half, "rate")) is float
    assert as_number(half, "rate") == 0.5


@pytest.mark.parametrize("wrong", [True, np.True_, "3", None, [3], torch.tensor(3), 3 + 0j])
def test_what_is_no_number_is_refused_with_the_name(wrong):
    assert not is_int(wrong)
    assert not is_number(wrong)
    with pytest.raises(ChoiceError, match=r"^step: expected a positive int, got "):
        as_count(wrong, "step")
    with pytest.raises(SearchError, match=r"^step: expected an int of at least 0, got "):
        as_count(wrong, "step", 0, error=SearchError)
    with pytest.raises(VitasError, match=r"^step: expected an int or a float, got "):
        as_number(wrong, "step")


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")])
def test_numbers_are_finite(wrong):
    assert not is_number(wrong)
    with pytest.raises(ChoiceError, match=r"^rate: expected an int or a float, got"):
        as_number(wrong, "rate")


def test_ints_have_bounds():
    assert is_int(2, 2, 2)
    assert not is_int(1, 2, 2)
    assert not is_int(3, 2, 2)
    assert as_count(MOST_CHANNELS, "n") == MOST_CHANNELS
    with pytest.raises(ChoiceError, match=f"^n: expected an int of at most {MOST_CHANNELS}, got {MOST_CHANNELS + 1}$"):
        as_count(MOST_CHANNELS + 1, "n")
    assert as_count(10**30, "seed", 0, ANY_INT) == 10**30
    with pytest.raises(ChoiceError, match=r"^n: expected a number that floats can hold, got"):
        as_number(10**400, "n")
    with pytest.raises(ChoiceError, match=r"^n: expected a positive int, got 0$"):
        as_count(0, "n")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("60%", 60.0),
        (" 12.5 % ", 12.5),
        ("0%", 0.0),
        ("100%", 100.0),
        ("101%", None),
        ("-1%", None),
        ("60", None),
        ("%", None),
        ("nan%", None),
        ("half", None),
        ("6e1%", 60.0),
        ("60%%", None),
        ("", None),
    ],
)
def test_percentages(text, share):
    assert as_percentage(text) == share


@pytest.mark.parametrize("flag", [True, False, np.True_, np.False_])
def test_flags(flag):
    assert as_flag(flag, "shift") is bool(flag)
    check_flags(shift=flag)


@pytest.mark.parametrize("wrong", ["no", 1, None, 0.0])
def test_words_and_numbers_are_no_flags(wrong):
    with pytest.raises(ChoiceError, match=r"^shift: expected True or False, got"):
        check_flags(shift=wrong)


def test_rates_and_optional_numbers():
    check_rates(drop=0, other=np.float32(0.9))
    check_numbers(eps=None, init_values=1e-6)
    for wrong in (1, -0.1, 1.5):
        with pytest.raises(ChoiceError, match=r"^drop: expected a number in \[0, 1\), got"):
            check_rates(drop=wrong)
    with pytest.raises(ChoiceError, match=r"^eps: expected a number that float32 holds, got 1e"):
        check_numbers(eps=1e31)

"""Hostile input, the short form of `python -m tests.fuzz`."""

import pytest
import torch
from hypothesis.errors import FlakyFailure

import vitas
from tests import fuzz
from vitas.errors import ChoiceError, brief, is_one_of, one_of, shown


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for work would count as time taken
    yield fuzz.Bench(tmp_path_factory.mktemp("fuzz"))
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "target",
    [*fuzz.CORE, *(pytest.param(target, marks=pytest.mark.extras) for target in fuzz.EXTRAS)],
    ids=lambda target: target.__name__,
)
def test_hostile_input_is_refused_clearly_and_soon(target, bench):
    fuzz.trial(target, bench, examples=15)()


class Clock:
    """Stands in for the module `time`; only what is said to take time does."""

    def __init__(self):
        self.now = 0.0

    def process_time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(fuzz, "time", Clock())
    return fuzz.time


def test_the_fuzz_itself_finds_what_it_looks_for(clock):
    with pytest.raises(AssertionError, match="message of 3000 characters"), fuzz.frugal():
        raise ChoiceError("x" * 3000)
    with pytest.raises(AssertionError, match=r"took \d+ MB"), fuzz.frugal():
        _ = b"x" * 2**29  # far above the limit: short of memory, the system takes pages of the libraries back meanwhile
    with pytest.raises(ZeroDivisionError), fuzz.frugal("what was given"):
        _ = 1 / 0
    with pytest.raises(fuzz.Slow, match=r"took 1\.0 s"), fuzz.frugal():
        clock.now += 1
    with fuzz.frugal():
        clock.now += 0.99


@pytest.mark.parametrize("draws_on", [False, True])
@pytest.mark.parametrize("slow_times", [1, 100])
def test_an_input_is_too_slow_if_it_is_so_whenever_it_is_tried(slow_times, draws_on, bench, clock, capsys):
    tries = iter(range(100))

    def target(bench, draw):
        draw(fuzz.words())
        with fuzz.frugal():
            clock.now += 1.5 if next(tries, 0) < slow_times else 0.0
        if draws_on:
            draw(fuzz.words())

    if slow_times == 1:
        fuzz.trial(target, bench, examples=3)()
        assert "target: slow once: took 1.5 s" in capsys.readouterr().out
    else:
        with pytest.raises(fuzz.Slow, match=r"took 1\.5 s"):
            fuzz.trial(target, bench, examples=3)()


def test_what_fails_once_only_is_a_failure_if_it_is_not_a_matter_of_time(bench):
    tries = iter([ValueError("once")])

    def target(bench, draw):
        draw(fuzz.words())
        with fuzz.frugal():
            if error := next(tries, None):
                raise error

    with pytest.raises(FlakyFailure):
        fuzz.trial(target, bench, examples=3)()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, "3"),
        ("text", "'text'"),
        (10**5000, "2**16609 or more"),
        (-(10**5000), "-2**16609 or more"),
        ("x" * 10**6, "'" + "x" * 27 + "..." + "x" * 28 + "'"),
        (list(range(10**5)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...]"),
        ((None, "60%"), "(None, '60%')"),
    ],
    ids=range(7),
)
def test_any_value_can_be_shown(value, expected):
    assert shown(value) == expected


def test_what_cannot_be_printed_is_shown_by_its_class():
    assert "Rude" in shown(fuzz.Rude())
    coloured = type("Coloured", (), {"__repr__": lambda self: "\x1b[31mred\nand é"})()
    assert shown(coloured) == r"\x1b[31mred and é"
    assert brief(ValueError("\x1b[2J gone\tnow")) == r"\x1b[2J gone now"
    assert "nearest: 16" in one_of([2, 16], 10**5000)
    assert not is_one_of(["a"], fuzz.np.array(["a"]))


def test_layer_scale_takes_a_whole_number():
    model = vitas.create_superformer("deit_micro", num_classes=3, img_size=8, init_values=1)
    assert model.blocks[0].ls1.gamma.dtype == torch.float32


def test_an_int_that_no_tensor_can_have_is_refused():
    with pytest.raises(ChoiceError, match="expected ints of at most 2147483648"):
        vitas.Choice([1, 2**63])

"""A limit on the time of one evaluation."""

import signal
import sys
import threading
import time

import pytest
import torch

import vitas
from vitas.errors import SearchError
from vitas.search.timeout import within

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGALRM")


def time_is_up():
    """Let the alarm ring at this very instant, however busy the machine is, and wait for it."""
    signal.raise_signal(signal.SIGALRM)
    time.sleep(600)


def test_what_takes_too_long_is_interrupted_also_where_exceptions_are_handled():
    ended = []

    def hang():
        try:
            while True:
                try:
                    time_is_up()
                except Exception:
                    ended.append("handled")
        finally:
            ended.append("interrupted")

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"longer than 0\.05 s"):
        within(0.05, lambda: time.sleep(600))
    with pytest.raises(TimeoutError, match="longer than 600 s"):
        within(600, hang)
    assert ended == ["interrupted"]
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_is_in_time_is_returned_and_its_own_errors_pass():
    assert within(600, lambda: 3) == within(None, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(600, lambda: 1 / 0)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_an_alarm_of_the_callers_own_still_rings():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(None))
    try:
        signal.setitimer(signal.ITIMER_REAL, 300)
        within(600, lambda: None)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 300
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not rung


def test_in_another_thread_it_runs_to_its_end_and_counts_as_late():
    caught = []

    def run():
        try:
            within(0.001, lambda: time.sleep(0.01))
        except TimeoutError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(caught) == 1


@pytest.mark.extras
def test_a_search_goes_on_after_an_evaluation_that_hangs():
    pytest.importorskip("optuna")
    torch.manual_seed(0)
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)
    before, calls = vitas.active_subnet(model), []

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        if len(calls) == 3:
            time_is_up()
        return float(len(calls))

    settings = {"population": 4, "generations": 2, "progress": False}
    result = vitas.evolve(model, evaluate, timeout=600, **settings)
    assert [evaluation.error is None for evaluation in result.history] == [True, True, False, True, True, True, True, True]
    assert "TimeoutError: it took longer than 600 s" in result.history[2].error
    assert vitas.active_subnet(model) == before
    for bad in (0, -1, float("nan"), "1 s"):
        with pytest.raises(SearchError, match="timeout"):
            vitas.evolve(model, evaluate, timeout=bad, **settings)
    with pytest.raises(SearchError, match="storage_timeout: expected seconds, at least 0, got -1"):
        vitas.evolve(model, evaluate, storage_timeout=-1, **settings)

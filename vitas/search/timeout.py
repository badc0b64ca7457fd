"""A limit on the time of one evaluation."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

R = TypeVar("R")


class _Alarm(BaseException):
    """Time is up; no Exception, for an evaluation may handle those."""


def within(seconds: float | None, step: Callable[[], R]) -> R:
    """Return what a step returns, if that takes no longer than `seconds`; None: however long it takes.

    In the main thread, where the system has SIGALRM, a step that takes longer is interrupted between two instructions of
    Python. Elsewhere, and inside a call that does not come back to Python, it is left to end.

    Raises:
        TimeoutError: it took longer.
    """
    if seconds is None:
        return step()
    started = time.monotonic()
    returned = _interrupted(seconds, step)
    if time.monotonic() - started > seconds:
        raise TimeoutError(_late(seconds))
    return returned


def _late(seconds: float) -> str:
    return f"it took longer than {seconds:g} s, its timeout"


if sys.platform == "win32":

    def _interrupted(seconds: float, step: Callable[[], R]) -> R:
        return step()

else:

    def _interrupted(seconds: float, step: Callable[[], R]) -> R:
        if threading.current_thread() is not threading.main_thread():
            return step()
        armed = [True]

        def ring(number: int, frame: FrameType | None) -> None:
            if armed:
                raise _Alarm

        started, (before, interval) = time.monotonic(), signal.getitimer(signal.ITIMER_REAL)
        handler = signal.signal(signal.SIGALRM, ring)
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds, seconds)  # again: a callback may have swallowed the first
                return step()
            finally:
                armed.clear()  # from here on it rings for nobody
        except _Alarm:
            raise TimeoutError(_late(seconds)) from None
        finally:
            armed.clear()
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            if before:  # an alarm of the caller's own
                signal.setitimer(signal.ITIMER_REAL, max(before - (time.monotonic() - started), 1e-3), interval)

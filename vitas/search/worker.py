"""One of the processes that work on a search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from torch import nn

from vitas.errors import FileError, SearchError, brief
from vitas.sample import MEASURES
from vitas.search.aims import Aims, checked_number
from vitas.search.archive import Archive
from vitas.search.genetic import Codes
from vitas.search.ledger import Claim, Ledger
from vitas.search.progress import ProgressBar
from vitas.search.result import Evaluation
from vitas.search.storage import sound
from vitas.search.timeout import within
from vitas.space import Subnet

Evaluate = Callable[[nn.Module], float | Mapping[str, float]]


class _Job(NamedTuple):
    """A subnet that this worker has claimed."""

    trial_id: int
    subnet: Subnet
    counts: Mapping[str, float]


def _described(error: Exception | str | None) -> str:
    return f"{type(error).__name__}: {brief(error, 1500)}" if isinstance(error, Exception) else str(error)


def evaluation_of(claim: Claim, subnet: Subnet, aims: Aims) -> Evaluation:
    """Return what is stored of a claim that came to an end.

    Raises:
        SearchError, ValueError, TypeError, AttributeError: what no search stores.
    """
    counts = {name: checked_number(name, claim.attrs[name]) for name in MEASURES if name in claim.attrs}
    if claim.state == "FAIL":
        return Evaluation(subnet, counts, f"{claim.attrs.get('error', 'no error was stored')}")
    more = {name: math.nan if value is None else value for name, value in claim.attrs.get("scores", {}).items()}
    objectives = dict(zip(aims.objectives, claim.values or (), strict=True))
    return Evaluation(subnet, aims.read({**counts, **more, **objectives}, {}))


class Worker:
    """One of the processes that work on a search: keeps its archive in step with the storage.

    Args:
        archive: What the search knows.
        ledger: Claims in the storage.
        total: How many evaluations there are to be.
        stale_after: After how many seconds another's claim is given up, as in `evolve`.
        timeout: Seconds that an evaluation may take, or None.
    """

    def __init__(
        self, archive: Archive, ledger: Ledger, total: int, stale_after: float | None, timeout: float | None = None
    ) -> None:
        self.archive, self.ledger, self.total, self.timeout = archive, ledger, total, timeout
        self.stale_after = timeout + 60.0 if stale_after is None and timeout is not None else stale_after
        self._holders: dict[bytes, set[int]] = {}  # subnet -> numbers of its claims that stand
        self._orphans: dict[bytes, Codes] = {}  # claimed once, given up, not claimed since
        self._salt = int(ledger.token, 16)
        self.read()

    def read(self) -> dict[int, int]:
        """Take in what this and other workers have stored; return the numbers of these claims, by their ids."""
        numbers = {}
        with sound(self.ledger.study.study_name):
            for claim in self.ledger.news():
                numbers[claim.trial_id] = claim.number
                self._take(claim)
        return numbers

    def _take(self, claim: Claim) -> None:
        archive, code = self.archive, self.archive.space.encode(claim.params)
        key = code.tobytes()
        holders = self._holders.setdefault(key, set())
        if claim.state == "PRUNED":
            holders.discard(claim.number)
            if not holders:
                self._orphans[key] = code
                archive.release(code)
            return
        holders.add(claim.number)
        self._orphans.pop(key, None)
        archive.reserve(code)
        if claim.state != "RUNNING" and not archive.is_evaluated(code):
            archive.record(code, self._evaluation(claim, code))

    def _evaluation(self, claim: Claim, code: Codes) -> Evaluation:
        return evaluation_of(claim, self.archive.space.decode(code), self.archive.aims)

    def work(self, model: nn.Module, evaluate: Evaluate, max_failures: int, bar: ProgressBar | None) -> bool:
        """Evaluate subnets until the search is over or is interrupted; return whether it is over.

        Raises:
            SearchError: a mistake in what `evaluate` returns; `max_failures` failures in a row.
        """
        failures = 0
        try:
            while (job := self.next()) is not None:
                error = self.evaluate(model, evaluate, job)
                failures = failures + 1 if error is not None else 0
                if bar is not None:
                    bar.update()
                if failures >= max_failures:
                    cause = error if isinstance(error, Exception) else None
                    raise SearchError(f"{failures} evaluations failed in a row; the last: {_described(error)}") from cause
                del error  # it holds the frames of the evaluation, and with them what is on the device
            return True
        except KeyboardInterrupt:
            return False  # what there is, is returned
        finally:
            self._leave()
            if bar is not None:
                bar.close()

    def _leave(self) -> None:
        """Give up what has no result, to be done again: after an interrupt, or a mistake in what evaluate returns.

        Where the storage is out of reach that is left to whoever comes next, and the error that there is stays.
        """
        self.ledger.patience = 0.0
        with suppress(FileError, SearchError):
            self.ledger.withdraw_own()
            self.read()

    def evaluate(self, model: nn.Module, evaluate: Evaluate, job: _Job) -> Exception | str | None:
        """Evaluate a claimed subnet and store what came of it; return the error if it failed."""
        try:
            with self.archive.space.use(job.subnet):
                returned = within(self.timeout, lambda: evaluate(model))
        except Exception as error:
            self.ledger.fail(job.trial_id, _described(error))
            return error
        aims = self.archive.aims
        scores = aims.read(returned, job.counts)
        failure = aims.failure(scores)
        if failure is not None:
            self.ledger.fail(job.trial_id, failure)
            return failure
        known = {*aims.objectives, *(name for name, count in job.counts.items() if scores[name] == count)}
        more = {name: value if math.isfinite(value) else None for name, value in scores.items() if name not in known}
        kept = {"scores": more} if more else {}  # None: JSON has no NaN and no infinity
        self.ledger.complete(job.trial_id, [scores[name] for name in aims.objectives], kept, aims.excesses(scores))
        return None

    def next(self) -> _Job | None:
        """Claim a subnet; None when the search is over."""
        quicker, pause = False, 0.01
        while True:
            self.read()
            if self.ledger.running and self.ledger.withdraw_dead(self.stale_after):
                self.read()
            salt = (self._salt,) if quicker or self.ledger.running else ()  # another way than all who know the same
            code = self._candidate(salt) if len(self.archive) < self.total else None
            if code is not None:
                job = self._claim(code)
                if job is not None:
                    return job
                quicker = True
            elif self.ledger.running:  # others are at work on the last ones; should they die, these are ours
                time.sleep(pause)
                pause = min(1.0, 1.5 * pause)
            else:
                return None

    def _candidate(self, salt: tuple[int, ...]) -> Codes | None:
        if self._orphans:
            waiting = list(self._orphans.values())
            return waiting[salt[0] % len(waiting) if salt else 0]
        return self.archive.candidate(salt)

    def _claim(self, code: Codes) -> _Job | None:
        """Claim a subnet; None if another's claim is older, if the search was full before, or if it was given up since."""
        subnet, counts = self.archive.space.decode(code), self.archive.counts(code)
        trial_id = self.ledger.claim(subnet, counts)
        number = self.read()[trial_id]
        if min(self._holders[code.tobytes()], default=None) == number and not self._is_beyond(number):
            return _Job(trial_id, subnet, counts)
        self.ledger.withdraw(trial_id)
        return None

    def _is_beyond(self, number: int) -> bool:
        """Whether the claims before this one make up the whole search."""
        if len(self.archive) <= self.total:
            return False
        return sum(min(holders, default=number) < number for holders in self._holders.values()) >= self.total

"""Claims on subnets in a study, by which workers share a search."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from vitas.errors import SearchError, shown
from vitas.search.storage import patiently
from vitas.space import Number, Subnet


class Claim(NamedTuple):
    """One claim on one network, as it stands in the storage."""

    number: int
    state: str
    """RUNNING, COMPLETE, FAIL or PRUNED."""
    params: Mapping[str, Number]
    values: Sequence[float] | None
    attrs: Mapping[str, Any]


class Ledger:
    """The claims of one search.

    Args:
        storage: What `open_storage` returned.
        name: Name of the study; made if it is not there.
        objectives: Name -> "max" or "min".
        facts: What the search is made for, JSON values; written into a new study.
        restart: Whether a search of that name is removed first.

    Raises:
        SearchError: a study made for something else, or not by `evolve`.
    """

    def __init__(
        self, storage: Any, name: str, objectives: Mapping[str, str], facts: Mapping[str, Any], restart: bool = False
    ) -> None:
        import optuna

        self._optuna = optuna
        self.storage = storage
        if restart and name in names_in(storage):
            facts_of(storage, name)
            storage.delete_study(storage.get_study_id_from_name(name))
        self.study = patiently(lambda: _open_study(storage, name, objectives), optuna.exceptions.StorageInternalError)
        self._id = storage.get_study_id_from_name(name)
        self._agree(facts)
        self.token = uuid.uuid4().hex
        """Tells the claims of this ledger from all others."""
        self._process = _this_process()
        self._seen = 0
        self._open: dict[int, Any] = {}  # RUNNING, as last read
        self._distributions: dict[tuple[str, tuple[Number, ...]], Any] = {}
        self.longest = 0.0
        """Seconds that the longest evaluation so far took."""

    def _agree(self, facts: Mapping[str, Any]) -> None:
        trials = self.storage.get_all_trials(self._id, deepcopy=False)  # first: another worker states facts before it claims
        attrs = self.storage.get_study_user_attrs(self._id)
        if "vitas" not in attrs:
            if trials:
                raise SearchError(_not_ours(self.study.study_name))
            self.storage.set_study_system_attr(self._id, "study:metric_names", list(facts["objectives"]))
            self.storage.set_study_user_attr(self._id, "vitas", dict(facts))
            attrs = self.storage.get_study_user_attrs(self._id)
        there, here = attrs["vitas"], json.loads(json.dumps(facts))
        for what in {**there, **here}:
            if there.get(what) != here.get(what):
                name = shown(self.study.study_name, 40)
                search = f"search {name} of another model" if what in _OF_THE_MODEL else f"search {name}"
                change = _change(there.get(what), here.get(what))
                raise SearchError(
                    f"storage: there is the {search}: it differs in {what}{change}; pass name= or restart=True"
                )

    def news(self) -> Iterator[Claim]:
        """Yield the claims that are new or have changed since the last call, in order of their numbers."""
        trials = self.storage.get_all_trials(self._id, deepcopy=False)
        changed = [number for number in self._open if trials[number].state.name != "RUNNING"]
        for number in sorted([*changed, *range(self._seen, len(trials))]):
            trial = trials[number]
            if not trial.state.is_finished() and "claim" not in trial.user_attrs:
                raise SearchError(f"storage: trial {number} of the study {shown(self.study.study_name)} is not evolve's")
            if trial.state.name == "RUNNING":
                self._open[number] = trial
            else:
                self._open.pop(number, None)
            if trial.state.name in ("COMPLETE", "FAIL") and trial.datetime_start is not None:
                self.longest = max(self.longest, (trial.datetime_complete - trial.datetime_start).total_seconds())
            yield _claim(trial)
        self._seen = len(trials)

    def claim(self, subnet: Subnet, values: Mapping[str, tuple[Number, ...]], attrs: Mapping[str, Any]) -> tuple[int, int]:
        """Add a claim on a network; return its id and its number.

        Args:
            subnet: The network.
            values: Name -> legal values, for Optuna's pictures.
            attrs: JSON values to be kept with it.
        """
        template = self._optuna.trial.FrozenTrial(  # create_trial takes longer: it checks what is right by construction
            number=-1,
            trial_id=-1,
            state=self._optuna.trial.TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=dict(subnet),
            distributions={name: self._distribution(name, values[name]) for name in subnet},
            user_attrs={"claim": [self.token, time.time(), *self._process], **attrs},
            system_attrs={},
            intermediate_values={},
        )
        trial_id = self.storage.create_new_trial(self._id, template)
        return trial_id, self.storage.get_trial_number_from_id(trial_id)

    def _distribution(self, name: str, values: tuple[Number, ...]) -> Any:
        if (name, values) not in self._distributions:
            self._distributions[name, values] = self._optuna.distributions.CategoricalDistribution(values)
        return self._distributions[name, values]

    def complete(
        self, trial_id: int, values: Sequence[float], attrs: Mapping[str, Any], violations: Sequence[float] = ()
    ) -> None:
        """Store the result of a claim.

        Args:
            trial_id: From `claim`.
            values: Of the objectives, in order.
            attrs: JSON values to be kept with it.
            violations: By how much each limit is broken, for Optuna's own lists and pictures; at most 0: met.
        """
        if violations:
            self._write(self.storage.set_trial_system_attr, trial_id, "constraints", list(violations))
        self._end(trial_id, "COMPLETE", attrs, values)

    def fail(self, trial_id: int, error: str) -> None:
        """Store that an evaluation failed."""
        self._end(trial_id, "FAIL", {"error": error})

    def withdraw(self, trial_id: int) -> None:
        """Give a claim up."""
        self._end(trial_id, "PRUNED")

    def _end(
        self, trial_id: int, state: str, attrs: Mapping[str, Any] | None = None, values: Sequence[float] | None = None
    ) -> None:
        for key, value in (attrs or {}).items():
            self._write(self.storage.set_trial_user_attr, trial_id, key, value)
        self._write(self.storage.set_trial_state_values, trial_id, self._optuna.trial.TrialState[state], values)

    def _write(self, write: Any, *arguments: Any) -> None:
        with suppress(self._optuna.exceptions.UpdateFinishedTrialError):  # it was taken for dead, its claim given up
            write(*arguments)

    def withdraw_dead(self, stale_after: float | None) -> None:
        """Give up the claims of workers that died.

        A process of this machine that is gone is dead; another is taken for dead when its claim is older than `stale_after`
        seconds, None: than ten times the longest evaluation so far, and a minute.
        """
        if stale_after is None:
            stale_after = max(60.0, 10 * self.longest) if self.longest else float("inf")
        for trial in self._open.values():
            token, claimed, machine, pid, started = trial.user_attrs["claim"]
            gone = machine == self._process[0] and _start_of(pid) != started
            if token != self.token and (gone or time.time() - claimed > stale_after):
                self.withdraw(trial._trial_id)

    def withdraw_own(self) -> None:
        """Give up the claims of this ledger that have no result."""
        for trial in self.storage.get_all_trials(self._id, deepcopy=False):
            if trial.state.name == "RUNNING" and trial.user_attrs["claim"][0] == self.token:
                self.withdraw(trial._trial_id)

    @property
    def running(self) -> int:
        """How many claims were RUNNING when last read."""
        return len(self._open)


def _claim(trial: Any) -> Claim:
    return Claim(trial.number, trial.state.name, trial.params, trial.values, trial.user_attrs)


def claims_of(storage: Any, name: str) -> list[Claim]:
    """Return the claims of a search as they stand, joining nothing."""
    return [_claim(trial) for trial in storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)]


def _open_study(storage: Any, name: str, objectives: Mapping[str, str]) -> Any:
    import optuna

    directions: list[Any] = ["maximize" if direction == "max" else "minimize" for direction in objectives.values()]
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no line on standard error for a study that is opened
    try:
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=directions,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study


_OF_THE_MODEL = ("search space", "weights")


def _change(there: Any, here: Any) -> str:
    """Return two facts where a reader learns from them; hashes say nothing."""
    said = f" ({json.dumps(there)}, here {json.dumps(here)})"
    return said if len(said) <= 40 else ""


def _not_ours(name: str) -> str:
    return f"storage: evolve did not make the study {shown(name, 40)} that is there: pass another name="


def names_in(storage: Any) -> list[str]:
    """Return the names of the studies in a storage."""
    return [study.study_name for study in storage.get_all_studies()]


def facts_of(storage: Any, name: str) -> dict[str, Any]:
    """Return what a search in a storage is made for.

    Raises:
        SearchError: a study that `evolve` did not make.
    """
    attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    if "vitas" not in attrs:
        raise SearchError(_not_ours(name))
    return dict(attrs["vitas"])


def _this_process() -> tuple[str, int, str]:
    """Return the machine, the process and when it started: a number that is used again does not start at the same time."""
    boot, space = "", ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")  # containers number their processes anew
    except OSError:
        pass
    return f"{socket.gethostname()} {boot} {space}".strip(), os.getpid(), _start_of(os.getpid())


def _start_of(pid: int) -> str:
    """Return when a process of this machine started, "" if it is gone, "?" where that cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if os.path.exists("/proc/self/stat"):
        return ""
    if os.name != "posix":
        return "?"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "?"

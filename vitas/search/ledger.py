"""Claims on subnets in a study, by which workers share a search."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from vitas.errors import SearchError, listed, shown
from vitas.search.storage import OPENS_WITHIN, patiently, persistently, quietly, sound
from vitas.search.trials import SUBNET, TrialReader, params_of
from vitas.space import Number, Subnet


class Claim(NamedTuple):
    """One claim on one network, as it stands in the storage."""

    trial_id: int
    number: int
    state: str
    """RUNNING, COMPLETE, FAIL or PRUNED."""
    params: Mapping[str, Number]
    values: Sequence[float] | None
    attrs: Mapping[str, Any]


class _Owner(NamedTuple):
    """Whose a claim is, as it stands with it; older ones say less."""

    token: str
    claimed: float
    machine: str
    pid: int
    started: str
    thread: int | None = None
    facts: str | None = None
    """Under which name the study keeps what the search of this worker is made for."""


_FACTS = "vitas"


class Ledger:
    """The claims of one search.

    Each worker states what its search is made for under a name of its own, and each claim says which. The first claim
    decides, for a storage numbers claims one after the other: whoever searches for something else is then refused, and
    the claims it may have made are passed over.

    Args:
        storage: What `open_storage` returned.
        name: Name of the study; made if it is not there.
        objectives: Name -> "max" or "min".
        facts: What the search is made for, JSON values; written into a new study.
        patience: How many seconds a storage that is out of reach is tried again; while it is opened, at most 10.
        restart: Whether a search of that name is removed first.

    Raises:
        SearchError: a study made for something else, or not by `evolve`.
    """

    def __init__(
        self,
        storage: Any,
        name: str,
        objectives: Mapping[str, str],
        facts: Mapping[str, Any],
        patience: float = 0.0,
        restart: bool = False,
    ) -> None:
        import optuna

        self._optuna = optuna
        self.storage, self.patience = storage, patience
        opening = min(patience, OPENS_WITHIN)
        if restart:
            persistently(lambda: _remove(storage, name), opening, advice="")
        raced = optuna.exceptions.StorageInternalError
        self.study = persistently(
            lambda: patiently(lambda: _open_study(storage, name, objectives), raced), opening, advice=""
        )
        self._id = self._done(storage.get_study_id_from_name, name)
        self._facts: dict[str, Any] = json.loads(json.dumps(facts))
        digest = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()[:16]
        self._key = f"{_FACTS} {digest}"
        self._reader = TrialReader(storage, self._id, self._done)
        with sound(name):
            self._agree()
        self.token = uuid.uuid4().hex
        """Tells the claims of this ledger from all others."""
        self._process = _this_process()
        self._thread = threading.current_thread().ident
        self._open: dict[int, tuple[Any, float]] = {}  # RUNNING, as last read, and since when this process knows
        self._made: set[int] = set()  # ids of the claims that `claim` returned
        self.longest = 0.0
        """Seconds that the longest evaluation so far took."""

    def _done(self, step: Any, *arguments: Any, **options: Any) -> Any:
        """Return what a step on the storage returns, tried as long as there is patience."""
        return persistently(lambda: step(*arguments, **options), self.patience)

    def _agree(self) -> None:
        trials = self._reader.all()  # first: another worker states facts before it claims
        if not self._is_there(trials):
            self._done(self.storage.set_study_user_attr, self._id, self._key, self._facts)
            self._done(self.storage.set_study_system_attr, self._id, "study:metric_names", list(self._facts["objectives"]))
            self._is_there(trials)  # another may have been quicker

    def _is_there(self, trials: Sequence[Any]) -> bool:
        """Whether the study states facts already.

        Raises:
            SearchError: others than those of this search.
        """
        attrs = self._done(self.storage.get_study_user_attrs, self._id)
        said, key = _decisive(attrs, trials)
        if said == self._key and said not in attrs:
            return False  # a damaged journal has lost them; the claims still say the same
        if key is None:
            if trials:
                raise SearchError(_not_ours(self.study.study_name))
            return False
        there, here = attrs[key], self._facts
        for what in {**there, **here}:
            if there.get(what) != here.get(what):
                name = shown(self.study.study_name, 40)
                search = f"search {name} of another model" if what in _OF_THE_MODEL else f"search {name}"
                change = _change(there.get(what), here.get(what))
                raise SearchError(
                    f"storage: there is the {search}: it differs in {listed([what])}{change}; pass name= or restart=True"
                )
        self._key = key
        return True

    def news(self) -> Iterator[Claim]:
        """Yield the claims that are new or have changed since the last call, in order of their numbers.

        Raises:
            SearchError: the first claim of all is on a search for something else.
        """
        is_first = not self._reader.seen
        trials = self._reader.news()
        if trials and is_first:
            self._is_there(trials)
        for trial in trials:
            number = trial.number
            if number in self._open and trial.state.name == "RUNNING":
                continue
            claimed = "claim" in trial.user_attrs
            if not trial.state.is_finished() and not claimed:
                raise SearchError(f"storage: trial {number} of the study {shown(self.study.study_name)} is not evolve's")
            if claimed and _owner(trial).facts not in (self._key, None):
                continue  # by a worker that was refused
            if trial.state.name == "RUNNING":
                self._open[number] = trial, time.monotonic()
            else:
                self._open.pop(number, None)
            if trial.state.name in ("COMPLETE", "FAIL") and trial.datetime_start is not None:
                self.longest = max(self.longest, (trial.datetime_complete - trial.datetime_start).total_seconds())
            yield _claim(trial)

    def claim(self, subnet: Subnet, attrs: Mapping[str, Any]) -> int:
        """Add a claim on a network; return its id.

        Args:
            subnet: The network.
            attrs: JSON values to be kept with it.
        """
        owner = [*_Owner(self.token, time.time(), *self._process, self._thread, self._key)]
        template = self._optuna.trial.FrozenTrial(  # create_trial takes longer: it checks what is right by construction
            number=-1,
            trial_id=-1,
            state=self._optuna.trial.TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={"claim": owner, SUBNET: dict(subnet), **attrs},
            system_attrs={},
            intermediate_values={},
        )
        tried: list[None] = []

        def create() -> int:
            there = self._reader.running() if tried else []
            made = [trial._trial_id for trial in there if trial.user_attrs.get("claim") == owner]
            tried.append(None)
            # made: the last try reached the storage, and only its answer was lost
            return int(made[0] if made else self.storage.create_new_trial(self._id, template))

        trial_id: int = self._done(create)
        self._made.add(trial_id)
        return trial_id

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
            self._done(write, *arguments)

    def withdraw_dead(self, stale_after: float | None) -> bool:
        """Give up the claims of workers that died; return whether there were any.

        A process or a thread of this machine that is gone is dead, and so is a claim that this very thread made for
        an earlier search, and one of this ledger that `claim` did not return: a database took it twice. Another is taken for
        dead when this ledger has known it for `stale_after` seconds, whatever the clocks of machines say; None: for ten
        times the longest evaluation so far, and a minute.
        """
        if stale_after is None:
            stale_after = max(60.0, 10 * self.longest) if self.longest else float("inf")
        dead = []
        for trial, since in self._open.values():
            owner = _owner(trial)
            if owner.token == self.token:
                is_dead = trial._trial_id not in self._made
            else:
                is_dead = self._is_gone(owner) or time.monotonic() - since >= stale_after
            if is_dead:
                dead.append(trial._trial_id)
        for trial_id in dead:
            self.withdraw(trial_id)
        return bool(dead)

    def _is_gone(self, owner: _Owner) -> bool:
        machine, pid, _ = self._process
        if owner.machine != machine:
            return False
        if _start_of(owner.pid) != owner.started:
            return True
        if owner.pid != pid or owner.thread is None:
            return False
        return owner.thread == self._thread or owner.thread not in {thread.ident for thread in threading.enumerate()}

    def withdraw_own(self) -> None:
        """Give up the claims of this ledger that have no result."""
        for trial in self._reader.running():
            if "claim" in trial.user_attrs and _owner(trial).token == self.token:
                self.withdraw(trial._trial_id)

    @property
    def running(self) -> int:
        """How many claims were RUNNING when last read."""
        return len(self._open)


def _owner(trial: Any) -> _Owner:
    return _Owner(*trial.user_attrs["claim"])


def _claim(trial: Any) -> Claim:
    return Claim(trial._trial_id, trial.number, trial.state.name, params_of(trial), trial.values, trial.user_attrs)


def _decisive(attrs: Mapping[str, Any], trials: Sequence[Any]) -> tuple[str | None, str | None]:
    """Return under which name the first claim says that the facts of a study stand, and under which they do."""
    said = _owner(trials[0]).facts if trials and "claim" in trials[0].user_attrs else None
    stated = [key for key in attrs if key.partition(" ")[0] == _FACTS]
    return said, said if said in attrs else next(iter(stated), None)


def names_in(storage: Any) -> list[str]:
    """Return the names of the studies in a storage."""
    return [study.study_name for study in storage.get_all_studies()]


def facts_of(storage: Any, name: str) -> dict[str, Any]:
    """Return what a search in a storage is made for.

    Raises:
        SearchError: a study that `evolve` did not make.
    """
    study_id = storage.get_study_id_from_name(name)
    attrs = storage.get_study_user_attrs(study_id)
    _, key = _decisive(attrs, storage.get_all_trials(study_id, deepcopy=False))
    if key is None:
        raise SearchError(_not_ours(name))
    return dict(attrs[key])


def claims_of(storage: Any, name: str) -> list[Claim]:
    """Return the claims of a search as they stand, without those of workers that were refused, joining nothing."""
    study_id = storage.get_study_id_from_name(name)
    trials = storage.get_all_trials(study_id, deepcopy=False)
    said, key = _decisive(storage.get_study_user_attrs(study_id), trials)
    ours = (trial for trial in trials if "claim" not in trial.user_attrs or _owner(trial).facts in (said, key, None))
    return [_claim(trial) for trial in ours]


def _remove(storage: Any, name: str) -> None:
    """Remove a search, where there is one."""
    if name in names_in(storage):
        facts_of(storage, name)
        storage.delete_study(storage.get_study_id_from_name(name))


def _open_study(storage: Any, name: str, objectives: Mapping[str, str]) -> Any:
    import optuna

    directions: list[Any] = ["maximize" if direction == "max" else "minimize" for direction in objectives.values()]
    with quietly():
        return optuna.create_study(
            study_name=name,
            storage=storage,
            directions=directions,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(),
        )


_OF_THE_MODEL = ("search space", "weights")


def _change(there: Any, here: Any) -> str:
    """Return two facts where a reader learns from them; hashes say nothing."""
    said = f" ({json.dumps(there)}, here {json.dumps(here)})"
    return said if len(said) <= 40 else ""


def _not_ours(name: str) -> str:
    return f"storage: evolve did not make the study {shown(name, 40)} that is there: pass another name="


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

"""The trials of a study: which are new, which network each is of, and a copy that Optuna can draw."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitas.search.storage import quietly
from vitas.space import Number

SUBNET = "subnet"
"""The attribute in which a trial keeps its network: one value, where a parameter for each choice takes a row of each."""


def params_of(trial: Any) -> Mapping[str, Number]:
    """Return the network that a trial is of; the trials of earlier versions keep it as parameters."""
    params: Mapping[str, Number] = trial.user_attrs.get(SUBNET) or trial.params
    return params


class TrialReader:
    """Reads the trials of a study that are new, and those that were unfinished when they were last read.

    A storage that has its trials in this process is asked for one after the other, a database for what has changed. Others
    are asked for all at once, since each question is a message; they send what has changed, and keep the rest here.

    Args:
        storage: An Optuna storage.
        study_id: The study.
        done: Does a step on the storage, again where it is out of reach for a while.
    """

    def __init__(self, storage: Any, study_id: int, done: Callable[..., Any]) -> None:
        from optuna.storages import InMemoryStorage, JournalStorage

        self._storage, self._study_id, self._done = storage, study_id, done
        self._is_here = isinstance(storage, (InMemoryStorage, JournalStorage))
        self._database = _database_of(storage)
        self.seen = 0
        """How many trials were read."""
        self._last_id = -1
        self._unfinished: dict[int, int] = {}  # number -> id

    def all(self) -> Sequence[Any]:
        """Return all trials as they stand, in order of their numbers."""
        trials: Sequence[Any] = self._done(self._storage.get_all_trials, self._study_id, deepcopy=False)
        return trials

    def running(self) -> list[Any]:
        """Return the trials that are running as they stand, in order of their numbers."""
        import optuna

        states = (optuna.trial.TrialState.RUNNING,)
        source = self._database or self._storage
        return list(self._done(source.get_all_trials, self._study_id, deepcopy=False, states=states))

    def news(self) -> list[Any]:
        """Return the trials that are new or were unfinished, in order of their numbers."""
        if self._is_here and self.seen:
            trials = [self._done(self._storage.get_trial, trial_id) for trial_id in self._unfinished.values()]
            trials += self._later()
        elif self._database is not None and self.seen:
            trials = self._changed()
        else:
            there = self.all()
            trials = [*(there[number] for number in self._unfinished), *there[self.seen :]]
        self._unfinished = {trial.number: trial._trial_id for trial in trials if not trial.state.is_finished()}
        self.seen = max(self.seen, trials[-1].number + 1) if trials else self.seen
        self._last_id = max(self._last_id, trials[-1]._trial_id) if trials else self._last_id
        return trials

    def _changed(self) -> list[Any]:
        """Return the trials of a database that are new or were unfinished, in order of their numbers."""
        unfinished, last = set(self._unfinished.values()), self._last_id
        if (first := min(unfinished, default=last + 1)) + len(unfinished) > last:
            unfinished, last = set(), first - 1  # they are the last ones; for ids SQLite goes through the whole study
        trials: list[Any] = self._done(
            self._database._get_trials,
            self._study_id,
            states=None,
            included_trial_ids=unfinished,
            trial_id_greater_than=last,
        )
        return sorted(trials, key=lambda trial: int(trial.number))

    def _later(self) -> list[Any]:
        """Return the trials that were not read before."""
        trials: list[Any] = []
        while True:
            number = self.seen + len(trials)
            try:
                trial_id = self._done(self._storage.get_trial_id_from_study_id_trial_number, self._study_id, number)
            except KeyError:
                return trials
            trials.append(self._done(self._storage.get_trial, trial_id))


def _database_of(storage: Any) -> Any:
    """Return the database behind Optuna's cache, which sorts all trials at each question; None: no such."""
    backend = getattr(storage, "_backend", None)
    changed = getattr(backend, "_get_trials", None)  # with other arguments before Optuna 4.1
    return backend if changed is not None and "trial_id_greater_than" in inspect.signature(changed).parameters else None


def drawable(study: Any) -> Any:
    """Return a copy of a study in memory in which each choice of a network is a parameter, as Optuna's pictures want it."""
    import optuna

    stored, trials = study._storage, study.get_trials(deepcopy=False)
    seen: dict[str, set[Number]] = {}
    for trial in trials:
        for name, value in params_of(trial).items():
            seen.setdefault(name, set()).add(value)
    kinds = {name: optuna.distributions.CategoricalDistribution(sorted(values)) for name, values in seen.items()}
    storage = optuna.storages.InMemoryStorage()
    with quietly():
        study_id = storage.create_new_study(study.directions, study.study_name)
    for key, value in study.user_attrs.items():
        storage.set_study_user_attr(study_id, key, value)
    for key, value in stored.get_study_system_attrs(study._study_id).items():
        storage.set_study_system_attr(study_id, key, value)
    for trial in trials:
        twin = copy.copy(trial)
        twin.params = dict(params_of(trial))
        twin.distributions = {name: kinds[name] for name in twin.params}
        twin.user_attrs = {key: value for key, value in trial.user_attrs.items() if key != SUBNET}
        storage.create_new_trial(study_id, twin)
    return optuna.load_study(study_name=study.study_name, storage=storage, sampler=optuna.samplers.RandomSampler())

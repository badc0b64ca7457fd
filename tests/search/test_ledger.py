"""Where workers meet: who decides what a search is for, whose claims are alive, storages that fail for a while."""

import copy
import errno
import sys
import threading
from collections import Counter

import pytest
import torch

import vitas
from tests.search.small import SETTINGS, score, small_model  # noqa: F401  # a fixture
from vitas.errors import FileError, SearchError
from vitas.search import storage as storage_file
from vitas.search.ledger import Ledger
from vitas.search.storage import open_storage, persistently

optuna = pytest.importorskip("optuna")
pytest.importorskip("tqdm")
pytestmark = [pytest.mark.extras, pytest.mark.skipif(sys.platform == "win32", reason="flock")]


def facts(weights):
    return {"objectives": {"x": "max"}, "weights": weights}


def joined(storage, weights):
    return Ledger(storage, "vitas", {"x": "max"}, facts(weights))


def told(result):
    return [(evaluation.subnet, dict(evaluation.scores), evaluation.error) for evaluation in result.history]


# -- what a search is for ----------------------------------------------------------------------------------------------


def test_of_two_that_start_at_once_with_other_weights_the_first_is_let_in(tmp_path):
    slow, quick = open_storage(tmp_path / "race.log"), []
    real = slow.get_study_user_attrs

    def look(*given):  # right after our look, another worker starts the study
        seen = copy.copy(real(*given))
        if not quick:
            quick.append(joined(open_storage(tmp_path / "race.log"), "A"))
        return seen

    slow.get_study_user_attrs = look
    with pytest.raises(SearchError, match="differs in weights"):
        joined(slow, "B")
    quick[0].claim(vitas.Subnet({"width": 2}), {})
    joined(open_storage(tmp_path / "race.log"), "A")
    with pytest.raises(SearchError, match="differs in weights"):
        joined(open_storage(tmp_path / "race.log"), "B")


@pytest.mark.parametrize("place", ["journal", "sqlite"])
def test_where_neither_saw_the_other_the_first_claim_decides(tmp_path, place):
    where = tmp_path / "race.log" if place == "journal" else f"sqlite:///{tmp_path / 'race.db'}"

    def blind(weights):
        """Open the study as if what others say of it were not there yet, as in a transaction of a database."""
        storage = open_storage(where)
        real = storage.get_study_user_attrs
        storage.get_study_user_attrs = lambda study: {k: v for k, v in real(study).items() if v["weights"] == weights}
        made = joined(storage, weights)
        storage.get_study_user_attrs = real
        return made

    first, second = blind("A"), blind("B")
    second_id = second.claim(vitas.Subnet({"width": 4}), {})
    first.claim(vitas.Subnet({"width": 2}), {})
    with pytest.raises(SearchError, match="differs in weights"):
        list(first.news())  # before it evaluates: a claim is read back first
    assert [dict(claim.params) for claim in second.news()] == [{"width": 4}]  # and never sees the other's
    second.complete(second_id, [1.0], {})
    first.withdraw_own()
    assert [claim.state for claim in joined(open_storage(where), "B").news()] == ["COMPLETE"]
    with pytest.raises(SearchError, match="differs in weights"):
        joined(open_storage(where), "A")


def test_a_search_whose_worker_is_refused_at_its_first_claim(model, tmp_path, monkeypatch):
    """The whole of it: the claim is given up, nothing is evaluated, the other's search is as if nobody had come."""
    path, calls, agree = tmp_path / "search.log", [], Ledger._agree
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other.head.bias)

    def agree_late(self):
        first = next(iter(self.storage.get_study_user_attrs(self._id)), None)
        agree(self)
        if first is None and not calls:
            calls.append(None)
            monkeypatch.setattr(Ledger, "_is_there", lambda *given: False)  # looks before the other's facts are there
            slow.append(Ledger(open_storage(path), "vitas", {"accuracy": "max"}, {**self._facts, "weights": "others"}))
            monkeypatch.undo()

    slow = []
    monkeypatch.setattr(Ledger, "_agree", agree_late)
    result = vitas.evolve(model, score, storage=path, **SETTINGS)
    slow[0].claim(result.best, {})
    with pytest.raises(SearchError, match="differs in weights"):
        list(slow[0].news())
    slow[0].withdraw_own()
    assert told(vitas.evolve(model, score, storage=path, **SETTINGS)) == told(result)


def test_searches_of_before_there_were_such_claims_go_on(tmp_path):
    storage = open_storage(tmp_path / "search.log")
    study = optuna.create_study(study_name="vitas", storage=storage)
    study.set_user_attr("vitas", facts("A"))
    trial = optuna.create_trial(
        params={"width": 2},
        distributions={"width": optuna.distributions.CategoricalDistribution((2, 4, 6))},
        value=1.0,
        user_attrs={"claim": ["token", 0.0, "machine", 1, "1"]},
    )
    study.add_trial(trial)
    ledger = joined(open_storage(tmp_path / "search.log"), "A")
    assert [claim.state for claim in ledger.news()] == ["COMPLETE"]
    ledger.claim(vitas.Subnet({"width": 4}), {})
    assert len(list(joined(open_storage(tmp_path / "search.log"), "A").news())) == 2
    with pytest.raises(SearchError, match="differs in weights"):
        joined(open_storage(tmp_path / "search.log"), "B")


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_claim_that_is_given_up_before_it_is_read_back_is_made_again(model, monkeypatch):
    claim, first = Ledger.claim, []

    def taken(self, *given):
        trial_id = claim(self, *given)
        if not first:
            first.append(self.withdraw(trial_id))
        return trial_id

    monkeypatch.setattr(Ledger, "claim", taken)
    result = vitas.evolve(model, score, **SETTINGS)
    monkeypatch.undo()
    assert told(result) == told(vitas.evolve(model, score, **SETTINGS))


def test_a_claim_of_a_search_that_ended_in_this_thread_is_free_at_once(model, tmp_path, monkeypatch):
    """The disk is full when the result is to be written, and when the claim is to be given up too."""
    path, full = tmp_path / "search.log", OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:

        def write(self, *given):
            raise full

        def evaluate(model):
            patch.setattr("vitas.search.journal.Journal.append_logs", write)
            return score(model)

        with pytest.raises(FileError, match="No space left on device"):
            vitas.evolve(model, evaluate, storage=path, **SETTINGS)
    assert [trial.state.name for trial in open_storage(path).get_all_trials(0)] == ["RUNNING"]
    monkeypatch.setattr("vitas.search.worker.time.sleep", lambda seconds: pytest.fail("waits"))
    result = vitas.evolve(model, score, storage=path, **SETTINGS)
    assert told(result) == told(vitas.evolve(model, score, **SETTINGS))


def test_the_claims_of_another_living_thread_stand_and_those_of_one_that_ended_do_not(tmp_path):
    path, here, end = tmp_path / "search.log", [], threading.Event()

    def work():
        here.append(joined(open_storage(path), "A"))
        here[0].claim(vitas.Subnet({"width": 2}), {})
        claimed.set()
        end.wait(60)

    claimed = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    claimed.wait(60)
    mine = joined(open_storage(path), "A")
    list(mine.news())
    mine.withdraw_dead(None)
    assert mine.running == 1
    assert list(mine.news()) == []
    end.set()
    thread.join()
    mine.withdraw_dead(None)
    assert [claim.state for claim in mine.news()] == ["PRUNED"]


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_an_hour_apart_double_nothing(tmp_path, monkeypatch, hours):
    path, now = tmp_path / "search.log", storage_file.time.time()
    other = joined(open_storage(path), "A")
    other._process = ("elsewhere", 1, "1")
    monkeypatch.setattr(storage_file.time, "time", lambda: now + 3600 * hours)
    other.claim(vitas.Subnet({"width": 2}), {})
    monkeypatch.undo()
    here = joined(open_storage(path), "A")
    list(here.news())
    here.longest = 1.0
    here.withdraw_dead(None)
    assert list(here.news()) == []


# -- storages that fail for a while ------------------------------------------------------------------------------------


class Failing(optuna.storages.InMemoryStorage):
    """Fails a few times in a row at each call of the methods named, before it does what is asked or after."""

    def __init__(self, names, error, times, after=False):
        super().__init__()
        self.left, self.times = {}, times
        for name in names:
            setattr(self, name, self.failing(name, getattr(self, name), error, after))

    def failing(self, name, method, error, after):
        def call(*given, **options):
            self.left.setdefault(name, self.times)
            if self.left[name] == 0:
                del self.left[name]
                return method(*given, **options)
            if after and self.left[name] == self.times:
                method(*given, **options)
            self.left[name] -= 1
            raise error

        return call


def lost():
    return optuna.exceptions.StorageInternalError("An exception is raised during the commit.")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [lost(), ConnectionResetError("gone"), OSError(errno.ESTALE, "stale")])
def test_what_was_told_is_sent_again(model, monkeypatch, error, after):
    """Whether the storage took it and only the answer was lost, or not: nothing is evaluated twice, nothing is lost."""
    monkeypatch.setattr(storage_file.time, "sleep", lambda seconds: None)
    names = ["create_new_trial", "set_trial_state_values", "set_trial_user_attr", "set_trial_system_attr"]
    storage, calls = Failing(names, error, 3, after), []

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        return {"accuracy": score(model), "ms": 1.0}

    settings = {**SETTINGS, "limits": {"ms": (None, 2)}}
    result = vitas.evolve(model, evaluate, storage=storage, **settings)
    assert len(calls) == len(set(calls)) == 12
    assert [trial.state.name for trial in result.study.trials] == 12 * ["COMPLETE"]
    assert told(result) == told(vitas.evolve(model, evaluate, **settings))


def test_a_claim_that_a_database_took_twice_is_given_up(model, monkeypatch):
    """Optuna tries an insert again by itself where its answer is lost: the worker knows of the second one only."""
    storage, made = optuna.storages.InMemoryStorage(), []
    create = storage.create_new_trial

    def twice(*given, **options):
        made.append(None)
        if len(made) in (3, 12):
            create(*given, **options)
        return create(*given, **options)

    monkeypatch.setattr(storage, "create_new_trial", twice)
    result = vitas.evolve(model, score, storage=storage, **SETTINGS)
    states = Counter(trial.state.name for trial in result.study.trials)
    assert states == {"COMPLETE": 12, "PRUNED": 4}
    assert told(result) == told(vitas.evolve(model, score, **SETTINGS))


def test_the_limit_is_kept_and_the_rest_goes_on_later(model, monkeypatch):
    now, pauses = [0.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    storage = Failing([], lost(), 0)
    with monkeypatch.context() as patch:
        patch.setattr(storage_file.time, "sleep", sleep)
        patch.setattr(storage_file.time, "monotonic", lambda: now[0])

        def evaluate(model):
            patch.setattr(storage, "set_trial_state_values", storage.failing("", None, lost(), False))
            storage.left[""] = 10**9
            return score(model)

        with pytest.raises(SearchError, match=r"out of reach for 100 s .* storage_timeout=") as caught:
            vitas.evolve(model, evaluate, storage=storage, storage_timeout=100, **SETTINGS)
    assert caught.value.__suppress_context__  # one cause, in the message, and not the database's tracebacks
    assert sum(pauses) == pytest.approx(100)
    assert max(pauses) == 10
    result = vitas.evolve(model, score, storage=storage, **SETTINGS)
    assert told(result) == told(vitas.evolve(model, score, **SETTINGS))


@pytest.mark.parametrize("error", [KeyError("no such study"), ValueError("not JSON"), OSError(errno.ENOSPC, "full")])
def test_what_does_not_pass_is_not_waited_for(monkeypatch, error):
    monkeypatch.setattr(storage_file.time, "sleep", lambda seconds: pytest.fail("waits"))

    def step():
        raise error

    with pytest.raises(FileError if isinstance(error, OSError) else type(error)):
        persistently(step, 10**6)


def test_a_database_says_whether_it_is_out_of_reach_or_will_never_take_it(monkeypatch):
    from sqlalchemy import exc

    monkeypatch.setattr(storage_file.time, "sleep", lambda seconds: None)
    for kind, passes in [(exc.OperationalError, True), (exc.InterfaceError, True), (exc.DataError, False)]:
        tried = []

        def step(kind=kind, tried=tried):
            tried.append(None)
            if len(tried) < 3:
                raise lost() from kind("insert", {}, Exception("server"))

        if passes:
            persistently(step, 10**6)
        else:
            with pytest.raises(optuna.exceptions.StorageInternalError):
                persistently(step, 10**6)
        assert len(tried) == (3 if passes else 1)

"""The search over a storage: what is kept, what is refused, what happens when things go wrong."""

import math
import multiprocessing
import os
import random
import re
import sys
import time
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import vitas
from vitas.errors import FileError, SearchError

optuna = pytest.importorskip("optuna")
pytest.importorskip("tqdm")
pytestmark = pytest.mark.extras


def micro(seed=0):
    torch.manual_seed(seed)
    return vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)


@pytest.fixture(scope="module")
def model():
    return micro()


SETTINGS = {"flops": ("40%", "60%"), "population": 6, "generations": 5, "progress": False}


def made_up(subnet):
    return sum(subnet.get(f"blocks.{i}.mlp_dim", 0) * (1 - 0.3 * i) for i in range(6)) + subnet["embed_dim"]


def score(model):
    return made_up(vitas.active_subnet(model))


def told(result):
    return [(evaluation.subnet, dict(evaluation.scores), evaluation.error) for evaluation in result.history]


def test_a_search_in_memory(model):
    before = vitas.active_subnet(model)
    result = vitas.evolve(model, score, **SETTINGS)
    assert vitas.active_subnet(model) == before
    assert len(result.history) == len(result.scores) == 30
    assert result.scores[result.best]["accuracy"] == made_up(result.best) == max(made_up(s) for s in result.scores)
    low, high = result.windows["flops"]
    assert all(low <= vitas.count_flops(model, subnet).total <= high for subnet in result.scores)
    trials = result.study.trials
    assert [trial.params for trial in trials] == [dict(evaluation.subnet) for evaluation in result.history]
    assert result.study.best_params == dict(result.best)
    assert all(trial.user_attrs["params"] == vitas.count_params(model, trial.params) for trial in trials[:5])
    assert "30 evaluations" in repr(result)
    assert told(vitas.evolve(model, score, **SETTINGS)) == told(result)


def test_evolve_and_ask_and_tell_are_one_search(model):
    result = vitas.evolve(model, score, seed=3, **SETTINGS)
    evolution = vitas.Evolution(model, flops=("40%", "60%"), population=6, seed=3)
    for evaluation in result.history:
        assert evolution.ask() == [evaluation.subnet]
        evolution.tell(evaluation.subnet, made_up(evaluation.subnet))


@pytest.mark.parametrize("place", ["journal", "sqlite", "storage"])
def test_a_storage_changes_nothing_and_goes_on(model, tmp_path, place):
    where = {
        "journal": tmp_path / "search.log",
        "sqlite": f"sqlite:///{tmp_path / 'search.db'}",
        "storage": optuna.storages.InMemoryStorage(),
    }[place]
    settings = {**SETTINGS, "objectives": {"score": "max", "other": "min"}, "limits": {"extra": (None, 300)}}
    calls = []

    def evaluate(model):
        subnet = vitas.active_subnet(model)
        calls.append(subnet)
        return {"score": made_up(subnet), "other": subnet["depth"] / 3, "extra": made_up(subnet), "more": math.inf}

    whole = vitas.evolve(model, evaluate, **settings)
    calls.clear()
    first = vitas.evolve(model, evaluate, storage=where, **{**settings, "generations": 2})
    assert len(first.history) == len(calls) == 12
    result = vitas.evolve(model, evaluate, storage=where, **settings)
    assert len(calls) == 30
    again = vitas.evolve(model, evaluate, storage=where, **settings)
    assert len(calls) == 30
    for other in (result, again):
        assert [e.subnet for e in other.history] == [e.subnet for e in whole.history]
        assert [e.scores["score"] for e in other.history] == [e.scores["score"] for e in whole.history]
        assert [e.scores["extra"] for e in other.history] == [e.scores["extra"] for e in whole.history]
        assert other.best == whole.best
        assert [e.subnet for e in other.front] == [e.subnet for e in whole.front]
    assert {tuple(trial.params.items()) for trial in result.study.best_trials} <= {
        tuple(e.subnet.items()) for e in result.front
    }  # Optuna knows the limits too


def test_what_fails_is_recorded_and_the_search_goes_on(model, tmp_path):
    def evaluate(model):
        subnet = vitas.active_subnet(model)
        if subnet["depth"] == 3:
            raise RuntimeError("no memory")
        return math.nan if subnet["depth"] == 4 else made_up(subnet)

    result = vitas.evolve(model, evaluate, storage=tmp_path / "search.log", **SETTINGS)
    assert len(result.history) == 30
    errors = {3: "RuntimeError: no memory", 4: "evaluate returned nan for accuracy"}
    assert any(evaluation.error for evaluation in result.history)
    for evaluation in result.history:
        assert evaluation.error == errors.get(evaluation.subnet["depth"])
        assert ("accuracy" in evaluation.scores) == (evaluation.error is None)
    assert told(vitas.evolve(model, evaluate, storage=tmp_path / "search.log", **SETTINGS)) == told(result)
    assert told(vitas.evolve(model, evaluate, **SETTINGS)) == told(result)
    failed = [trial for trial in result.study.trials if trial.state.name == "FAIL"]
    assert {trial.user_attrs["error"] for trial in failed} <= set(errors.values())


@pytest.mark.parametrize("most", [2**24 + 1, np.int64(10**12)])
def test_any_number_of_failures_may_be_allowed(model, most):
    result = vitas.evolve(model, lambda model: math.nan, max_failures=most, **SETTINGS)
    assert [evaluation.error is None for evaluation in result.history] == [False] * 30


def test_too_many_failures_in_a_row_stop_it_with_the_last_error(model, tmp_path):
    calls = []

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        if len(calls) > 10:
            raise ZeroDivisionError(f"call {len(calls)}")
        return 1.0 if len(calls) != 5 else math.nan

    with pytest.raises(SearchError, match="3 evaluations failed in a row; the last: ZeroDivisionError: call 13") as caught:
        vitas.evolve(model, evaluate, max_failures=3, storage=tmp_path / "search.log", **SETTINGS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    result = vitas.evolve(model, score, max_failures=3, storage=tmp_path / "search.log", **SETTINGS)  # mended, it goes on
    assert len(result.history) == 30
    assert [evaluation.error is None for evaluation in result.history[:14]] == [True] * 4 + [False] + [True] * 5 + [
        False
    ] * 3 + [True]


def test_ctrl_c_returns_what_there_is_and_loses_nothing(model, tmp_path):
    calls = []

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return made_up(calls[-1])

    result = vitas.evolve(model, evaluate, storage=tmp_path / "search.log", **SETTINGS)
    assert [evaluation.subnet for evaluation in result.history] == calls[:8]
    assert result.best == max(calls[:8], key=made_up)
    assert result.interrupted
    whole = vitas.evolve(model, score, storage=tmp_path / "search.log", **SETTINGS)
    assert not whole.interrupted
    assert told(whole) == told(vitas.evolve(model, score, **SETTINGS))
    assert [trial.state.name for trial in whole.study.trials].count("PRUNED") == 1


@pytest.mark.parametrize(
    ("returned", "message"), [(None, "got None"), ("0.5", "got '0.5'"), ({"acc": 1}, "the objective 'accuracy' is missing")]
)
def test_a_mistake_in_evaluate_is_refused_at_once_and_costs_no_network(model, tmp_path, returned, message):
    with pytest.raises(SearchError, match=message):
        vitas.evolve(model, lambda model: returned, storage=tmp_path / "search.log", **SETTINGS)
    result = vitas.evolve(model, score, storage=tmp_path / "search.log", **SETTINGS)
    assert told(result) == told(vitas.evolve(model, score, **SETTINGS))


def test_a_count_that_evaluate_measures_itself_stands(model, tmp_path):
    settings = {**SETTINGS, "limits": {"flops": (None, 50)}}
    result = vitas.evolve(model, lambda model: {"accuracy": score(model), "flops": 40.5}, **settings)
    assert {evaluation.scores["flops"] for evaluation in result.history} == {40.5}
    assert len(result.front) > 0
    assert result.history[0].scores["params"] == vitas.count_params(model, result.history[0].subnet)


def test_bilateral_sharing_calls_evaluate_as_it_is():
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1, sharing="bilateral")
    result = vitas.evolve(model, lambda model: float(vitas.search_space(model).side == "left"), **SETTINGS)
    assert {evaluation.scores["accuracy"] for evaluation in result.history} == {1.0}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"flops": ("40%", "61%")}, "budget"),
        ({"seed": 5}, "seed"),
        ({"population": 7}, "population"),
        ({"objectives": {"accuracy": "min"}}, "objectives"),
        ({"limits": {"flops": (None, 1e12)}}, "limits"),
    ],
)
def test_a_storage_made_for_something_else_is_refused(model, tmp_path, change, what):
    vitas.evolve(model, score, storage=tmp_path / "search.log", **{**SETTINGS, "generations": 1})
    with pytest.raises(SearchError, match=f"differs in {what}"):
        vitas.evolve(model, score, storage=tmp_path / "search.log", **{**SETTINGS, **change})
    other = vitas.evolve(model, score, storage=tmp_path / "search.log", name="another", **{**SETTINGS, **change})
    assert len(other.history) == 5 * change.get("population", 6)


def test_a_storage_of_other_weights_or_another_space_is_refused(model, tmp_path):
    vitas.evolve(model, score, storage=tmp_path / "search.log", **{**SETTINGS, "generations": 1})
    with pytest.raises(SearchError, match="differs in weights"):
        vitas.evolve(micro(seed=1), score, storage=tmp_path / "search.log", **SETTINGS)
    other = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1, mlp_dim=[48, 96, 192])
    with pytest.raises(SearchError, match="differs in search space"):
        vitas.evolve(other, score, storage=tmp_path / "search.log", **{**SETTINGS, "flops": None})
    law = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1, depth_p=[1, 2, 3, 4, 5, 6])
    law.load_state_dict(model.state_dict())
    with pytest.raises(SearchError, match="differs in search space"):  # the same networks, drawn otherwise
        vitas.evolve(law, score, storage=tmp_path / "search.log", **SETTINGS)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'own.db'}", study_name="vitas")
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(SearchError, match="evolve did not make the study"):
        vitas.evolve(model, score, storage=f"sqlite:///{tmp_path / 'own.db'}", **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generations": 0}, "generations"),
        ({"max_failures": 0}, "max_failures"),
        ({"stale_after": -1}, "stale_after"),
        ({"stale_after": math.nan}, "stale_after"),
        ({"name": ""}, "name: expected a string of 1 to 500 characters"),
        ({"name": "x" * 501}, "name: expected a string of 1 to 500 characters"),
        ({"name": "\ud800", "storage": "sqlite:///"}, "name: expected a string that UTF-8 can write, without NUL"),
        ({"name": "vi\0tas"}, "name: expected a string that UTF-8 can write, without NUL"),
        ({"storage": "\ud800"}, "expected None, a path or a URL, got"),
        ({"storage": "search\0.log"}, "expected None, a path or a URL, got"),
        ({"storage": "sqlite:///\ud800"}, "storage: the database cannot be opened"),
        ({"storage": 5}, "expected None, a path or a URL, got 5"),
        ({"storage": ""}, "expected None, a path or a URL"),
    ],
    ids=range(13),
)
def test_bad_settings_are_refused(model, settings, message):
    with pytest.raises(SearchError, match=message):
        vitas.evolve(model, score, **{**SETTINGS, **settings})
    with pytest.raises(SearchError, match="expected a function"):
        vitas.evolve(model, 0.5, **SETTINGS)


def test_files_that_are_no_journals_are_refused_and_stay_as_they_are(model, tmp_path):
    for number, content in enumerate([b"weights\n and more", b"\x80\x04", b'{"a": 1}\n', b"[1]\n"]):
        path = tmp_path / f"file{number}"
        path.write_bytes(content)
        with pytest.raises(FileError, match="is not a journal"):
            vitas.evolve(model, score, storage=path, **SETTINGS)
        assert path.read_bytes() == content
    with pytest.raises(FileError, match="there is no folder"):
        vitas.evolve(model, score, storage=tmp_path / "no" / "search.log", **SETTINGS)
    with pytest.raises(FileError, match="is not a file"):
        vitas.evolve(model, score, storage=tmp_path, **SETTINGS)
    with pytest.raises(FileError, match="cannot be opened"):
        vitas.evolve(model, score, storage=tmp_path / ("n" * 300), **SETTINGS)
    (tmp_path / "damaged").write_bytes(
        b'{"op_code":0,"worker_id":"a","study_name":"b","directions":[1]}\n}}}\n{"op_code":1}\n'
    )
    with pytest.raises(FileError, match="is damaged"):
        vitas.evolve(model, score, storage=tmp_path / "damaged", **SETTINGS)


def test_the_progress_bar_tells_one_rate_the_best_score_and_how_many_are_on_the_front(model, capfd):
    settings = {**SETTINGS, "progress": True}
    result = vitas.evolve(model, score, **settings)
    shown = capfd.readouterr().err
    assert "30/30" in shown
    assert f"best accuracy={made_up(result.best):.5g}" in shown
    last = re.split(r"[\r\n]+", shown.strip())[-1]
    assert last.count("/s") + last.count("s/") == 1
    assert "front=" not in last
    several = vitas.evolve(model, score, objectives={"accuracy": "max", "flops": "min"}, **settings)
    assert f"front={len(several.front)}" in capfd.readouterr().err


def test_suggest_subnet_asks_for_live_choices_only(model):
    space = vitas.search_space(model)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    subnets = []

    def objective(trial):
        subnets.append(vitas.suggest_subnet(trial, model))
        return made_up(subnets[-1])

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study.optimize(objective, n_trials=20)
    optuna.logging.set_verbosity(verbosity)
    assert all(subnet in space for subnet in subnets)
    assert [trial.params for trial in study.trials] == [dict(subnet) for subnet in subnets]
    assert len({subnet["depth"] for subnet in subnets}) > 3
    assert vitas.suggest_subnet(optuna.trial.FixedTrial(dict(space.smallest())), model) == space.smallest()
    with pytest.raises(vitas.VitasError, match=r"expected an optuna.Trial, got dict"):
        vitas.suggest_subnet({}, model)


# -- several processes, and processes that are killed ------------------------------------------------------------------

WORKERS = multiprocessing.get_context("forkserver") if sys.platform != "win32" else None


def work(storage, log, seconds, settings, meeting=None):
    """Search, and write down when an evaluation starts and ends; the first waits until all who meet have one."""
    torch.set_num_threads(1)
    model = micro()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    meetings = [meeting] if meeting else []

    def evaluate(model):
        if meetings:
            meetings.pop().wait(600)
        subnet = vitas.active_subnet(model)
        os.write(out, f"start {os.getpid()} {subnet.to_json()}\n".encode())
        time.sleep(random.uniform(*seconds))
        os.write(out, f"end {os.getpid()} {subnet.to_json()}\n".encode())
        return made_up(subnet)

    vitas.evolve(model, evaluate, storage=storage, **settings)


def start(*arguments):
    WORKERS.set_forkserver_preload(["vitas", "optuna", __name__])
    process = WORKERS.Process(target=work, args=arguments)
    process.start()
    return process


def counted(log, what):
    lines = Path(log).read_text().splitlines() if Path(log).exists() else []
    return Counter(line.split(" ", 2)[2] for line in lines if line.startswith(what))


@pytest.mark.skipif(WORKERS is None, reason="forkserver")
def test_three_processes_share_one_search_and_evaluate_nothing_twice(model, tmp_path):
    storage, log = str(tmp_path / "search.log"), str(tmp_path / "calls")
    settings = {**SETTINGS, "generations": 10}
    meeting = WORKERS.Barrier(3)
    workers = [start(storage, log, (0, 0.02), settings, meeting) for _ in range(3)]
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    ends = counted(log, "end")
    assert len(ends) == 60
    assert set(ends.values()) == {1}
    assert counted(log, "start") == ends
    assert len({line.split()[1] for line in Path(log).read_text().splitlines()}) == 3  # all three took part
    result = vitas.evolve(model, score, storage=storage, **settings)
    assert {evaluation.subnet for evaluation in result.history} == {vitas.Subnet.from_json(text) for text in ends}
    assert len(result.history) == 60


def kill_and_go_on(model, folder, times, seed):
    """Kill a lone worker at random moments and start it again; then compare with a search that was left alone."""
    rng = random.Random(seed)
    storage, log = str(folder / "search.log"), str(folder / "calls")
    settings = {**SETTINGS, "generations": 12}
    starts_before = 0
    for _ in range(times):
        worker = start(storage, log, (0, 0.004), settings)
        deadline = time.monotonic() + 600
        while sum(counted(log, "start").values()) <= starts_before and worker.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)  # until it works
        time.sleep(rng.uniform(0, 0.05))
        worker.kill()  # one that has just ended too
        worker.join()
        starts_before = sum(counted(log, "start").values())
    result = vitas.evolve(model, score, storage=storage, **settings)
    whole = vitas.evolve(model, score, **settings)
    assert told(result) == told(whole)
    repeated = sum(counted(log, "start").values()) - len(counted(log, "start"))
    assert repeated <= times  # only what was running, or had no result stored, when it was killed
    states = Counter(trial.state.name for trial in result.study.trials)
    assert states["COMPLETE"] == 72
    assert states["RUNNING"] == 0
    assert states["PRUNED"] <= times
    return states["PRUNED"]


@pytest.mark.skipif(WORKERS is None, reason="forkserver")
def test_killed_and_continued_it_is_the_same_search(model, tmp_path):
    kill_and_go_on(model, tmp_path, 2, seed=0)


@pytest.mark.heavy
@pytest.mark.skipif(WORKERS is None, reason="forkserver")
def test_killed_twenty_times_it_is_the_same_search(model, tmp_path):
    interrupted = 0
    for part in range(5):
        (tmp_path / str(part)).mkdir()
        interrupted += kill_and_go_on(model, tmp_path / str(part), 4, seed=part + 1)
    assert interrupted > 0


@pytest.mark.skipif(WORKERS is None, reason="forkserver")
def test_others_take_over_from_a_killed_worker(model, tmp_path):
    storage, log = str(tmp_path / "search.log"), str(tmp_path / "calls")
    victim = start(storage, log, (600, 600), SETTINGS)
    while not counted(log, "start"):
        assert victim.is_alive()
        time.sleep(0.01)
    victim.kill()
    victim.join()
    result = vitas.evolve(model, score, storage=storage, **SETTINGS)
    (left,) = counted(log, "start")
    assert vitas.Subnet.from_json(left) in result.scores
    assert told(result) == told(vitas.evolve(model, score, **SETTINGS))


def test_a_worker_elsewhere_is_waited_for_until_it_is_stale(model, tmp_path, monkeypatch):
    path = tmp_path / "search.log"
    monkeypatch.setattr("vitas.search.ledger._this_process", lambda: ("elsewhere", 1, "1"))
    with monkeypatch.context() as patch:
        patch.setattr("vitas.search.ledger.Ledger.withdraw", lambda *arguments: None)  # as if it had been killed
        vitas.evolve(model, interrupted_at_eight(), storage=path, **SETTINGS)
    monkeypatch.undo()
    calls = []

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        return made_up(calls[-1])

    result = vitas.evolve(model, evaluate, storage=path, stale_after=1.5, **SETTINGS)
    assert len(calls) == len(set(calls)) == 23  # 7 were done, and one ran elsewhere
    (left,) = [trial for trial in result.study.trials if trial.state.name == "PRUNED"]
    (again,) = [trial for trial in result.study.trials if trial.params == left.params and trial.number > left.number]
    assert again.state.name == "COMPLETE"
    assert (again.datetime_start - left.datetime_start).total_seconds() >= 1.4


def interrupted_at_eight():
    calls = []

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        if len(calls) == 8:
            raise KeyboardInterrupt
        return made_up(calls[-1])

    return evaluate


def test_stale_after_nought_means_that_there_is_no_other_worker(model, tmp_path, monkeypatch):
    path = tmp_path / "search.log"
    with monkeypatch.context() as patch:
        patch.setattr("vitas.search.ledger._this_process", lambda: ("elsewhere", 1, "1"))
        patch.setattr("vitas.search.ledger.Ledger.withdraw", lambda *arguments: None)
        vitas.evolve(model, interrupted_at_eight(), storage=path, **SETTINGS)
    result = vitas.evolve(model, score, storage=path, stale_after=0, **SETTINGS)
    assert told(result) == told(vitas.evolve(model, score, **SETTINGS))


def test_a_claim_of_a_higher_number_gives_way(model, tmp_path, monkeypatch):
    """Two workers that know the same want the same network: here the other one always claims first."""
    from vitas.search.ledger import Ledger

    path, others = tmp_path / "search.log", []
    claim = Ledger.claim

    def late(self, subnet, attrs):
        if len(others) < 5:
            others.append((self, claim(self, subnet, attrs)))
        return claim(self, subnet, attrs)

    monkeypatch.setattr(Ledger, "claim", late)
    calls = []

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        for ledger, trial_id in others:
            ledger.complete(trial_id, [1.0], {})
        return made_up(calls[-1])

    result = vitas.evolve(model, evaluate, storage=path, **SETTINGS)
    assert len(calls) == len(set(calls)) == 25
    assert len(result.history) == 30
    assert [trial.state.name for trial in result.study.trials].count("PRUNED") == 5


def test_the_last_network_is_the_one_that_was_claimed_first(model, tmp_path, monkeypatch):
    """Another worker claims and scores another network between our last look and our last claim."""
    from vitas.search.ledger import Ledger

    claim, ours, calls = Ledger.claim, [], []

    def late(self, subnet, attrs):
        ours.append(subnet)
        if len(ours) == 30:
            trial_id = claim(self, vitas.search_space(model).largest(), attrs)
            self.complete(trial_id, [0.0], {})
        return claim(self, subnet, attrs)

    def evaluate(model):
        calls.append(vitas.active_subnet(model))
        return made_up(calls[-1])

    monkeypatch.setattr(Ledger, "claim", late)
    result = vitas.evolve(model, evaluate, storage=tmp_path / "search.log", **SETTINGS)
    assert calls == ours[:29]
    assert [evaluation.subnet for evaluation in result.history] == [*calls, vitas.search_space(model).largest()]


def test_what_a_failed_evaluation_held_is_let_go_before_the_next_one(model):
    held = []

    class Activations:
        pass

    def evaluate(model):
        assert all(kept() is None for kept in held)
        activations = Activations()
        held.append(weakref.ref(activations))
        if len(held) < 4:
            raise RuntimeError("out of memory")
        return score(model)

    result = vitas.evolve(model, evaluate, **SETTINGS)
    assert [str(evaluation.error) for evaluation in result.history[:4]] == 3 * ["RuntimeError: out of memory"] + ["None"]


@pytest.mark.parametrize("where", [{"objectives": {"embed_dim": "max"}}, {"limits": {"embed_dim": 3}}, {}])
def test_a_score_with_the_name_of_a_choice_is_refused(model, where):
    with pytest.raises(SearchError, match="another name for 'embed_dim', which is a choice of the model"):
        vitas.evolve(model, lambda model: {"accuracy": 0.5, "embed_dim": 3.0}, **where, **SETTINGS)

"""What a search reads and writes of a study: only what is new, a network as one value, few statements."""

import itertools
import random
import sys

import pytest

import vitas
from tests.search.small import SETTINGS, score, small_model  # noqa: F401  # a fixture
from vitas.search import trials as trials_file
from vitas.search.ledger import Ledger
from vitas.search.storage import open_storage

optuna = pytest.importorskip("optuna")
pytest.importorskip("tqdm")
pytestmark = [pytest.mark.extras, pytest.mark.skipif(sys.platform == "win32", reason="flock")]


def joined(storage, name="vitas"):
    return Ledger(storage, name, {"x": "max"}, {"objectives": {"x": "max"}})


@pytest.mark.parametrize("place", ["memory", "journal", "sqlite", "sqlite, an older Optuna"])
def test_each_look_is_at_what_is_new_or_was_unfinished(tmp_path, monkeypatch, place):
    where = {"memory": None, "journal": tmp_path / "log"}.get(place, f"sqlite:///{tmp_path / 'a.db'}")
    if "older" in place:  # Optuna 4.0 cannot be asked for what has changed
        monkeypatch.setattr(trials_file, "_database_of", lambda storage: None)
    storage = open_storage(where)
    one, other = joined(storage), joined(storage if where is None else open_storage(where))
    ids = [one.claim(vitas.Subnet({"width": width}), {}) for width in (2, 4, 6)]
    assert [claim.trial_id for claim in other.news()] == ids
    one.complete(ids[1], [0.5], {})
    ids.append(one.claim(vitas.Subnet({"width": 8}), {}))
    with monkeypatch.context() as patch:
        if "sqlite" not in place or other._reader._database is not None:
            patch.setattr(other.storage, "get_all_trials", lambda *given, **options: pytest.fail("reads all"))
        news = [(claim.trial_id, claim.number, claim.state, dict(claim.params)) for claim in other.news()]
    assert news == [(ids[1], 1, "COMPLETE", {"width": 4}), (ids[3], 3, "RUNNING", {"width": 8})]
    assert list(other.news()) == []
    one.withdraw_own()
    assert [(claim.number, claim.state) for claim in other.news()] == [(0, "PRUNED"), (2, "PRUNED"), (3, "PRUNED")]


def test_the_trials_of_another_study_of_the_database_are_not_read(tmp_path):
    where = f"sqlite:///{tmp_path / 'a.db'}"
    one, other = (joined(open_storage(where), name) for name in ("one", "other"))
    watching = joined(open_storage(where), "one")
    ids = {1: one.claim(vitas.Subnet({"width": 1}), {})}
    assert [claim.params for claim in watching.news()] == [{"width": 1}]
    for width in (3, 5, 7):
        assert other.claim(vitas.Subnet({"width": width - 1}), {}) > max(ids.values())
        ids[width] = one.claim(vitas.Subnet({"width": width}), {})
        one.complete(ids[width - 2], [0.5], {})
        news = [(claim.params["width"], claim.state) for claim in watching.news()]
        assert news == [(width - 2, "COMPLETE"), (width, "RUNNING")]


def test_a_search_whose_networks_are_parameters_goes_on(model, tmp_path):
    """As earlier versions wrote them."""
    whole = vitas.evolve(model, score, storage=tmp_path / "whole.log", **SETTINGS)
    half = {**SETTINGS, "generations": 1}
    there = vitas.evolve(model, score, storage=tmp_path / "half.log", **half).study
    facts = there.user_attrs
    old = optuna.create_study(study_name="vitas", storage=open_storage(tmp_path / "old.log"), direction="maximize")
    for key, value in facts.items():
        old.set_user_attr(key, value)
    old.add_trials(there.trials)
    stored = optuna.load_study(study_name="vitas", storage=open_storage(tmp_path / "old.log")).trials
    assert all(trial.params and "subnet" not in trial.user_attrs for trial in stored)
    result = vitas.evolve(model, score, storage=tmp_path / "old.log", **SETTINGS)
    assert [(e.subnet, dict(e.scores)) for e in result.history] == [(e.subnet, dict(e.scores)) for e in whole.history]
    assert [trial.params for trial in result.study.trials] == [dict(e.subnet) for e in whole.history]
    assert vitas.load_search(tmp_path / "old.log").best == whole.best


def test_the_copy_of_a_study_is_drawn_by_optuna(model, tmp_path):
    result = vitas.evolve(model, score, storage=tmp_path / "log", limits={"flops": 1e9}, **SETTINGS)
    stored = optuna.load_study(study_name="vitas", storage=open_storage(tmp_path / "log"))
    assert [trial.user_attrs["subnet"] for trial in stored.trials] == [dict(e.subnet) for e in result.history]
    assert not any(trial.params for trial in stored.trials)
    study = result.study
    assert [trial.params for trial in study.trials] == [trial.user_attrs["subnet"] for trial in stored.trials]
    assert [trial.values for trial in study.trials] == [trial.values for trial in stored.trials]
    assert study.best_params == dict(result.best)
    assert study.metric_names == ["accuracy"]
    assert study.trials[0].system_attrs["constraints"] == stored.trials[0].system_attrs["constraints"]
    assert set(optuna.importance.get_param_importances(study, params=["embed_dim", "depth"])) == {"embed_dim", "depth"}


def test_a_trial_takes_few_statements_however_many_choices_there_are(model, tmp_path):
    sqlalchemy = pytest.importorskip("sqlalchemy")
    counted, marks = [], []

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
    def count(*given):
        counted.append(None)

    def evaluate(model):
        marks.append(len(counted))
        return random.random()

    try:
        vitas.evolve(model, evaluate, storage=f"sqlite:///{tmp_path / 'a.db'}", **SETTINGS)
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", count)
    each = {after - before for before, after in itertools.pairwise(marks[1:])}
    assert max(each) <= 30

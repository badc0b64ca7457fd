"""A search that is looked at, begun anew, or met by another model."""

import contextlib
import json
import math

import pytest
import torch

from vitas import create_superformer, evolve, load_search, search_space
from vitas.errors import FileError, SearchError, VitasError

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.extras


def micro(seed=0):
    torch.manual_seed(seed)
    return create_superformer("deit_micro", img_size=8, in_chans=1, num_classes=3, depth=[1, 2])


def width(model):
    active = search_space(model).active()
    if active["embed_dim"] == 64:
        raise RuntimeError("not this one")
    return {"accuracy": active["embed_dim"] / 100, "seen": 1.0}


OPTIONS = {"population": 3, "generations": 2, "progress": False}


def test_a_search_is_opened_without_a_model(tmp_path):
    path = tmp_path / "log"
    result = evolve(micro(), width, flops="60%", limits={"seen": (None, 2)}, storage=path, **OPTIONS)
    before = path.read_bytes()
    opened = load_search(path)
    assert path.read_bytes() == before
    assert [(e.subnet, dict(e.scores), e.error) for e in opened.history] == [
        (e.subnet, dict(e.scores), e.error) for e in result.history
    ]
    assert opened.best == result.best
    assert opened.windows == result.windows
    assert opened.objectives == {"accuracy": "max"}
    assert opened.space is None
    assert repr(opened) == repr(result)
    assert opened.hypervolume == result.hypervolume
    assert len(opened.to_pandas()) == 6
    assert len(opened.study.trials) == 6


def test_a_limit_without_bounds_is_opened_too(tmp_path):
    result = evolve(micro(), width, limits={"seen": (None, math.inf)}, storage=tmp_path / "log", **OPTIONS)
    assert load_search(tmp_path / "log").best == result.best


def test_a_running_search_is_left_alone(tmp_path):
    path = tmp_path / "log"
    seen = []

    def evaluate(model):
        seen.append(len(load_search(path).history))
        return 0.5

    result = evolve(micro(), evaluate, storage=path, **OPTIONS)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert len(result.history) == 6


def test_what_is_no_search_is_refused(tmp_path):
    path = tmp_path / "log"
    for url in (f"sqlite:///{tmp_path}/none.db", f"sqlite+pysqlite:///{tmp_path}/none.db?timeout=5"):
        with pytest.raises(FileError, match=r"storage: there is no file '.*none\.db'"):
            load_search(url)
    assert not any(tmp_path.iterdir())  # nothing is made by looking
    with pytest.raises(FileError, match="storage: there is no file"):
        load_search(path)
    assert not path.exists()
    evolve(micro(), width, storage=path, name="widths", **OPTIONS)
    with pytest.raises(SearchError, match=r"no search of that name: expected widths, got 'width' \(nearest: widths\)"):
        load_search(path, "width")
    with pytest.raises(SearchError, match="expected the path or URL of a search, got None"):
        load_search(None)
    memory = optuna.storages.InMemoryStorage()
    with pytest.raises(SearchError, match="storage: no search in it, looked for 'vitas'"):
        load_search(memory)
    optuna.create_study(storage=memory, study_name="vitas").add_trial(optuna.trial.create_trial(value=1.0))
    for look in (lambda: load_search(memory), lambda: evolve(micro(), width, storage=memory, restart=True, **OPTIONS)):
        with pytest.raises(SearchError, match="evolve did not make the study 'vitas' that is there: pass another name="):
            look()


def test_another_model_is_told_the_way_out_and_takes_it(tmp_path):
    options = {**OPTIONS, "storage": tmp_path / "log"}
    first = evolve(micro(), width, **options)
    evolve(micro(), width, name="kept", **options)
    with pytest.raises(SearchError) as caught:
        evolve(micro(seed=1), width, **options)
    said = "storage: there is the search 'vitas' of another model: it differs in weights; pass name= or restart=True"
    assert str(caught.value) == said
    with pytest.raises(SearchError, match=r"there is the search 'vitas': it differs in seed \(0, here 3\); pass name= or"):
        evolve(micro(), width, seed=3, **options)
    again = evolve(micro(seed=1), width, restart=True, **options)
    assert len(again.history) == len(first.history) == 6
    assert len(load_search(tmp_path / "log").history) == 6
    assert len(load_search(tmp_path / "log", "kept").history) == 6  # of another name, left alone
    assert evolve(micro(seed=1), width, **options).scores == again.scores  # and the new one goes on


def test_restart_begins_anew_also_where_nothing_is(tmp_path):
    assert len(evolve(micro(), width, restart=True, storage=tmp_path / "log", **OPTIONS).history) == 6
    assert len(evolve(micro(), width, restart=True, **OPTIONS).history) == 6  # in memory
    with pytest.raises(VitasError, match="restart: expected True or False, got 'yes'"):
        evolve(micro(), width, restart="yes", **OPTIONS)


def test_a_database_is_opened_too(tmp_path):
    url = f"sqlite:///{tmp_path}/search.db"
    evolve(micro(), width, storage=url, **OPTIONS)
    with pytest.raises(SearchError, match="of another model"):
        evolve(micro(seed=1), width, storage=url, **OPTIONS)
    evolve(micro(seed=1), width, storage=url, restart=True, **OPTIONS)
    found = load_search(url)
    assert len(found.history) == 6
    assert json.loads(found.best.to_json()) == dict(found.best)


def test_a_search_that_was_begun_anew_is_read_again_from_the_file(tmp_path):
    model, settings = micro(), {**OPTIONS, "storage": tmp_path / "log"}
    evolve(model, lambda m: 0.0, name="other", **settings)
    evolve(model, lambda m: 1.0, **settings)
    evolve(model, lambda m: 2.0, restart=True, **settings)
    again = evolve(model, lambda m: 3.0, **{**settings, "generations": 3})  # reads what the removal left
    assert [evaluation.scores["accuracy"] for evaluation in again.history] == [2.0] * 6 + [3.0] * 3
    assert len(load_search(tmp_path / "log").history) == 9


STATED = ("objectives", "limits", "budget", "population")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    path = tmp_path_factory.mktemp("searched") / "good.log"
    again = {"population": 2, "generations": 1, "progress": False, "limits": {"size": (None, 9)}, "flops": "90%"}
    model = micro()
    evolve(model, lambda _: {"accuracy": 0.5, "size": 3}, storage=path, **again)
    return path, lambda bad: evolve(model, lambda _: {"accuracy": 0.5, "size": 3}, storage=bad, **again)


@pytest.mark.parametrize("where", [*STATED, "facts", "scores", "subnet", "claim", "values"])
def test_what_no_search_has_written_is_told_in_our_words(where, searched, tmp_path):
    good, again = searched
    for value in (None, "x", {"a": 1}, {"x\x1b": [None]}):
        lines = [json.loads(line) for line in good.read_text().splitlines()]
        for line in lines:
            attrs = line.get("user_attr", line.get("user_attrs", {}))
            for name, facts in attrs.items():
                if name.startswith("vitas ") and where in STATED:
                    facts[where] = value
                elif name == where or (name.startswith("vitas ") and where == "facts"):
                    attrs[name] = value
            if line["op_code"] == 6 and where == "values":
                line["values"] = value
        (tmp_path / "bad.log").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        for look in (load_search, again):
            with contextlib.suppress(VitasError):  # and nothing else
                found = look(tmp_path / "bad.log")
                repr(found), found.front, found.hypervolume
        with pytest.raises(FileError, match="there is no file"):
            load_search("n" * 5000)

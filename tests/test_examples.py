"""Every public function and class has an example in its docstring, and the examples run."""

import doctest
import inspect
from types import SimpleNamespace

import pytest
import torch

import vitas
from tests.clock import count_for_time

PUBLIC = {name: it for name in vitas.__all__ if not inspect.ismodule(it := getattr(vitas, name))}
EXTRAS = {
    "optuna": {"evolve", "load_search", "SearchResult", "suggest_subnet", "compress", "Compressed", "cross_entropy"},
    "tqdm": {"compress", "Compressed"},
    "timm": {"wrap", "check_records", "export_report", "register", "compress", "Compressed"},
    "huggingface_hub": {"push_to_hub"},
}


def example_of(name):
    globs = {"vitas": vitas, "torch": torch}
    return doctest.DocTestParser().get_doctest(inspect.getdoc(PUBLIC[name]), globs, name, None, None)


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_has_an_example(name):
    sources = [example.source for example in example_of(name).examples]
    assert sources
    assert not any("SKIP" in source for source in sources)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.extras] if any(name in names for names in EXTRAS.values()) else [])
        for name in PUBLIC
    ],
)
def test_the_example_runs_as_it_stands(name, tmp_path, monkeypatch):
    for package, names in EXTRAS.items():
        if name in names:
            pytest.importorskip(package)
    if name == "push_to_hub":
        _without_a_connection(monkeypatch)
    if name == "latency_table":
        count_for_time(monkeypatch)  # its budget is a share of a measured time
    monkeypatch.chdir(tmp_path)
    said = []
    doctest.DocTestRunner().run(example_of(name), out=said.append)
    assert not said, "".join(said)


def _without_a_connection(monkeypatch):
    """The hub of Hugging Face takes everything; what it is sent is looked at in tests/export/test_hub.py."""

    class Hub:
        def __init__(self, token):
            pass

        def create_repo(self, repo_id, **options):
            return SimpleNamespace(repo_id=repo_id)

        def file_exists(self, *names, revision):
            return False

        def upload_folder(self, **options):
            pass

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)

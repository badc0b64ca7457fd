"""A real PostgreSQL server, set up as docs/many_machines.md says."""

import re
import shlex
import tempfile
from pathlib import Path

import pytest
import torch

import vitas
from tests.postgres import binaries, postgres
from vitas.search.storage import open_storage

pytest.importorskip("optuna")
pytest.importorskip("tqdm")
pytest.importorskip("psycopg")
pytestmark = [
    pytest.mark.extras,
    pytest.mark.heavy,
    pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed"),
]

PAGE = Path(__file__).parents[2] / "docs" / "many_machines.md"
PASSWORD = "a b:c@d/e%"


def commands():
    """Return the lines of the page that a user types as the server's first user."""
    lines = re.findall(r"^sudo -u postgres (.*?)(?:\s+#.*)?$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_the_page_works_as_written(monkeypatch):
    torch.manual_seed(0)
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)  # the server may run as another user
        with postgres(Path(temporary) / "server") as server:
            for command in commands():
                server.run(*command, typed=f"{PASSWORD}\n{PASSWORD}\n")
            url = f"postgresql+psycopg://vitas@127.0.0.1:{server.port}/vitas"
            settings = {"population": 4, "generations": 3, "progress": False, "name": "first try"}
            with pytest.raises(vitas.VitasError, match=r"storage: the database cannot be opened: .*no passw"):
                vitas.evolve(model, score, storage=url, **settings)
            monkeypatch.setenv("PGPASSWORD", PASSWORD)
            opened = [open_storage(url), open_storage(url)]
            result = vitas.evolve(model, score, storage=opened[0], **settings)
            connections = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'vitas'"
            assert server.run("psql", "-Atc", connections, "postgres").strip() == "2"  # one for each that is open
            stored = vitas.load_search(opened[1], "first try")
            assert [trial.params for trial in result.study.trials] == [dict(e.subnet) for e in result.history]
            for storage in opened:
                storage._backend.engine.dispose()
    in_memory = vitas.evolve(model, score, **settings)
    for found in (result, stored):
        assert [(e.subnet, dict(e.scores)) for e in found.history] == [(e.subnet, dict(e.scores)) for e in in_memory.history]


def score(model):
    return float(sum(vitas.active_subnet(model).values()))

"""A storage behind a server: `python -m vitas serve` and `grpc://host:port`."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

import vitas
from vitas.errors import SearchError
from vitas.search import storage

optuna = pytest.importorskip("optuna")
pytest.importorskip("tqdm")
pytestmark = [pytest.mark.extras, pytest.mark.skipif(sys.platform == "win32", reason="flock")]

SETTINGS = {"population": 4, "generations": 3, "progress": False}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("url", ["grpc://", "grpc://server", "grpc://:13000", "grpc://server:port"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(SearchError, match="storage: expected grpc://host:port"):
        storage.open_storage(url)


def test_where_nobody_answers_one_line_says_so(monkeypatch):
    pytest.importorskip("grpc")
    monkeypatch.setattr(storage, "OPENS_WITHIN", 0.2)
    with pytest.raises(SearchError, match="no server answers at"):
        storage.open_storage(f"grpc://127.0.0.1:{free_port()}")


def test_addresses_of_ipv6_stand_in_brackets():
    assert storage.address("::1", 50051) == storage.address("[::1]", 50051) == "[::1]:50051"
    assert storage.address("server", 13000) == "server:13000"


def test_an_outage_while_a_search_opens_is_one_line(monkeypatch):
    pytest.importorskip("grpc")
    from optuna.storages import GrpcStorageProxy

    monkeypatch.setattr("vitas.search.load.OPENS_WITHIN", 0.0)
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        away = GrpcStorageProxy(host="localhost", port=free_port())
    for opens in (
        lambda: vitas.evolve(model, score, storage=away, storage_timeout=0, **SETTINGS),
        lambda: vitas.evolve(model, score, storage=away, storage_timeout=0, restart=True, **SETTINGS),
        lambda: vitas.load_search(away),
    ):
        with pytest.raises(SearchError, match=r"^storage: out of reach for 0 s \(.*\); the same call goes on$") as caught:
            opens()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) <= 160


def test_an_error_of_grpc_is_told_by_its_details_where_it_has_some():
    grpc = pytest.importorskip("grpc")

    class Told(grpc.RpcError):
        def __init__(self, details):
            super().__init__("text")
            self.details = details

    for error in (grpc.FutureTimeoutError("text"), grpc.RpcError("text"), Told(lambda: None), Told("details")):
        assert storage._first_cause(error, None) == "text"
    assert storage._first_cause(Told(lambda: "details"), None) == "details"


def test_a_server_of_ipv6_is_reached():
    pytest.importorskip("grpc")
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    from optuna.storages import InMemoryStorage
    from optuna.storages._grpc.server import make_server

    port = free_port()
    try:
        server = make_server(InMemoryStorage(), storage.address("::1", port).rpartition(":")[0], port)
    except RuntimeError:
        pytest.skip("no IPv6")
    server.start()
    try:
        opened = storage.open_storage(f"grpc://[::1]:{port}")
        assert opened.get_all_studies() == []
        opened.close()
    finally:
        server.stop(None).wait()


def test_without_grpcio_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(SearchError, match="grpc:// needs grpcio"):
        storage.open_storage("grpc://server:13000")


@pytest.mark.heavy
def test_a_search_by_way_of_a_server_is_the_same(tmp_path):
    pytest.importorskip("grpc")
    torch.manual_seed(0)
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)
    port, path = free_port(), tmp_path / "search.log"
    command = [sys.executable, "-m", "vitas", "serve", str(path), "--host", "127.0.0.1", "--port", str(port)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are started to ignore it
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert f"grpc://127.0.0.1:{port} serves {path}" in server.stdout.readline()
            result = vitas.evolve(model, score, storage=f"grpc://127.0.0.1:{port}", **SETTINGS)
            beside = vitas.load_search(f"grpc://127.0.0.1:{port}")
            os.kill(server.pid, signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
            signal.signal(signal.SIGINT, before)
    alone = vitas.evolve(model, score, **SETTINGS)
    for found in (result, beside, vitas.load_search(path)):
        assert [(e.subnet, dict(e.scores)) for e in found.history] == [(e.subnet, dict(e.scores)) for e in alone.history]


def score(model):
    return float(sum(vitas.active_subnet(model).values()))

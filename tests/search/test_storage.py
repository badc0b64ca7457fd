"""The journal: what killed writers leave behind, and the lock."""

import copy
import json
import os
import signal
import subprocess
import sys
import time

import pytest

import vitas
from vitas.errors import FileError, SearchError
from vitas.search import ledger as ledger_file
from vitas.search import storage
from vitas.search.ledger import Ledger, _start_of, _this_process
from vitas.search.storage import FileLock, open_storage

optuna = pytest.importorskip("optuna")
pytestmark = [pytest.mark.extras, pytest.mark.skipif(sys.platform == "win32", reason="flock")]

FACTS = {"objectives": {"score": "max"}}


def ledger(path):
    return Ledger(open_storage(path), "vitas", {"score": "max"}, FACTS)


def claimed(path, width):
    return ledger(path).claim(vitas.Subnet({"width": width}), {})


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_cut_before_the_next_is_written(tmp_path, kept):
    path = tmp_path / "search.log"
    first = ledger(path)
    trial_id = first.claim(vitas.Subnet({"width": 4}), {})
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:kept])  # a worker died in the middle of a line, while we are at work
    first.complete(trial_id, [0.5], {})
    for line in path.read_bytes().splitlines():
        json.loads(line)
    assert path.read_bytes().startswith(whole)
    path.write_bytes(path.read_bytes() + b'{"op_code":4,"worker')  # and once more before we open it
    claims = list(ledger(path).news())
    assert [(claim.state, dict(claim.params), claim.values) for claim in claims] == [("COMPLETE", {"width": 4}, [0.5])]
    claimed(path, 6)
    assert [claim.params["width"] for claim in ledger(path).news()] == [4, 6]


def test_a_torn_first_line_is_cut_too(tmp_path):
    path = tmp_path / "search.log"
    path.write_bytes(b'{"op_code":0,"wor')
    claimed(path, 2)
    assert [claim.params["width"] for claim in ledger(path).news()] == [2]


def test_a_killed_process_leaves_no_lock(tmp_path):
    path = tmp_path / "search.log"
    path.touch()
    code = (
        "import time; from vitas.search.storage import FileLock\n"
        f"lock = FileLock({str(path)!r}); lock.acquire(); print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    import fcntl

    with path.open("rb+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free at once
    lock = FileLock(str(path))
    assert lock.acquire()
    lock.release()
    assert [entry.name for entry in tmp_path.iterdir()] == ["search.log"]


def test_a_process_is_known_by_when_it_started():
    machine, pid, started = _this_process()
    assert (machine, pid) == (_this_process()[0], os.getpid())
    assert _start_of(pid) == started != ""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert _start_of(child.pid) not in ("", started)
    child.communicate(b"\n")
    assert _start_of(child.pid) == ""


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="/proc")
def test_a_process_that_nobody_has_waited_for_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays in the table of processes
    assert _start_of(child.pid) == ""
    child.communicate()


def test_whose_claims_are_given_up(tmp_path, monkeypatch):
    """Never one's own; those of processes that are gone; others' when they are old: 10 evaluations, at least a minute."""
    path, now = tmp_path / "search.log", time.monotonic()
    monkeypatch.setattr(storage.time, "monotonic", lambda: now)
    monkeypatch.setattr(storage.time, "time", lambda: now)  # what other machines' clocks say does not count

    def states():
        return [claim.state for claim in ledger(path).news()]

    def after(seconds, stale_after=None, longest=2.0):
        list(here.news())
        here.longest = longest
        monkeypatch.setattr(storage.time, "monotonic", lambda: now + seconds)
        here.withdraw_dead(stale_after)
        return states()

    here, alive = ledger(path), ledger(path)
    alive._process = ("elsewhere", 1, "1")
    here.claim(vitas.Subnet({"width": 2}), {})
    alive.claim(vitas.Subnet({"width": 4}), {})
    assert after(50) == ["RUNNING", "RUNNING"]
    assert after(99, longest=10.0) == ["RUNNING", "RUNNING"]
    assert after(10**9, longest=0.0) == ["RUNNING", "RUNNING"]  # no evaluation has ended: nobody knows how long one takes
    assert after(61) == ["RUNNING", "PRUNED"]
    alive.claim(vitas.Subnet({"width": 6}), {})
    assert after(61, stale_after=0) == ["RUNNING", "PRUNED", "PRUNED"]
    dead = ledger(path)
    dead._process = (*dead._process[:2], "another start")
    dead.claim(vitas.Subnet({"width": 6}), {})
    assert after(61) == ["RUNNING", "PRUNED", "PRUNED", "PRUNED"]


def test_a_worker_that_stops_gives_up_what_it_has_not_done_and_nothing_of_others(tmp_path):
    path = tmp_path / "search.log"
    here, other = ledger(path), ledger(path)
    done = here.claim(vitas.Subnet({"width": 2}), {})
    here.complete(done, [0.5], {})
    other.claim(vitas.Subnet({"width": 4}), {})
    here.claim(vitas.Subnet({"width": 6}), {})
    here.withdraw_own()
    assert [claim.state for claim in other.news()] == ["COMPLETE", "RUNNING", "PRUNED"]


def test_what_was_given_up_stays_given_up(tmp_path):
    path = tmp_path / "search.log"
    slow, other = ledger(path), ledger(path)
    trial_id = slow.claim(vitas.Subnet({"width": 4}), {})
    other.withdraw(trial_id)
    slow.complete(trial_id, [0.5], {"more": 1})  # it was only slow: its result comes too late
    assert [(claim.number, claim.state) for claim in ledger(path).news()] == [(0, "PRUNED")]


def test_an_evaluation_that_failed_says_how_long_one_takes_too(tmp_path):
    searched = ledger(tmp_path / "search.log")
    trial_id = searched.claim(vitas.Subnet({"width": 4}), {})
    time.sleep(0.05)
    searched.fail(trial_id, "no memory")
    list(searched.news())
    assert searched.longest >= 0.05


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", ["get_study_user_attrs", "get_all_trials"])
def test_another_worker_may_state_its_facts_and_claim_while_we_look(tmp_path, monkeypatch, look):
    """It does all of that right after one of our looks at the study."""
    path = tmp_path / "search.log"
    slow = open_storage(path)
    real, quick = getattr(slow, look), []

    def then_the_other(*arguments, **options):
        seen = copy.copy(real(*arguments, **options))
        if not quick:
            quick.append(claimed(path, 4))
        return seen

    monkeypatch.setattr(slow, look, then_the_other)
    joined = Ledger(slow, "vitas", {"score": "max"}, FACTS)
    assert [claim.params["width"] for claim in joined.news()] == [4]


@pytest.mark.parametrize("failures", [3, 9])
def test_a_study_that_two_workers_make_at_once_is_tried_again(monkeypatch, failures):
    pauses, tried = [], []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)

    def open_study(*arguments):
        tried.append(arguments)
        if len(tried) <= failures:
            raise optuna.exceptions.StorageInternalError("deadlock")
        return optuna.create_study(study_name="vitas", storage=arguments[0])

    monkeypatch.setattr(ledger_file, "_open_study", open_study)
    if failures == 3:
        Ledger(open_storage(None), "vitas", {"score": "max"}, FACTS)
        assert len(tried) == 4
        assert pauses == sorted(pauses)
    else:
        with pytest.raises(SearchError, match=r"out of reach for 0 s \(deadlock\)"):
            Ledger(open_storage(None), "vitas", {"score": "max"}, FACTS)
        assert len(tried) == 5


@pytest.mark.parametrize(
    "url", ["postgresl://host/db", "sqlite://no/file.db", "://", "redis://host", "sqlite:////no/file.db"]
)
def test_a_database_that_cannot_be_opened_is_refused(monkeypatch, url):
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    with pytest.raises(SearchError, match=r"storage: the database cannot be opened: .+"):
        open_storage(url)


def test_a_file_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.os, "access", lambda path, mode: False)  # the superuser may write anywhere
    with pytest.raises(FileError, match=r"search\.log cannot be written"):
        open_storage(tmp_path / "search.log")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("server:13000", "'server:13000' is an address and no file: write grpc:// before it"),
        ("10.0.0.1:13000", "write grpc:// before it"),
        ("[::1]:13000", "write grpc:// before it"),
        ("sqlite:/search.db", "a URL has .://., as in sqlite:///file.db"),
        ("postgres://name@server/vitas", r"write postgresql\+psycopg://"),
    ],
)
def test_what_was_meant_to_be_an_address_makes_no_file(where, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SearchError, match=message):
        open_storage(where)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_caller_is_no_cause_of_a_database():
    try:
        {}["checkpoint"]
    except KeyError:
        with pytest.raises(SearchError, match="cannot be opened: unable to open database file"):
            open_storage("sqlite:////no/such/folder/search.db")

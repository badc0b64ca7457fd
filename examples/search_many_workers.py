"""Two processes share one search through a PostgreSQL server; one is killed in the middle, and nothing is lost.

    python examples/search_many_workers.py

Starts a server of its own in a temporary folder and stops it at the end (Debian and Ubuntu: apt install postgresql; driver:
pip install "psycopg[binary]"). Where there is none it says so and uses a journal file. On several machines every one makes
the same call of `vitas.evolve` with the same URL: see docs/many_machines.md.
"""

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import vitas

SETTINGS = {"flops": ("40%", "60%"), "population": 20, "generations": 6}


def search(storage: str, log: str, progress: bool = False) -> vitas.SearchResult:
    """Search as a worker does; write every evaluation into a file, to be counted afterwards."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # all workers hold the same weights: the storage refuses others
    model = vitas.create_superformer("deit_micro", num_classes=10, img_size=8, in_chans=1).eval()
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))
    journal = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def evaluate(model: torch.nn.Module) -> float:
        text = vitas.active_subnet(model).to_json()
        os.write(journal, f"start {os.getpid()} {text}\n".encode())
        time.sleep(0.05)  # a real evaluation takes longer than this untrained one
        with torch.no_grad():
            accuracy = (model(images).argmax(dim=1) == labels).double().mean().item()
        os.write(journal, f"end {os.getpid()} {text}\n".encode())
        return accuracy

    return vitas.evolve(model, evaluate, storage=storage, progress=progress, **SETTINGS)


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str | None]:
    """Run a PostgreSQL server of our own; yield its URL, None where PostgreSQL or a driver is not installed."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    found = shutil.which("pg_ctl", path=os.pathsep.join([*programs[::-1], os.environ.get("PATH", "")]))
    try:
        import psycopg  # noqa: F401
    except ImportError:
        found = None
    if found is None:
        print("PostgreSQL or its driver psycopg is not installed: a journal file takes its place")
        yield None
        return
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        user = next(name for name in ("postgres", "nobody") if any(entry.pw_name == name for entry in pwd.getpwall()))
        os.chmod(folder.parent, 0o755)
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    data, binaries = str(folder / "cluster"), Path(found).parent
    run(str(binaries / "initdb"), "-D", data, "-U", "vitas", "-A", "trust", "--no-sync")
    listen = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -p {port}"
    run(found, "-D", data, "-w", "-l", str(folder / "server.log"), "-o", listen, "start")
    try:
        yield f"postgresql+psycopg://vitas@127.0.0.1:{port}/postgres"
    finally:
        run(found, "-D", data, "-w", "-m", "fast", "stop")


def start_worker(storage: str, log: Path) -> subprocess.Popen[bytes]:
    """Start this file as a worker."""
    return subprocess.Popen([sys.executable, __file__, storage, str(log)])


def lines(log: Path, what: str) -> list[str]:
    """Return the subnets of the evaluations that were started or ended."""
    text = log.read_text() if log.exists() else ""
    return [line.split(" ", 2)[2] for line in text.splitlines() if line.startswith(what)]


def main() -> None:
    """Start two workers, kill one, let the other finish, count."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "postgres"
        folder.mkdir()
        log = Path(temporary) / "evaluations"
        with postgres(folder) as url:
            storage = url if url is not None else str(Path(temporary) / "search.log")
            print(f"storage: {storage}")
            workers = [start_worker(storage, log) for _ in range(2)]
            while len(lines(log, "end")) < 30:
                time.sleep(0.05)
                if any(worker.poll() not in (None, 0) for worker in workers):
                    raise RuntimeError("a worker failed")
            workers[0].send_signal(signal.SIGKILL)
            workers[0].wait()
            print(f"killed worker {workers[0].pid} after {len(lines(log, 'end'))} evaluations")
            if workers[1].wait() != 0:
                raise RuntimeError("the other worker failed")
            result = search(storage, str(log))  # the search is done: this only reads
            started, ended = lines(log, "start"), lines(log, "end")
            print(result)
            print(f"{len(result.history)} networks have a score, {len(set(ended))} were evaluated")
            print(f"evaluations started twice, all of them cut off by the kill: {len(started) - len(set(started))}")
            total = SETTINGS["population"] * SETTINGS["generations"]
            if len(result.history) != total or len(ended) - len(set(ended)) > 1:
                raise RuntimeError("something was lost or done twice")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        search(sys.argv[1], sys.argv[2])
    else:
        main()

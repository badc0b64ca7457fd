"""What a trial of a search costs besides its evaluation, on each storage, and how many trials many workers do.

python tests/benchmarks/search_overhead.py [--trials 1000 5000 20000] [--storages memory journal sqlite postgres grpc]
python tests/benchmarks/search_overhead.py --workers 1 2 4 8 --storages journal postgres grpc [--sleep 2 --space deit_micro]

The first form searches `vitas_deit`, 51 choices, with one worker and prints CPU milliseconds a trial, those of the last
tenth, and the seconds that it takes to open the search again. The second starts processes that share a search and whose
evaluations sleep; it counts trials a second, networks evaluated twice and results lost.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vitas

STORAGES = ["memory", "journal", "sqlite", "postgres", "grpc"]
BUDGETS = {"vitas_deit": (0.9e9, 1e9)}


@contextlib.contextmanager
def storage(kind: str, folder: Path) -> Iterator[Any]:
    """Yield what `evolve` takes as `storage`, in an empty folder."""
    if kind == "postgres":
        from tests.postgres import postgres

        with postgres(folder / "server") as server:
            server.run("createuser", "--superuser", "vitas")
            server.run("createdb", "--owner", "vitas", "vitas")
            yield f"postgresql+psycopg://vitas@/vitas?host={folder / 'server'}&port={server.port}"
    elif kind == "grpc":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "vitas", "serve", str(folder / "log"), "--host", "127.0.0.1", "--port", str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            server.stdout.readline()
            yield f"grpc://127.0.0.1:{port}"
            os.kill(server.pid, signal.SIGINT)
    else:
        yield {"memory": None, "journal": folder / "log", "sqlite": f"sqlite:///{folder / 'search.db'}"}[kind]


def one_worker(model: Any, where: Any, trials: int, settings: dict[str, Any]) -> str:
    """Search with one worker; return what a trial took."""
    space = vitas.search_space(model)
    marks: list[float] = []

    def evaluate(_: Any) -> float:
        marks.append(time.process_time())
        return float(space.choices["embed_dim"].active)

    vitas.evolve(model, evaluate, storage=where, population=50, generations=trials // 50, **settings)
    tenth = max(1, len(marks) // 10)
    each, last = (marks[-1] - marks[0]) / (len(marks) - 1), (marks[-1] - marks[-1 - tenth]) / tenth
    line = f"{trials:>6} trials: CPU {1e3 * each:6.2f} ms a trial, {1e3 * last:6.2f} ms in the last tenth"
    if where is None:
        return line
    start = time.process_time()
    vitas.load_search(where)
    return f"{line}, opened in {time.process_time() - start:.2f} s"


def many_workers(model: Any, where: Any, workers: int, trials: int, sleep: float, folder: Path, settings: Any) -> str:
    """Search with several processes; return how many trials they did."""
    log = os.open(folder / "evaluated", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def evaluate(model: Any) -> float:
        time.sleep(sleep)
        os.write(log, f"{time.time()} {vitas.active_subnet(model).to_json()}\n".encode())
        return sum(vitas.active_subnet(model).values())

    settings = {**settings, "storage": where, "population": 50, "generations": -(-trials // 50)}
    children = []
    for _ in range(workers):
        if not (child := os.fork()):
            vitas.evolve(model, evaluate, **settings)
            os._exit(0)
        children.append(child)
    used = [os.wait4(child, 0) for child in children]
    lines = [line.split(" ", 1) for line in (folder / "evaluated").read_text().splitlines()]
    wall = float(lines[-1][0]) - float(lines[0][0])
    repeats = len(lines) - len({subnet for _, subnet in lines})
    lost = len(lines) - repeats - len(vitas.load_search(where).history)
    cpu = sum(usage.ru_utime + usage.ru_stime for _, _, usage in used) / len(lines)
    dead = sum(status != 0 for _, status, _ in used)
    return (
        f"{workers:>4} workers: {(len(lines) - 1) / wall:6.1f} trials a second, CPU {1e3 * cpu:6.1f} ms a trial of a worker;"
        f" {len(lines)} evaluations, {repeats} repeats, {lost} lost, {dead} workers ended early"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, nargs="+", default=[2000])
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=["memory", "journal"])
    parser.add_argument("--workers", type=int, nargs="+", help="processes that share a search")
    parser.add_argument("--sleep", type=float, default=0.0, help="seconds of an evaluation, with --workers")
    parser.add_argument("--space", default="vitas_deit")
    options = parser.parse_args()
    model = vitas.create_superformer(options.space)
    settings: dict[str, Any] = {"progress": False, "flops": BUDGETS.get(options.space)}
    for kind in options.storages:
        for trials in options.trials:
            for workers in options.workers or [0]:
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary)
                    folder.chmod(0o755)  # PostgreSQL may run as another user
                    with storage(kind, folder) as where:
                        if workers:
                            line = many_workers(model, where, workers, trials, options.sleep, folder, settings)
                        else:
                            line = one_worker(model, where, trials, settings)
                print(f"{kind:<9} {line}", flush=True)


if __name__ == "__main__":
    main()

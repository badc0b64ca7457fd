"""Processes killed at random moments: what was stored is there, saved files are whole, the end is that of a run left alone.

    python -m tests.kills --times 20

kills workers of a search that three share, a compression, and savers of files, and prints what came of it.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vitas

WORKERS = 3
SEARCH = {"population": 10, "generations": 100, "progress": False}
LEFT = {"search": 0.2, "compress": 0.4, "save": 0.03}
"""Seconds for which a process is left alone at most."""


def child(work: Callable[[], Any]) -> int:
    """Start a process that does some work; return its number."""
    if pid := os.fork():
        return pid
    try:
        work()
        sys.stdout.flush()
        os._exit(0)
    finally:
        os._exit(1)


def ended(pid: int) -> bool:
    """Whether a process has come to its end by itself.

    Raises:
        SystemExit: it has failed.
    """
    done, status = os.waitpid(pid, os.WNOHANG)
    if done and status:
        raise SystemExit(f"a process ended with {status}")
    return bool(done)


def killed(pid: int) -> bool:
    """Kill a process; return whether it was alive."""
    if ended(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def micro(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)


def search(folder: Path, times: int, rng: random.Random, where: str) -> str:
    """Kill one of three workers again and again; each kill may cost what was being evaluated, and nothing else."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    storage = {"journal": str(folder / "journal"), "sqlite": f"sqlite:///{folder / 'search.db'}"}[where]

    def evaluate(model: nn.Module) -> float:
        network = vitas.active_subnet(model)
        time.sleep(0.05)
        os.write(log, f"{os.getpid()} {network.to_json()}\n".encode())
        return float(sum(network.values()))

    def work() -> None:
        vitas.evolve(micro(), evaluate, storage=storage, seed=1, **SEARCH)

    def evaluated() -> list[tuple[str, str]]:
        lines = (line.split(" ", 1) for line in (folder / "log").read_text().splitlines())
        return [(pid, network) for pid, network in lines]

    workers, kills, total = [child(work) for _ in range(WORKERS)], 0, SEARCH["population"] * SEARCH["generations"]
    while kills < times:
        place = rng.randrange(WORKERS)
        while str(workers[place]) not in (pid for pid, _ in evaluated()):  # it is still starting
            if ended(workers[place]):
                raise SystemExit(f"the search was over after {kills} kills")
            time.sleep(0.05)
        time.sleep(rng.uniform(0, LEFT["search"]))
        if not killed(workers[place]):
            raise SystemExit(f"the search was over after {kills} kills")
        workers[place], kills = child(work), kills + 1
    for worker in workers:
        if os.waitpid(worker, 0)[1]:
            raise SystemExit("a worker failed")
    result = vitas.load_search(storage)
    counted = Counter(network for _, network in evaluated())
    repeats = sum(counted.values()) - len(counted)
    stored = {evaluation.subnet.to_json() for evaluation in result.history}
    if len(result.history) != total or stored != set(counted) or repeats > kills:
        raise SystemExit(f"{len(result.history)} of {total} stored, {len(stored ^ set(counted))} lost, {repeats} repeats")
    given_up = sum(trial.state.name == "PRUNED" for trial in result.study.trials)
    return f"{kills} kills, {given_up} claims given up, {total} networks, none lost, {repeats} evaluated again"


def compress(folder: Path, times: int, rng: random.Random) -> str:
    """Kill a compression again and again; it ends with the weights of one that was left alone."""
    from timm.models.vision_transformer import VisionTransformer

    drawn = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(
        torch.randn(64, 3, 8, 8, generator=drawn), torch.randint(3, (64,), generator=drawn)
    )
    settings = {"flops": "60%", "epochs": 4, "finetune_epochs": 4, "population": 5, "generations": 4, "progress": False}

    def network(where: Path) -> nn.Module:
        torch.manual_seed(0)
        model = VisionTransformer(img_size=8, patch_size=4, num_classes=3, embed_dim=32, depth=2, num_heads=2)
        loaders = [torch.utils.data.DataLoader(data, batch_size=8, shuffle=shuffle) for shuffle in (True, False)]
        return vitas.compress(model, *loaders, folder=where, **settings).network

    kills = alive = 0
    while kills < times:
        pid, kills = child(lambda: network(folder / "killed")), kills + 1
        time.sleep(rng.uniform(0, LEFT["compress"]))
        alive += killed(pid)
    pairs = zip(*(network(folder / name).state_dict().values() for name in ("killed", "alone")), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs):
        raise SystemExit("other weights than those of a compression left alone")
    return f"{kills} kills, {kills - alive} after the end, equal to the bit"


def save(folder: Path, times: int, rng: random.Random) -> str:
    """Kill a process that writes one file again and again, with other weights each time; what lies there is whole."""
    models, file = [micro(seed) for seed in (1, 2)], folder / "model.safetensors"
    model, kills, torn = micro(), 0, 0
    vitas.save_superformer(models[0], file)

    def work() -> None:
        while True:
            for other in models:
                vitas.save_superformer(other, file)

    while kills < times:
        pid, kills = child(work), kills + 1
        time.sleep(rng.uniform(0.001, LEFT["save"]))
        killed(pid)
        torn += len(list(folder.iterdir())) > 1
        vitas.load_superformer(model, file)
        if not any(all(map(torch.equal, model.state_dict().values(), m.state_dict().values())) for m in models):
            raise SystemExit("a file that is neither the one before nor the one after")
    vitas.save_superformer(models[0], file)
    if [path.name for path in folder.iterdir()] != [file.name]:
        raise SystemExit("a save left what a killed one had left")
    return f"{kills} kills, {torn} in the middle of a save, no file torn, nothing left behind"


KINDS: dict[str, Callable[[Path, int, random.Random], str]] = {
    "search, journal": lambda *given: search(*given, "journal"),
    "search, sqlite": lambda *given: search(*given, "sqlite"),
    "compress": compress,
    "save": save,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="kills of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name:<16} {kind(Path(folder), options.times, random.Random(options.seed))}", flush=True)


if __name__ == "__main__":
    main()

"""Make a timm Vision Transformer smaller on Fashion-MNIST: vitas, torch-pruning, ModelOpt, and a smaller one from scratch.

    pip install torch-pruning nvidia-modelopt requests "torchprofile<0.1"  # a cell whose tool is missing is left out
    python examples/fashion/rivals.py --plan      # which cells are left, and how long they take here
    python examples/fashion/rivals.py --seeds 3   # goes on where it was stopped
    python examples/fashion/rivals.py --smoke     # everything in miniature, on generated images

After the original's training every method has the same number of passes, and the original as teacher. What was expected, and
what came out: docs/evidence.md. The table: rival_table.py.
"""

import argparse
import time
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import training
from data import Split, load, stand_in
from rival_methods import METHODS, WHOLE, lines
from rival_task import FORWARD, FULL, SMOKE, OutOfReach, Settings, Task, vit
from store import Store
from torch import nn

import vitas

Cell = tuple[str, int, int]
"""(method, per cent of the multiply-adds, seed)."""


def ordered(settings: Settings, seeds: int) -> list[Cell]:
    """Return all cells: of each seed the original, also trained on, then each size with vitas first."""
    rest = [(method, size) for size in settings.sizes for method in METHODS if method != WHOLE]
    return [(method, size, seed) for seed in range(seeds) for method, size in [("original", 100), (WHOLE, 100), *rest]]


def shape(network: Any) -> dict[str, Any]:
    """Return the widths of a Vision Transformer, block for block."""
    attention, mlps = ([getattr(block, part) for block in network.blocks] for part in ("attn", "mlp"))
    heads, dims = [one.num_heads for one in attention], [one.head_dim for one in attention]
    widths = {"width": network.head.in_features, "depth": len(heads), "heads": heads, "head_dim": dims}
    return {**widths, "mlp": [mlp.fc1.out_features for mlp in mlps]}


def latencies(network: nn.Module, original: nn.Module, image: torch.Tensor) -> dict[str, float]:
    """Return the fastest of 750 runs of one image in ms, of both in turn: other work only slows down."""
    times = [[vitas.measure_latency(model, image).fastest for model in (network, original)] for _ in range(5)]
    return dict(zip(("latency", "latency_original"), map(min, *times), strict=True))


def judged(network: nn.Module, split: Split) -> dict[str, float]:
    """Return held-out and test accuracy; this is the only look that a network takes at the test images."""
    return {name: vitas.accuracy(getattr(split, name).batches())(network) for name in ("held_out", "test")}


def run(cell: Cell, settings: Settings, split: Split, weights: Path, done: Collection[str] = ()) -> dict[str, Any] | None:
    """Do a cell and return its figures; None where its original is not there yet; one without weights is trained again."""
    method, size, seed = cell
    if method != "original" and not (weights / f"original-{seed}.pt").exists():
        if f"original/100/{seed}" not in done:
            return None
        run(("original", 100, seed), settings, split, weights)
    torch.manual_seed(zlib.crc32(f"{method}/{size}/{seed}".encode()))
    original, file = vit(settings, settings.width), weights / f"original-{seed}.pt"
    if method == "original":
        step_of = training.alone(original)
        training.train(original, split.train, settings.first, seed, step_of, settings.recipe)
        weights.mkdir(parents=True, exist_ok=True)
        torch.save(original.state_dict(), file)
        network, used = original, float(settings.first)
    else:
        original.load_state_dict(torch.load(file, weights_only=True))
        task = Task(original.eval(), split, settings, size, seed)
        try:
            network = METHODS[method](task)
            if (macs := task.flops(network)) > task.most:
                raise OutOfReach(f"{macs} multiply-adds where {task.most} were allowed")
        except OutOfReach as error:
            return {"failed": str(error)}
        used = task.used
        torch.save(network, weights / f"{method}-{size}-{seed}.pt".replace(" ", "-"))
    image = torch.zeros(1, *split.train.pixels.shape[1:])
    costs = {"macs": vitas.count_flops(network, inputs=image).total, "params": vitas.count_params(network)}
    written = {} if method == "original" else {"lines": lines(METHODS[method])}
    figures = {**judged(network, split), **costs, **latencies(network, original, image)}
    return {**figures, "network": shape(network), "passes": round(used, 1), **written}


def plan(cells: list[Cell], settings: Settings, split: Split) -> str:
    """Say how long each cell takes one process, from passes of narrower networks measured now; searches are left out."""
    images, labels = split.train.batch(slice(settings.recipe.batch))

    def seconds(width: int) -> float:
        model, times = vit(settings, width), []
        for _ in range(5):
            started = time.perf_counter()
            F.cross_entropy(model(images), labels).backward()
            times.append(time.perf_counter() - started)
        return sorted(times)[2]

    full, total, said = seconds(settings.width), 0.0, []
    of_size = {size: seconds(max(1, round(settings.width * (size / 100) ** 0.5 / 4)) * 4) for size in settings.sizes}
    for method, size, seed in cells:
        taught = (of_size.get(size, full) + full * FORWARD) / (1 + FORWARD)
        each = settings.first * full if method == "original" else settings.passes * taught
        total += each
        said.append(f"{method:<24} {size:>4} % seed {seed} {each / 60:6.1f} min")
    return "\n".join([*said, f"{len(cells)} cells, {total / 60:.0f} min for one process"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", default=FULL.data, help="folder with the four idx files")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "rivals", help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plan", action="store_true", help="only say what would be done and how long it would take")
    parser.add_argument("--smoke", action="store_true", help="a miniature on generated images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = SMOKE if arguments.smoke else FULL._replace(data=arguments.data)
    split = load(settings.data, settings.held_out) if settings.data else stand_in(held_out=settings.held_out)
    kept = {**settings._asdict(), "sizes": list(settings.sizes), "recipe": settings.recipe._asdict()}
    kept.pop("data")  # the same files wherever they lie
    store = Store(arguments.results, kept)
    names = {"/".join(map(str, cell)): cell for cell in ordered(settings, 1 if arguments.smoke else arguments.seeds)}
    done = store.read()
    print(plan([cell for name, cell in names.items() if name not in done], settings, split), flush=True)
    for name, cell in {} if arguments.plan else names.items():  # type: ignore[attr-defined]
        with store.claim(name) as mine:
            if not mine:
                continue
            started, processor = time.perf_counter(), time.process_time()
            try:
                figures = run(cell, settings, split, store.weights, store.read())
            except ModuleNotFoundError as error:
                print(f"{name}: left out, {error.name} is not installed", flush=True)
                continue
            if figures is None:
                print(f"{name}: left out, its original is not there yet", flush=True)
                continue
            seconds, cpu = time.perf_counter() - started, time.process_time() - processor
            store.add(name, **figures, seconds=round(seconds, 1), cpu=round(cpu, 1), **training.environment())
            print(f"{time.strftime('%H:%M')} {name:<32} {seconds:7.1f} s", flush=True)


if __name__ == "__main__":
    main()

"""Run the study on Fashion-MNIST: cell by cell, shared between processes, resumed where it was stopped.

    python examples/fashion/study.py --plan     # which cells, and how long they take here
    python examples/fashion/study.py &          # twice on two cores: each cell is done once
    python examples/fashion/study.py --smoke    # everything in miniature, on generated images

What is measured, and what was expected before: README.md beside this file. Tables and pictures: figures.py.
"""

import argparse
import time
from collections import Counter
from pathlib import Path

import networks
import torch
import training
from cells import FULL, SMOKE, Cell, Settings, ordered
from data import images
from store import Store
from work import PARTS, run

import vitas


def seconds_per_pass(settings: Settings) -> tuple[float, float]:
    """Measure a forward and backward pass of one batch; return the seconds that each takes, and each multiply-add more."""
    model = networks.superformer().to(training.device())
    space, batch = (
        vitas.search_space(model),
        images(settings.data, settings.held_out).train.batch(slice(settings.recipe.batch), training.device()),
    )
    points = []
    for patch, depth in ((7, 2), (4, 8)):
        subnet = space.subnet({"patch_size": patch, "depth": depth}, fill="smallest" if depth == 2 else "largest")
        step_of, times = training.alone(model), []
        for _ in range(12):
            with vitas.use_subnet(model, subnet):
                started = time.perf_counter()
                step_of(0, *batch)
                times.append(time.perf_counter() - started)
        points.append((vitas.count_flops(model, subnet).total, sorted(times)[6]))
    (few, short), (many, long) = points
    slope = max(0.0, (long - short) / (many - few))
    return max(0.0, short - slope * few), slope


def expected(cell: Cell, settings: Settings) -> tuple[float, float]:
    """Return the passes of a batch that a cell makes (one without backward is a third), and their mean multiply-adds."""
    images_scored, batch = settings.held_out, settings.recipe.batch
    typical = 4e6  # the mean over random networks of the space
    if cell.part == "ground":
        subnet = networks.ground_networks(settings.inside, settings.others)[int(cell.what[0])]
        return settings.ground_passes + images_scored / batch / 3, vitas.count_flops(networks.superformer(), subnet).total
    if cell.part == "scores":
        passes = settings.short if cell.what[0] == "short" else settings.long
        return passes + (settings.inside + settings.others + settings.random) * images_scored / batch / 3, typical
    if cell.part == "superformer":
        return settings.long + len(networks.BUDGETS) * settings.candidates * images_scored / batch / 3, typical
    if cell.part == "measures":
        return 2 * (settings.inside + settings.others) * images_scored / batch / 3, typical
    if cell.part == "search":
        return settings.population * settings.generations * images_scored / batch / 3, int(cell.what[0])
    return settings.headline_passes, int(cell.what[0])


def plan(cells: list[Cell], settings: Settings) -> str:
    """Say how many cells of each part are left and how long one process takes for them, from passes measured now."""
    each, slope = seconds_per_pass(settings)
    seconds: Counter[str] = Counter()
    for cell in cells:
        passes, macs = expected(cell, settings)
        seconds[_group(cell)] += passes * (each + slope * macs)  # type: ignore[assignment]
    number = Counter(map(_group, cells))
    lines = [f"{number[group]:>5} {group:<16} {seconds[group] / 60:8.1f} min" for group in number]
    return "\n".join([*lines, f"{len(cells):>5} in all           {sum(seconds.values()) / 60:8.1f} min for one process"])


def _group(cell: Cell) -> str:
    return f"scores, {cell.what[0]}" if cell.part == "scores" else cell.part


def work(store: Store, cells: list[Cell], settings: Settings) -> None:
    """Do cells until none is left that can be done and that no other process is at."""
    going = True
    while going:
        going, done = False, store.read()
        for cell in (cell for cell in cells if cell.name not in done):
            with store.claim(cell.name) as mine:
                if not mine:
                    continue
                started, processor = time.perf_counter(), time.process_time()
                figures = run(cell, settings, store.read(), store.weights)
                if figures is None:
                    continue
                seconds = time.perf_counter() - started
                processor = time.process_time() - processor
                times = {"seconds": round(seconds, 1), "cpu": round(processor, 1), **training.environment()}
                store.add(cell.name, **figures, **times)
                print(f"{time.strftime('%H:%M')} {cell.name:<48} {seconds:7.1f} s", flush=True)
                going = True
                break  # a cell earlier in the list may have become possible


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", default=FULL.data, help="folder with the four idx files")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which parts to do")
    parser.add_argument("--plan", action="store_true", help="only say what would be done and how long it would take")
    parser.add_argument("--smoke", action="store_true", help="a miniature on generated images")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = SMOKE if arguments.smoke else FULL._replace(data=arguments.data)
    cells = [cell for cell in ordered(settings) if cell.part in arguments.parts]
    kept = {**settings._asdict(), "recipe": settings.recipe._asdict()}
    kept.pop("data")  # the same files wherever they lie
    store = Store(arguments.results, kept)
    done = store.read()
    left = [cell for cell in cells if cell.name not in done]
    print(plan(left, settings), flush=True)
    if not arguments.plan:
        work(store, cells, settings)


if __name__ == "__main__":
    main()

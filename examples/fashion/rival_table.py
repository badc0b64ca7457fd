"""Put the table of rivals.py into docs/evidence.md, from its results alone.

python examples/fashion/rival_table.py                            # print it
python examples/fashion/rival_table.py --page docs/evidence.md    # put it into the page, the results beside it
"""

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

from figures import put
from ranking import Results
from rival_methods import METHODS, SEARCHED
from rival_task import FULL
from store import read
from tables import markdown


def several(values: list[int]) -> str:
    """Return what the blocks have: one number, or from and to."""
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)}-{max(values)}"


def described(runs: list[Any]) -> str:
    """Return the first network in words."""
    network = runs[0]["network"]
    heads = f"{several(network['heads'])} heads of {several(network['head_dim'])}"
    return f"{network['depth']} blocks of {network['width']}, {heads}, MLP {several(network['mlp'])}"


def row(called: str, searched: str, runs: list[Any], original: list[Any]) -> list[str]:
    """Return a line: what was made, what it costs and how good it is, means over the seeds and each of them.

    The latency is the fastest of all seeds, since other work on the machine only slows down, and its share of the original's
    that was measured in turn with it.
    """
    number, runs = len(runs), [run for run in runs if "failed" not in run]
    if not runs:
        return [called, searched, "out of reach", *[""] * 9]

    def mean(what: str) -> float:
        return statistics.fmean(run[what] for run in runs)

    share = f"{mean('macs') / 1e6:.1f} M, {100 * mean('macs') / original[0]['macs']:.0f} %"
    each = ", ".join(f"{100 * run['test']:.2f}" for run in runs)
    tests = f"{100 * mean('test'):.2f} ({each})" if len(runs) > 1 else each
    fastest = min(runs, key=lambda run: run["latency"])
    slow = 100 * fastest["latency"] / fastest["latency_original"]
    costs = [share, f"{mean('params') / 1e3:.0f} k", f"{fastest['latency']:.1f} ms, {slow:.0f} %"]
    seeds = str(number) if len(runs) == number else f"{len(runs)} of {number}, others out of reach"
    spent = [f"{mean('passes'):.0f}", f"{mean('cpu') / 60:.1f}", str(runs[0].get("lines", ""))]
    return [called, searched, described(runs), *costs, f"{100 * mean('held_out'):.2f}", tests, seeds, *spent]


def rivals(results: Results) -> str:
    """Return a line for the original and, size by size, for each method that has been run."""
    found: dict[tuple[str, int], list[Any]] = {}
    for name, figures in sorted(results.items()):
        method, size, _ = name.split("/")
        found.setdefault((method, int(size)), []).append(figures)
    if not (original := found.get(("original", 100))):
        return markdown([], [])
    rows = [["100 %", *row("original", "", original, original)]]
    for size in (100, *FULL.sizes):
        for method in METHODS:
            if runs := found.get((method, size)):
                rows.append([f"{size} %", *row(method, SEARCHED[method], runs, original)])
    head = ["size", "method", "searched", "network", "multiply-adds", "parameters", "latency", "held out", "test"]
    return markdown([*head, "seeds", "passes", "minutes", "lines"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    here = Path(__file__).parent
    parser.add_argument("--results", type=Path, default=here / "rivals" / "results.jsonl", help="file of results")
    parser.add_argument("--page", type=Path, help="page whose table is replaced; the results go beside it")
    arguments = parser.parse_args()
    table = rivals(read(arguments.results))
    if arguments.page is None:
        print(table)
        return
    kept = arguments.page.with_suffix("") / "rivals.jsonl"
    if arguments.results.resolve() != kept.resolve():
        shutil.copy(arguments.results, kept)
    page = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(put(page, "rivals", table), encoding="utf-8")


if __name__ == "__main__":
    main()

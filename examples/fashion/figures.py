"""Recompute every table and picture of docs/evidence.md from the stored results.

python examples/fashion/figures.py                            # print the tables
python examples/fashion/figures.py --page docs/evidence.md    # put them into the page, the pictures and results beside it
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import headline
import measures
import networks
import tables
from matplotlib.figure import Figure
from ranking import Results
from store import read

TABLES: dict[str, Callable[[Results], str]] = {
    "progress": tables.progress,
    "ground": tables.ground,
    "scores": tables.scores,
    "contrasts": tables.contrasts,
    "measures": measures.table,
    **headline.TABLES,
}
COLOURS = {"found": "#D55E00", "hand": "#0072B2", "random": "#999999"}
LABELS = {"found": "found by the search", "hand": "scaled by hand", "random": "random networks"}


def taus(results: Results) -> Figure:
    """Draw Kendall's tau of every way to train and share, over all networks and over those of one cost."""
    found, measures = tables.kinds(results), tables.measures(results)
    names = [name for name in ("tau, all", "tau, one cost") if name in measures]
    figure = Figure(figsize=(8, 1.2 + 0.24 * len(found)), layout="constrained")
    axes = figure.subplots(1, max(1, len(names)), sharey=True, squeeze=False)[0]
    for one, name in zip(axes, names, strict=False):
        for place, (what, by_seed) in enumerate(found.items()):
            values = [measures[name](figures) for figures in by_seed.values()]
            one.plot(values, [place] * len(values), "o", color="#0072B2" if what[3] == "shared" else "#E69F00", ms=5)
        one.set(
            xlabel=f"Kendall's {name}",
            xlim=(-0.5, 1),
            xticks=(-0.5, 0, 0.5, 1),
            yticks=range(len(found)),
            yticklabels=list(map(" ".join, found)),
        )
        one.axvline(0, color="grey", lw=0.8)
        one.invert_yaxis()
    return figure


def accuracy(results: Results) -> Figure:
    """Draw test accuracy against multiply-adds: found, scaled by hand, random."""
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    axes = figure.subplots()
    for (family, title), marker in zip(headline.FAMILIES.items(), "o^", strict=True):
        every = [runs for budget in networks.BUDGETS for runs in headline.trained(results, budget, family).items()]
        for kind, colour in COLOURS.items():
            points = [
                (runs[0]["macs"] / 1e6, 100 * headline.mean(runs, "test")) for name, runs in every if name.startswith(kind)
            ]
            if points:
                label = f"{title}, {LABELS[kind]}"
                size, above = (8, 4) if kind == "found" else (5, 3 if kind == "hand" else 2)
                axes.plot(*zip(*points, strict=True), marker, color=colour, label=label, ms=size, zorder=above)
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.set(xlabel="million multiply-adds", ylabel="test accuracy in %")
    return figure


PICTURES: dict[str, Callable[[Results], Figure]] = {"taus": taus, "accuracy": accuracy}


def put(page: str, name: str, table: str) -> str:
    """Return the page with the table that stands after its mark replaced."""
    before, mark, after = page.partition(f"<!-- {name} -->\n")
    if not mark:
        raise SystemExit(f"the page has no mark <!-- {name} -->")
    return f"{before}{mark}{table}\n\n{after.partition(chr(10) * 2)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    here = Path(__file__).parent
    parser.add_argument("--results", type=Path, default=here / "results" / "results.jsonl", help="file of results")
    parser.add_argument("--page", type=Path, help="page whose tables are replaced; results and pictures go beside it")
    arguments = parser.parse_args()
    results = read(arguments.results)
    if arguments.page is None:
        print("\n\n".join(f"{name}\n{table(results)}" for name, table in TABLES.items()))
        return
    folder = arguments.page.with_suffix("")
    folder.mkdir(exist_ok=True)
    if arguments.results.resolve() != (folder / "results.jsonl").resolve():
        shutil.copy(arguments.results, folder / "results.jsonl")
    page = arguments.page.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        page = put(page, name, table(results))
    arguments.page.write_text(page, encoding="utf-8")
    for name, picture in PICTURES.items():
        picture(results).savefig(folder / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()

"""By what a network with inherited weights is scored: accuracy or loss, on how many images, and which ranks better."""

import statistics
from pathlib import Path

import networks
import superformers
from cells import Cell, Settings
from data import images
from ranking import Figures, Results
from tables import groups, markdown, truth_of

import vitas
from vitas.train import kendall_tau

PARTS = 10
"""Into so many parts the held-out images are cut, each of which scores all networks."""

OF = {"accuracy": vitas.accuracy, "loss": vitas.cross_entropy}
SIGNS = {"accuracy": 1, "loss": -1}
"""Which way is better."""


def measure(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures | None:
    """Score every ground network with the weights of a long superformer, on each part of the held-out images."""
    name = f"scores/long/single/{cell.what[0]}/shared/0"
    if name not in results:
        return None
    model = superformers.loaded(name, name, settings, results, weights)
    held_out = images(settings.data, settings.held_out).held_out
    size = settings.held_out // PARTS
    parts = [[held_out.batch(slice(first, first + size))] for first in range(0, size * PARTS, size)]
    found: Figures = {}
    for what, function in OF.items():
        scores, found[what] = [function(part) for part in parts], []
        for subnet in networks.ground_networks(settings.inside, settings.others):
            with vitas.use_subnet(model, subnet):
                found[what].append([score(model) for score in scores])
    return found


def table(results: Results) -> str:
    """Return Kendall's tau with the accuracy alone, of scores on all held-out images and on one part of them."""
    truth, rows = truth_of(results), []
    size = 5000 // PARTS
    for sharing in ("ordinal", "cyclic", "inside"):
        figures = results.get(f"measures/{sharing}/0")
        for what, sign in SIGNS.items() if figures else ():
            row = [sharing, what]
            for chosen in groups(results).values():
                alone, scores = [truth[k] for k in chosen], [[sign * x for x in figures[what][k]] for k in chosen]  # type: ignore[index]
                whole = kendall_tau([statistics.fmean(one) for one in scores], alone)
                parts = [kendall_tau([one[part] for one in scores], alone) for part in range(PARTS)]
                row += [f"{whole:.2f}", f"{statistics.fmean(parts):.2f} ({min(parts):.2f} to {max(parts):.2f})"]
            rows.append(row)
    columns = [f"{group}, {count} images" for group in groups(results) for count in (PARTS * size, size)]
    return markdown(["cyclic", "scored by", *columns], rows)

"""What each cell of the study does, and what it returns."""

from collections.abc import Callable
from pathlib import Path

import measures
import networks
import numpy as np
import superformers
import torch
import training
from cells import Cell, Settings
from data import images
from ranking import Figures, Results
from torch import nn

import vitas


def run(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures | None:
    """Do a cell and return its figures; None where it needs cells that are not there yet.

    Args:
        cell: What to do.
        settings: Sizes and lengths.
        results: What is known so far.
        weights: Folder for the weights of superformers, which searches read.
    """
    torch.manual_seed(cell.random_seed)
    return PARTS[cell.part](cell, settings, results, weights)


def ground(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures:
    """Train a network of the space alone."""
    subnet = networks.ground_networks(settings.inside, settings.others)[int(cell.what[0])]
    figures = _alone(networks.plain(subnet), cell, settings, settings.ground_passes)
    macs = vitas.count_flops(networks.superformer(), subnet).total
    return {"accuracy": figures["held_out"], "macs": macs, "network": dict(subnet), "loss": figures["loss"]}


def search(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures | None:
    """Search the superformer of a family inside a budget."""
    if (trained := superformers.searched(cell.family, settings, results, weights)) is None:
        return None
    name, model = trained
    torch.manual_seed(cell.random_seed)
    found = vitas.evolve(
        model,
        vitas.accuracy(images(settings.data, settings.held_out).held_out.batches()),
        flops=networks.window(int(cell.what[0])),
        population=settings.population,
        generations=settings.generations,
        seed=cell.seed,
        progress=False,
    )
    best = max(evaluation.scores["accuracy"] for evaluation in found.front)
    return {"network": dict(found.best), "inherited": best, "evaluations": len(found.history), "superformer": name}


def headline(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures | None:
    """Train one of the networks that are compared, and only here look at the test images.

    "hand" and "random" are the best of their kind on the held-out images, as the first trainings of all of them tell.
    """
    (budget, name), family = cell.what[:2], cell.family
    if name in ("hand", "random"):
        rivals = [f"{name}-{what}" for what in networks.rivals(name, settings.candidates, family)]
        first = {rival: results.get(cell._replace(what=(budget, rival, *cell.what[2:]), seed=0).name) for rival in rivals}
        if None in first.values():
            return None
        name = max(rivals, key=lambda rival: first[rival]["held_out"])  # type: ignore[index]
    kind, *rest = name.split("-")
    if kind == "hand":
        network = networks.by_hand(int(budget), int(rest[0]), int(rest[1]), family)
    elif kind == "random":
        network = networks.plain(networks.in_budget(int(budget), settings.candidates, family)[int(rest[0])], family)
    elif (found := results.get(Cell("search", (budget, *cell.what[2:]), 0).name)) is None:
        return None
    else:
        network = networks.plain(found["network"], family)
    count = vitas.count_flops(network, inputs=torch.zeros(1, 1, 28, 28)).total
    figures = _alone(network, cell, settings, settings.headline_passes)
    test = images(settings.data, settings.held_out).test
    with torch.inference_mode():
        hits = [network(x.to(training.device())).argmax(dim=1).cpu() == y for x, y in test.batches()]
    right = torch.cat(hits)
    return {**figures, "which": name, "macs": count, "test": float(right.double().mean()), "right": packed(right)}


PARTS: dict[str, Callable[[Cell, Settings, Results, Path], Figures | None]] = {
    "ground": ground,
    **superformers.TRAININGS,
    "measures": measures.measure,
    "search": search,
    "headline": headline,
}


def packed(right: torch.Tensor) -> str:
    """Return which images are classified right as text, four images a digit, so that differences can be paired."""
    return np.packbits(right.numpy()).tobytes().hex()


def _alone(network: nn.Module, cell: Cell, settings: Settings, steps: int) -> Figures:
    split = images(settings.data, settings.held_out)
    network.to(training.device())
    loss = training.train(network, split.train, steps, cell.random_seed, training.alone(network), settings.recipe)
    return {"held_out": vitas.accuracy(split.held_out.batches())(network), "loss": loss}

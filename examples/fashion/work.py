"""What each cell of the study does, and what it returns."""

import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
import training
from cells import Cell, Settings
from data import Split, load, stand_in
from ranking import Figures, Results, chosen_superformer
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
    torch.manual_seed(seed_of(cell))
    return PARTS[cell.part](cell, settings, results, weights)


def seed_of(cell: Cell) -> int:
    """Return the seed of everything random in a cell."""
    return zlib.crc32(cell.name.encode())


@lru_cache(maxsize=1)
def images(settings: Settings) -> Split:
    """Return the images of the study, or generated ones where there is no folder."""
    return load(settings.data, settings.held_out) if settings.data else stand_in(held_out=settings.held_out)


def ground(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures:
    """Train a network of the space alone."""
    subnet = networks.ground_networks(settings.inside, settings.others)[int(cell.what[0])]
    figures = _alone(networks.plain(subnet), cell, settings, settings.ground_passes)
    macs = vitas.count_flops(networks.superformer(), subnet).total
    return {"accuracy": figures["held_out"], "macs": macs, "network": dict(subnet), "loss": figures["loss"]}


def scores(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures:
    """Train a superformer and score networks with the weights that they inherit."""
    length, regime, sharing, norms = cell.what
    passes = settings.short if length == "short" else settings.long
    model = networks.superformer(sharing, norms).to(training.device())
    step_of = training.shared(model, regime, seed_of(cell))
    steps = passes // training.PASSES[regime]
    loss = training.train(model, images(settings).train, steps, seed_of(cell), step_of, settings.recipe)
    weights.mkdir(parents=True, exist_ok=True)
    vitas.save_superformer(model, weights / f"{cell.name.replace('/', '-')}.safetensors")
    space, evaluate = vitas.search_space(model), vitas.accuracy(images(settings).held_out.batches())

    def score(subnet: Mapping[str, Any]) -> float:
        with vitas.use_subnet(model, subnet):
            return evaluate(model)

    ends = {f"{end}-{p}": {**getattr(space, end)(), "patch_size": p} for end in ("smallest", "largest") for p in (4, 7)}
    return {
        "ground": [score(subnet) for subnet in networks.ground_networks(settings.inside, settings.others)],
        "random": [score(subnet) for subnet in networks.random_networks(settings.random)],
        **{name: score(subnet) for name, subnet in ends.items()},
        "loss": loss,
    }


def search(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures | None:
    """Search the chosen superformer inside a budget."""
    name = chosen_superformer(results)
    if name is None:
        return None
    part, *what, seed = name.split("/")
    if not (file := weights / f"{name.replace('/', '-')}.safetensors").exists():  # the results came without the weights
        run(Cell(part, tuple(what), int(seed)), settings, results, weights)
        torch.manual_seed(seed_of(cell))
    _, _, sharing, norms = what
    model = networks.superformer(sharing, norms).to(training.device())
    vitas.load_superformer(model, file)
    found = vitas.evolve(
        model,
        vitas.accuracy(images(settings).held_out.batches()),
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
    budget, name = int(cell.what[0]), cell.what[1]
    if name in ("hand", "random"):
        whats = map("-".join, [map(str, one) for one in networks.HAND]) if name == "hand" else range(settings.candidates)
        rivals = [f"{name}-{what}" for what in whats]
        first = {rival: results.get(f"headline/{budget}/{rival}/0") for rival in rivals}
        if None in first.values():
            return None
        name = max(rivals, key=lambda rival: first[rival]["held_out"])  # type: ignore[index]
    kind, *rest = name.split("-")
    if kind == "hand":
        network = networks.by_hand(budget, int(rest[0]), int(rest[1]))
    elif kind == "random":
        network = networks.plain(networks.in_budget(budget, settings.candidates)[int(rest[0])])
    elif (found := results.get(f"search/{budget}/0")) is None:
        return None
    else:
        network = networks.plain(found["network"])
    count = vitas.count_flops(network, inputs=torch.zeros(1, 1, 28, 28)).total
    figures = _alone(network, cell, settings, settings.headline_passes)
    with torch.inference_mode():
        hits = [network(x.to(training.device())).argmax(dim=1).cpu() == y for x, y in images(settings).test.batches()]
    right = torch.cat(hits)
    return {**figures, "which": name, "macs": count, "test": float(right.double().mean()), "right": packed(right)}


PARTS: dict[str, Callable[[Cell, Settings, Results, Path], Figures | None]] = {
    "ground": ground,
    "scores": scores,
    "search": search,
    "headline": headline,
}


def packed(right: torch.Tensor) -> str:
    """Return which images are classified right as text, four images a digit, so that differences can be paired."""
    return np.packbits(right.numpy()).tobytes().hex()


def _alone(network: nn.Module, cell: Cell, settings: Settings, steps: int) -> Figures:
    split = images(settings)
    network.to(training.device())
    loss = training.train(network, split.train, steps, seed_of(cell), training.alone(network), settings.recipe)
    return {"held_out": vitas.accuracy(split.held_out.batches())(network), "loss": loss}

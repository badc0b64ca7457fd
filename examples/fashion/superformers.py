"""The cells that train superformers, and their weights for whoever searches them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import networks
import torch
import training
from cells import Cell, Settings
from data import images
from ranking import Figures, Results, chosen_superformer
from torch import nn

import vitas


def scores(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures:
    """Train a superformer and score networks with the weights that they inherit."""
    length, regime, sharing, norms = cell.what
    passes = settings.short if length == "short" else settings.long
    model = networks.superformer(sharing, norms)
    loss, score, space = *_trained(model, regime, passes, cell, settings, weights), vitas.search_space(model)
    ends = {f"{end}-{p}": {**getattr(space, end)(), "patch_size": p} for end in ("smallest", "largest") for p in (4, 7)}
    return {
        "ground": [score(subnet) for subnet in networks.ground_networks(settings.inside, settings.others)],
        "random": [score(subnet) for subnet in networks.random_networks(settings.random)],
        **{name: score(subnet) for name, subnet in ends.items()},
        "loss": loss,
    }


def family(cell: Cell, settings: Settings, results: Results, weights: Path) -> Figures | None:
    """Train the superformer of another family as the chosen one was trained, and score what is drawn for each budget."""
    if (chosen := chosen_superformer(results)) is None:
        return None
    _, _, regime, sharing, norms, _ = chosen.split("/")
    model = networks.superformer(sharing, norms, cell.what[0])
    loss, score = _trained(model, regime, settings.long, cell, settings, weights)
    drawn = {budget: networks.in_budget(budget, settings.candidates, cell.what[0]) for budget in networks.BUDGETS}
    inherited = {str(budget): [score(subnet) for subnet in subnets] for budget, subnets in drawn.items()}
    return {"inherited": inherited, "loss": loss, "as": chosen}


def _trained(
    model: nn.Module, regime: str, passes: int, cell: Cell, settings: Settings, weights: Path
) -> tuple[list[float], Callable[[Mapping[str, Any]], float]]:
    """Train a superformer and keep its weights; return the losses, and a function from a network to its inherited score."""
    model.to(training.device())
    step_of, steps = training.shared(model, regime, cell.random_seed), passes // training.PASSES[regime]
    split = images(settings.data, settings.held_out)
    loss = training.train(model, split.train, steps, cell.random_seed, step_of, settings.recipe)
    weights.mkdir(parents=True, exist_ok=True)
    vitas.save_superformer(model, _file(weights, cell.name))
    evaluate = vitas.accuracy(split.held_out.batches())

    def score(subnet: Mapping[str, Any]) -> float:
        with vitas.use_subnet(model, subnet):
            return evaluate(model)

    return loss, score


def searched(family: str, settings: Settings, results: Results, weights: Path) -> tuple[str, nn.Module] | None:
    """Return the cell of the superformer that is searched, and its trained model; None while it cannot be known."""
    chosen = chosen_superformer(results)
    name = chosen if family == "deit" else f"superformer/{family}/0"
    if chosen is None or name is None or name not in results:
        return None
    return name, loaded(name, chosen, settings, results, weights)


def loaded(name: str, like: str, settings: Settings, results: Results, weights: Path) -> nn.Module:
    """Return the trained superformer of a cell, which shares and has norms as the cell `like` says.

    It is trained again where results came without the weights.
    """
    part, *what, seed = name.split("/")
    cell, (_, _, _, sharing, norms, _) = Cell(part, tuple(what), int(seed)), like.split("/")
    if not (file := _file(weights, name)).exists():
        torch.manual_seed(cell.random_seed)
        TRAININGS[part](cell, settings, results, weights)
    model = networks.superformer(sharing, norms, cell.family).to(training.device())
    vitas.load_superformer(model, file)
    return model


def _file(weights: Path, name: str) -> Path:
    return weights / f"{name.replace('/', '-')}.safetensors"


TRAININGS: dict[str, Callable[[Cell, Settings, Results, Path], Figures | None]] = {"scores": scores, "superformer": family}

"""Compress a trained Vision Transformer of timm in one call, and compare with what one would do without a search.

    python examples/compress.py  # scikit-learn's digits: a few minutes on one core
    python examples/compress.py --fashion /usr/share/datasets/fashion-mnist --results fashion.jsonl
    python examples/compress.py --smoke  # everything in miniature

Three ways to a network inside a budget, with as many passes over the images: `vitas.compress`; the network that it found,
from scratch; a timm model of the original's shape made narrower, from scratch. All learn from the original's outputs as well
as from the labels. Test images enter nothing but the table.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from fashion.data import load
from sklearn.datasets import load_digits
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

import vitas
from vitas.compressing import WRAP, Compressed, from_teacher, train

CPU = torch.device("cpu")


def parts(fashion: Path | None) -> list[Dataset[tuple[Tensor, ...]]]:
    """Return images to train with, to search with and to test with."""
    if fashion is None:
        pixels, digits = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        split = torch.Generator().manual_seed(0)
        return list(random_split(TensorDataset(images, torch.tensor(digits)), [0.6, 0.2, 0.2], split))
    return [TensorDataset(*part.batch(slice(None))) for part in load(fashion)]


def vit(size: int, width: int) -> nn.Module:
    """Return a timm Vision Transformer for grey images."""
    return VisionTransformer(size, size // 4, 1, 10, embed_dim=width, depth=6, num_heads=4)


def narrower(size: int, most: float) -> nn.Module:
    """Return the widest of the original's shape that has at most so many multiply-adds."""
    image = torch.zeros(1, 1, size, size)
    fit = [width for width in range(8, 68, 4) if vitas.count_flops(vit(size, width), inputs=image).total <= most]
    return vit(size, max(fit))


def from_labels(model: nn.Module) -> Callable[[int, Tensor, Tensor], Tensor]:
    return lambda step, images, labels: F.cross_entropy(model(images), labels)


def taught(model: nn.Module, teacher: nn.Module) -> Callable[[int, Tensor, Tensor], Tensor]:
    """Return the loss that `vitas.compress` has by default."""

    def loss_of(step: int, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            targets = teacher(images)
        return from_teacher(model(images), targets, labels)

    return loss_of


def compared(seed: int, budget: str, options: argparse.Namespace) -> dict[str, tuple[float, int]]:
    """Return test accuracy and multiply-adds of the original and of the three ways."""
    training, validation, test = parts(options.fashion)
    if options.smoke:
        training = torch.utils.data.Subset(training, range(64))
    loader = DataLoader(training, batch_size=64, shuffle=True, drop_last=True)
    size = training[0][0].shape[-1]
    common = {"lr": options.lr, "seed": seed, "device": CPU}
    torch.manual_seed(seed)
    original = vit(size, 64)
    train(original, loader, from_labels(original), "original", options.epochs, **common)
    superformer = max(1, options.epochs // 5)  # a tenth of the passes, as in compress's own defaults
    done: Compressed = vitas.compress(
        original,
        loader,
        DataLoader(validation, batch_size=500),
        flops=budget,
        epochs=superformer,
        finetune_epochs=2 * options.epochs - superformer,
        lr=options.lr / 2,
        population=options.population,
        generations=options.generations,
        seed=seed,
        progress=False,
    )
    scratch = vitas.export_subnet(vitas.wrap(original, **WRAP), done.subnet, weights="fresh")
    narrow = narrower(size, float(budget.rstrip("%")) / 100 * done.flops[0])
    for model in (scratch, narrow):
        train(model, loader, taught(model, original), "rival", 2 * options.epochs, **common)
    score, image = vitas.accuracy(DataLoader(test, batch_size=500)), torch.zeros(1, 1, size, size)
    networks = {"original": original, "vitas.compress": done.network, "the same, from scratch": scratch, "narrower": narrow}
    return {name: (score(model), vitas.count_flops(model, inputs=image).total) for name, model in networks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--fashion", type=Path, help="folder of Fashion-MNIST's four files; without it scikit-learn's digits"
    )
    parser.add_argument("--epochs", type=int, default=40, help="of the original; the others have twice as many")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--budgets", nargs="+", default=["50%", "30%"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--population", type=int, default=20)
    parser.add_argument("--generations", type=int, default=6)
    parser.add_argument(
        "--results", type=Path, help="file that gets a line of JSON for each seed and budget; goes on from it"
    )
    parser.add_argument("--smoke", action="store_true", help="everything in miniature")
    options = parser.parse_args()
    torch.set_num_threads(1)  # layers this small lose time on more
    if options.smoke:
        options.epochs, options.seeds, options.population, options.generations = 1, 1, 3, 1
    kept = options.results.read_text().splitlines() if options.results and options.results.exists() else []
    done = {(line["budget"], line["seed"]): line["found"] for line in map(json.loads, kept)}
    for budget in options.budgets:
        for seed in range(options.seeds):
            if (budget, seed) not in done:
                done[budget, seed] = compared(seed, budget, options)
                if options.results:
                    with open(options.results, "a") as file:
                        file.write(json.dumps({"budget": budget, "seed": seed, "found": done[budget, seed]}) + "\n")
        print(f"{budget}: test accuracy, mean over {options.seeds} seeds (each)")
        for name in done[budget, 0]:
            values = [100 * done[budget, seed][name][0] for seed in range(options.seeds)]
            macs = statistics.fmean(done[budget, seed][name][1] for seed in range(options.seeds))
            each = ", ".join(f"{value:.1f}" for value in values)
            print(f"  {name:<24} {statistics.fmean(values):5.1f} % ({each})  {macs / 1e6:.2f} M multiply-adds")


if __name__ == "__main__":
    main()

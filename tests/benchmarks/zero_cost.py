"""How well scores that need no training rank networks: rank correlation with the accuracy after training.

    python tests/benchmarks/zero_cost.py [--subnets 40] [--epochs 30] [--seeds 2]

Random subnets of deit_micro are trained from scratch on scikit-learn's digits (60 % of them; accuracy on the other 40 %).
Each correlation comes with a 95 % interval from 2,000 resamplings of the subnets.
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau, spearmanr
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import vitas
from vitas.measure.zero_cost import dss


def parts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images and labels for training, then for the accuracy."""
    pixels, digits = load_digits(return_X_y=True)
    train, rest = train_test_split(np.arange(len(digits)), test_size=0.4, stratify=digits, random_state=0)
    pixels = (pixels - pixels[train].mean()) / pixels[train].std()
    images, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(digits)
    return images[train], labels[train], images[rest], labels[rest]


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, batch: int = 64) -> None:
    """Run an ordinary training loop."""
    generator = torch.Generator().manual_seed(seed)
    steps = len(images) // batch
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=epochs * steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: steps * batch].view(steps, batch):
            F.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()


def interval(score: np.ndarray, accuracy: np.ndarray, times: int = 2000) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of Spearman's correlation over resamplings of the subnets."""
    random = np.random.default_rng(0)
    drawn = random.integers(len(score), size=(times, len(score)))
    return tuple(np.nanquantile([spearmanr(score[rows], accuracy[rows])[0] for rows in drawn], [0.025, 0.975]))


def main() -> None:
    """Train, score, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subnets", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each subnet, whose accuracies are averaged")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels, unseen, truth = parts()
    evaluate = vitas.accuracy([(unseen, truth)])
    torch.manual_seed(0)
    model = vitas.create_superformer("deit_micro", num_classes=10, img_size=8, in_chans=1)
    generator = torch.Generator().manual_seed(0)
    subnets = [vitas.search_space(model).sample(generator) for _ in range(options.subnets)]
    accuracies = np.zeros((len(subnets), options.seeds))
    names = (
        "DSS",
        "its diversity part",
        "its saliency part",
        "DSS in the superformer",
        "parameters",
        "multiply-adds",
        "depth",
    )
    scores = {name: np.zeros(len(subnets)) for name in names}
    seconds = 0.0
    for number, subnet in enumerate(subnets):
        vitas.activate_subnet(model, subnet)
        for seed in range(options.seeds):
            torch.manual_seed(1000 * seed + number)
            network = vitas.export_subnet(model, weights="fresh")
            start = time.perf_counter()
            found = dss(network, images)
            seconds += time.perf_counter() - start
            for name, value in zip(names, (sum(found), *found), strict=False):
                scores[name][number] += value / options.seeds
            train(network, images, labels, options.epochs, seed)
            accuracies[number, seed] = evaluate(network)
        scores["DSS in the superformer"][number] = vitas.zero_cost(model, images)
        scores["parameters"][number] = vitas.count_params(model)
        scores["multiply-adds"][number] = vitas.count_flops(model).total
        scores["depth"][number] = subnet["depth"]
        print(number, f"{accuracies[number].mean():.4f}", *(f"{scores[name][number]:.5g}" for name in names), flush=True)
    mean = accuracies.mean(axis=1)
    low, middle, high = 100 * np.quantile(mean, [0, 0.5, 1])
    print(f"{len(subnets)} subnets, {options.epochs} epochs, {options.seeds} seeds")
    print(f"accuracy: min {low:.1f} %, median {middle:.1f} %, max {high:.1f} %")
    print(f"one DSS: {seconds / accuracies.size * 1e3:.0f} ms")
    if options.seeds > 1:
        print(f"one seed's accuracies against another's: Spearman {spearmanr(accuracies[:, 0], accuracies[:, 1])[0]:.2f}")
    for patch in (None, 2, 4):
        rows = np.array([patch in (None, subnet["patch_size"]) for subnet in subnets])
        print("all" if patch is None else f"patch size {patch}", f"({rows.sum()} subnets)")
        for name, score in scores.items():
            spearman, kendall = spearmanr(score[rows], mean[rows])[0], kendalltau(score[rows], mean[rows])[0]
            low, high = interval(score[rows], mean[rows])
            print(f"  {name:<24} Spearman {spearman:5.2f} [{low:5.2f}, {high:5.2f}]  Kendall {kendall:5.2f}")


if __name__ == "__main__":
    main()

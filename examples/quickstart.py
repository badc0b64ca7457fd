"""Train one superformer on scanned digits, find a small subnet in it, export it to plain torch and retrain it.

Takes about two minutes on two cores, prints a table and draws quickstart.png:

    python examples/quickstart.py
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

import vitas


class Part(NamedTuple):
    """Images (n, 1, 8, 8) and labels (n,)."""

    images: Tensor
    labels: Tensor


def load_parts() -> tuple[Part, Part, Part]:
    """Return 60 % of scikit-learn's 1,797 digits for training, 20 % for searching and 20 % for the final test."""
    pixels, digits = load_digits(return_X_y=True)
    train, rest = train_test_split(np.arange(len(digits)), test_size=0.4, stratify=digits, random_state=0)
    search, test = train_test_split(rest, test_size=0.5, stratify=digits[rest], random_state=0)
    pixels = (pixels - pixels[train].mean()) / pixels[train].std()
    images, labels = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(digits)
    return Part(images[train], labels[train]), Part(images[search], labels[search]), Part(images[test], labels[test])


def train(model: nn.Module, part: Part, *, epochs: int, seed: int, superformer: bool) -> None:
    """Run an ordinary training loop, in which a superformer needs one extra line."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(*part), batch_size=32, shuffle=True, drop_last=True, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=epochs * len(loader))
    model.train()
    for _ in tqdm(range(epochs), desc="superformer" if superformer else "retraining", unit="epoch", mininterval=1):
        for images, labels in loader:
            if superformer:
                vitas.sample_subnet(model, generator=generator)  # the extra line
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # weights that a subnet does not use then stay as they are
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, part: Part) -> float:
    """Return the percentage of images that are classified correctly."""
    return 100 * (model(part.images).argmax(dim=1) == part.labels).double().mean().item()


def score_subnets(model: nn.Module, part: Part, n: int, seed: int) -> dict[vitas.Subnet, float]:
    """Return the accuracy of n random subnets with the weights that they inherit from the superformer."""
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for _ in range(n):
        subnet = vitas.sample_subnet(model, generator=generator)
        scores[subnet] = accuracy(model, part)
    return scores


class Point(NamedTuple):
    """A network in the picture."""

    macs: int
    accuracy: float


def draw(path: Path, scored: dict[str, list[Point]], tested: dict[str, Point], budget: float) -> None:
    """Draw accuracy against MACs: left the subnets that were scored, right the networks that were tested."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for (name, points), colour in zip(scored.items(), ("#56B4E9", "#E69F00", "#999999"), strict=True):
        macs, accuracies = zip(*points, strict=True)
        left.scatter(np.divide(macs, 1e6), accuracies, s=18, color=colour, alpha=0.7, linewidths=0, label=name)
    for (name, point), marker, size in zip(tested.items(), "so*", (9, 11, 17), strict=True):
        label = f"{name}: {point.accuracy:.1f} %"
        right.plot(point.macs / 1e6, point.accuracy, marker, ms=size, mec="black", mfc="#0072B2", ls="none", label=label)
    for axes, part in ((left, "search"), (right, "test")):
        axes.axvline(budget / 1e6, color="grey", linestyle="--", linewidth=1, label="budget: half of the largest's MACs")
        axes.set_xscale("log")
        axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5], ["0.1", "0.2", "0.5", "1", "2", "5"])
        axes.set_xlabel("million multiply-adds (MACs) for one image")
        axes.set_ylabel(f"accuracy on the {part} part (%)")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    left.set_title("Subnets of one superformer, inherited weights")
    right.set_title("The largest network and the one that was found")
    right.margins(y=0.25)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train, search, export, retrain, test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and subnets; the split never changes")
    parser.add_argument("--output", type=Path, default=Path("quickstart.png"), help="where the picture goes")
    options = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)  # layers this small lose time on more
    torch.manual_seed(options.seed)
    train_part, search_part, test_part = load_parts()

    # Train: one set of weights for two billion networks.
    model = vitas.create_superformer("deit_micro", num_classes=10, img_size=8, in_chans=1)
    space = vitas.search_space(model)
    print(space)
    train(model, train_part, epochs=80, seed=options.seed, superformer=True)

    # Search: the best subnet, with inherited weights, that costs at most half of the largest; of equal ones the cheapest.
    largest = space.largest()  # the largest value of every choice; patches of 4 x 4 pixels make just 4 tokens
    budget = vitas.count_flops(model, largest).total / 2
    found = vitas.evolve(
        model,
        lambda model: accuracy(model, search_part),
        flops=budget,
        objectives={"accuracy": "max", "flops": "min"},
        population=20,
        generations=10,
        seed=options.seed,
    )
    chosen = found.best
    print(found, chosen, sep="\n")
    scores = score_subnets(model, search_part, n=100, seed=options.seed)  # random ones, for comparison
    macs = {subnet: vitas.count_flops(model, subnet).total for subnet in scores}

    # Export: plain torch modules with the same outputs, checked on real images; once more with fresh weights to retrain.
    networks = {
        "largest, inherited": vitas.export_subnet(model, largest, verify=search_part.images),
        "chosen, inherited": vitas.export_subnet(model, chosen, verify=search_part.images),
        "chosen, retrained": vitas.export_subnet(model, chosen, weights="fresh"),
    }
    train(networks["chosen, retrained"], train_part, epochs=60, seed=options.seed, superformer=False)

    # Report; the test part is used here for the first and only time.
    drawn = np.array(list(scores.values()))
    low, middle, high = np.quantile(drawn, [0, 0.5, 1])
    print(f"\ninherited accuracy of {len(drawn)} random subnets on the search part:")
    print(f"min {low:.1f} %, median {middle:.1f} %, max {high:.1f} %, standard deviation {drawn.std():.1f} points\n")
    print(f"{'network':<18}  {'test accuracy':>13}  {'MACs':>9}  {'parameters':>10}")
    tested = {}
    for name, network in networks.items():
        subnet = largest if name.startswith("largest") else chosen
        cost = vitas.count_flops(model, subnet).total
        tested[name] = Point(cost, accuracy(network, test_part))
        print(f"{name:<18}  {tested[name].accuracy:>11.1f} %  {cost:>9,}  {vitas.count_params(model, subnet):>10,}")
    clouds = {
        f"random, patches of {size} x {size}": [Point(macs[s], scores[s]) for s in scores if s["patch_size"] == size]
        for size in space.choices["patch_size"].values
    }
    clouds["evaluated by the search"] = [Point(int(s["flops"]), s["accuracy"]) for s in found.scores.values()]
    draw(options.output, clouds, tested, budget)
    print(f"\npicture: {options.output} ({time.perf_counter() - started:.0f} s in all)")


if __name__ == "__main__":
    main()

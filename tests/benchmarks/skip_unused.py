"""What `vitas.train.skip_unused` costs, and what it changes on scikit-learn's digits.

python tests/benchmarks/skip_unused.py cost [--rounds 10]
python tests/benchmarks/skip_unused.py digits [--seeds 3] [--epochs 60]
"""

import argparse
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

import vitas
from vitas.train.unused import skip_unused

WAYS = ("without", "per tensor", "per element")


def skip(optimizer: torch.optim.Optimizer, way: str) -> None:
    """Apply one of WAYS."""
    if way != "without":
        skip_unused(optimizer, per=way.split()[1])


def cost(rounds: int) -> None:
    """Print the CPU time of an AdamW step of vitas_deit in each way, one thread, and of the forward and backward pass."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = vitas.create_superformer("vitas_deit")
    optimizers = {}
    for way in WAYS:
        optimizers[way] = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, foreach=True)
        skip(optimizers[way], way)
    x, labels = torch.randn(16, 3, 224, 224), torch.zeros(16, dtype=torch.long)
    sampler = vitas.SubnetSampler(model, seed=0)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    passes = []
    for number in range(rounds + 1):
        sampler.sample(number)
        started = time.process_time()
        F.cross_entropy(model(x), labels).backward()
        passes.append(time.process_time() - started)
        for way, optimizer in optimizers.items():
            started = time.process_time()
            optimizer.step()
            times[way].append(time.process_time() - started)
        model.zero_grad(set_to_none=True)
    medians = {way: statistics.median(values[1:]) * 1e3 for way, values in times.items()}
    print(f"forward and backward, batch 16: median {statistics.median(passes[1:]) * 1e3:.0f} ms")
    for way, value in medians.items():
        print(f"AdamW step, {way}: median {value:.1f} ms ({value / medians['without']:.2f})")


def accuracies(model: torch.nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the accuracy of the smallest, the largest and the mean of 100 random subnets, in per cent."""
    space, generator = vitas.search_space(model), torch.Generator().manual_seed(1)
    model.eval()

    def accuracy(subnet: vitas.Subnet) -> float:
        with torch.no_grad(), vitas.use_subnet(model, subnet):
            return 100 * (model(images).argmax(1) == labels).double().mean().item()

    random = [accuracy(space.sample(generator)) for _ in range(100)]
    return {"smallest": accuracy(space.smallest()), "random": float(np.mean(random)), "largest": accuracy(space.largest())}


def digits(seeds: int, epochs: int) -> None:
    """Train deit_micro with one random subnet a step in each way, several seeds; print accuracies on held-out digits."""
    torch.set_num_threads(1)
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor((pixels - pixels.mean()) / pixels.std(), dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(classes)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.4, stratify=classes, random_state=0)
    ways = ("without", "per element")  # unused tensors have no gradient here, so "per tensor" changes nothing
    results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for seed in range(seeds):
        for way in ways:
            torch.manual_seed(seed)
            model = vitas.create_superformer("deit_micro", num_classes=10, img_size=8, in_chans=1)
            optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05, foreach=True)
            skip(optimizer, way)
            steps = epochs * (len(train) // 32)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
            sampler = vitas.SubnetSampler(model, seed=seed)
            for step in range(steps):
                batch = torch.tensor(train)[torch.randint(len(train), (32,))]
                sampler.sample(step)
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
            results[way].append(accuracies(model, images[test], labels[test]))
            print(seed, way, results[way][-1], flush=True)
    print("\n| way | smallest | mean of 100 random | largest |\n|---|---|---|---|")
    for way, rows in results.items():
        cells = [
            f"{np.mean([r[name] for r in rows]):.1f} ± {np.std([r[name] for r in rows], ddof=1):.1f}" for name in rows[0]
        ]
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "digits"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    cost(options.rounds) if options.what == "cost" else digits(options.seeds, options.epochs)

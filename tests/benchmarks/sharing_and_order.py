"""Which `sharing` and `order` of `wrap` start better, and end better, when a trained timm model is compressed.

    python tests/benchmarks/sharing_and_order.py [--seeds 0 1] [--budgets 50% 30%] [--epochs 16 5]

timm's test_vit learns scikit-learn's digits and is wrapped in each way. Printed is the test accuracy: the mean of eight
random subnets inside the budget before any training, the same after some epochs with the original as teacher, and that of
the first of them, exported and fine-tuned for as many epochs.
"""

import argparse
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset, random_split

import vitas
from vitas.compressing import from_teacher

WAYS = [("cyclic", None), ("cyclic", "magnitude"), ("ordinal", None), ("ordinal", "magnitude")]
BATCH = 64

Pair = tuple[Tensor, ...]


def parts(seed: int) -> list[Pair]:
    """Return images and labels for training, for a search, which is left out here, and for the accuracy."""
    pixels, digits = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(digits))
    split = random_split(data, [0.6, 0.2, 0.2], torch.Generator().manual_seed(seed))
    return [data[part.indices] for part in split]


def fit(
    model: nn.Module,
    train: Pair,
    epochs: int,
    lr: float,
    seed: int,
    teacher: nn.Module | None = None,
    draw: Callable[[int], object] = lambda step: None,
) -> None:
    """Run an ordinary training loop."""
    generator, steps = torch.Generator().manual_seed(seed), len(train[0]) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps, pct_start=0.1)
    batches = [one for _ in range(epochs) for one in torch.randperm(len(train[0]), generator=generator).split(BATCH)[:steps]]
    model.train()
    for step, batch in enumerate(batches):
        images, labels = train[0][batch], train[1][batch]
        draw(step)
        outputs = model(images)
        if teacher is None:
            loss = F.cross_entropy(outputs, labels)
        else:
            with torch.no_grad():
                taught = teacher(images)
            loss = from_teacher(outputs, taught, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    model.eval()


def compared(seed: int, budgets: list[str], epochs: tuple[int, int]) -> None:
    """Print a line for each budget and way."""
    train, _, test = parts(seed)
    right = vitas.accuracy([test])
    torch.manual_seed(seed)
    original = timm.create_model("test_vit", img_size=8, patch_size=2, in_chans=1, num_classes=10)
    fit(original, train, epochs[0], 2e-3, seed)
    print(f"seed {seed}: original {100 * right(original):.1f} %")
    for budget in budgets:
        for sharing, order in WAYS:
            torch.manual_seed(seed)
            model = vitas.wrap(original, depth="auto", sharing=sharing, order=order).eval()
            sampler = vitas.SubnetSampler(model, flops=budget, seed=seed)

            def mean(model: nn.Module = model, sampler: vitas.SubnetSampler = sampler) -> float:
                scores = []
                for step in range(10**6, 10**6 + 8):  # other draws than those of the training
                    sampler.sample(step)
                    scores.append(right(model.eval()))
                return sum(scores) / len(scores)

            start = mean()
            fit(model, train, epochs[1], 1e-3, seed, original, sampler.sample)
            trained = mean()
            small = vitas.export_subnet(model, sampler.sample(10**6))
            fit(small, train, epochs[1], 1e-3, seed, original)
            found = " -> ".join(f"{100 * score:.1f}" for score in (start, trained, right(small)))
            print(f"  {budget}  {sharing:<8} {order or 'as it is':<10} start -> trained -> fine-tuned: {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--budgets", nargs="+", default=["50%", "30%"], help="of the original's multiply-adds")
    parser.add_argument("--epochs", type=int, nargs=2, default=(16, 5), help="of the original; of each training after it")
    options = parser.parse_args()
    torch.set_num_threads(1)  # layers this small lose time on more
    for seed in options.seeds:
        compared(seed, options.budgets, options.epochs)


if __name__ == "__main__":
    main()

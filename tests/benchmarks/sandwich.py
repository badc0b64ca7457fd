"""What a sandwich costs: one step of four passes, whose gradients add up, against four steps of one pass each.

    python tests/benchmarks/sandwich.py [--steps 8] [--only vitas_deit] [--batch 4]

The same subnets on both sides: the smallest, two random ones, the largest. CPU times of one thread, interleaved in one
process; gradients are freed after each step, as zero_grad(set_to_none=True) does.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor, nn

import vitas
from vitas.train import sandwich

MODELS = {"vitas_deit": (16, 4), "vitas_twins": (4,)}


def step(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, number: int, together: bool) -> tuple[float, float]:
    """Return the seconds that forward and backward passes take, and those of the optimiser: one step together, or four."""
    passes = updates = 0.0
    subnets = list(sandwich(model, step=number))
    for k, subnet in enumerate(subnets):
        vitas.activate_subnet(model, subnet)
        start = time.thread_time()
        model(x).square().mean().backward()
        passes += time.thread_time() - start
        if not together or k + 1 == len(subnets):
            start = time.thread_time()
            optimizer.step()
            updates += time.thread_time() - start
            optimizer.zero_grad(set_to_none=True)
    return passes, updates


def compare(name: str, batch: int, steps: int) -> None:
    """Print the medians of both ways and their ratios."""
    model = vitas.create_superformer(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    x = torch.randn(batch, 3, 224, 224)
    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number in range(steps + 1):
        for together in (True, False) if number % 2 else (False, True):
            times[together].append(step(model, x, optimizer, number, together))
    ratios = [a[0] / b[0] for a, b in zip(times[True][1:], times[False][1:], strict=True)]
    whole = [sum(a) / sum(b) for a, b in zip(times[True][1:], times[False][1:], strict=True)]
    once, four = (statistics.median(passes for passes, _ in times[way][1:]) for way in (True, False))
    print(
        f"{name}, batch {batch}: forward and backward {once:.2f} s in one step, {four:.2f} s in four;"
        f" ratio {statistics.median(ratios):.3f}, with AdamW {statistics.median(whole):.3f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="steps of each way, and one more that is left out")
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--batch", type=int, help="this batch alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in [options.only] if options.only else MODELS:
        for batch in [options.batch] if options.batch else MODELS[name]:
            compare(name, batch, options.steps)


if __name__ == "__main__":
    main()

"""How well a table of measured parts predicts the latency of subnets that it was not fitted to.

    python tests/benchmarks/latency.py [--model vitas_deit] [--batch 1] [--subnets 50] [--statistic median] [--wall]

Times are CPU times of one thread, so that other work on the machine does not count; --wall takes the clock on the wall.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

import vitas
from vitas.measure import latency


def cpu_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Return this thread's CPU time of one call."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def main() -> None:
    """Build the table, measure held-out subnets, print errors and rank correlations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vitas_deit")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--subnets", type=int, default=50)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--statistic", default="median")
    parser.add_argument("--wall", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not options.wall:
        latency.seconds_of = cpu_seconds
    model = vitas.create_superformer(options.model, img_size=options.img_size)
    images = torch.randn(options.batch, 3, options.img_size, options.img_size)
    start = time.perf_counter()
    table = vitas.latency_table(model, images, runs=options.runs, statistic=options.statistic)
    print(f"{options.model}, {options.img_size} px, batch {options.batch}: {table}, {time.perf_counter() - start:.0f} s")
    generator = torch.Generator().manual_seed(1)  # the line was fitted to draws with seed 0
    subnets = [table.space.sample(generator) for _ in range(options.subnets)]
    measured, spread = np.zeros(len(subnets)), np.zeros(len(subnets))
    for number, subnet in enumerate(subnets):
        found = vitas.measure_latency(vitas.export_subnet(model, subnet), images, runs=3 * options.runs)
        measured[number], spread[number] = found.median, found.spread
    predicted = table.latency_ms(np.stack([table.space.encode(subnet) for subnet in subnets]))
    macs = np.array([vitas.count_flops(model, subnet).total for subnet in subnets], dtype=float)
    line = np.exp(np.polyval(np.polyfit(np.log(macs), np.log(measured), 1), np.log(macs)))  # fitted to these very subnets
    print(f"measured {measured.min():.2f} to {measured.max():.2f} ms; quartiles {np.median(spread / measured):.1%} apart")
    for name, guess in (("table", predicted), ("multiply-adds", line)):
        error = np.abs(guess / measured - 1)
        print(
            f"{name:<14} error: median {np.median(error):.1%}, 90th percentile {np.quantile(error, 0.9):.1%},"
            f" worst {error.max():.1%}; bias {np.median(guess / measured) - 1:+.1%};"
            f" Spearman {spearmanr(guess, measured)[0]:.4f}, Kendall {kendalltau(guess, measured)[0]:.4f}"
        )


if __name__ == "__main__":
    main()

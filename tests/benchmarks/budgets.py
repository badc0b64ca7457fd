"""Drawing inside budgets: set-up, a thousand draws, memory, and the share of proposals that arrive.

    python tests/benchmarks/budgets.py [space]

CPU time of one thread, median of five. Aims on vitas_deit: set-up 0.5 s and 1,000 draws 0.05 s for a window of a tenth, in
the middle or in the tail; 0.2 s for 1,000 in a window of 1e-4 of the cost; 3 s and 0.5 s for FLOPs and parameters together;
100 MB.
"""

import argparse
import statistics
import time
import tracemalloc

import numpy as np
import torch

import vitas

G, M = 10**9, 10**6
WINDOWS = {
    "a tenth, [0.9, 1.0] G": {"flops": (0.9 * G, G)},
    "tail, 1e-20 of the space, [8.2, 8.25] G": {"flops": (8.2 * G, 8.25 * G)},
    "1e-4 of the cost, 950.0 to 950.1 M": {"flops": (950 * M, 950.1 * M)},
    "one value, 951,007,888": {"flops": (951_007_888, 951_007_888)},
    "params, [4.0, 4.4] M": {"params": (4 * M, 4.4 * M)},
    "both a tenth": {"flops": (0.9 * G, G), "params": (4 * M, 4.4 * M)},
}
QUARTERS = {
    "a tenth, 50% to 55%": {"flops": ("50%", "55%")},
    "tail, from 97%": {"flops": ("97%", None)},
    "1e-4 of the cost": {"flops": ("50%", "50.005%")},
    "params, 50% to 55%": {"params": ("50%", "55%")},
    "both": {"flops": ("30%", "33%"), "params": ("30%", "33%")},
}


def measured(model, budget):
    setups, draws = [], []
    for seed in range(5):
        start = time.process_time()
        sampler = vitas.SubnetSampler(model, **budget)
        setups.append(time.process_time() - start)
        start = time.process_time()
        sampler.draw(1000, np.random.default_rng(seed))
        draws.append(time.process_time() - start)
    tracemalloc.start()
    sampler = vitas.SubnetSampler(model, **budget)
    sampler.draw(1000, np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    arrived = len(sampler._conditional.propose(4000, np.random.default_rng(1))[0]) / 4000
    return statistics.median(setups), statistics.median(draws), peak / 1e6, arrived


def main():
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="vitas_deit", help="of a superformer")
    name = parser.parse_args().name
    model = vitas.create_superformer(name)
    print(f"{name}: {vitas.search_space(model).size:.4g} networks")
    print(f"{'window':<42}{'set-up s':>9}{'1,000 draws s':>15}{'peak MB':>9}{'arrive':>8}")
    for window, budget in (WINDOWS if name == "vitas_deit" else QUARTERS).items():
        setup, draw, peak, arrived = measured(model, budget)
        print(f"{window:<42}{setup:>9.3f}{draw:>15.4f}{peak:>9.0f}{arrived:>8.1%}")
    start = time.process_time()
    budget = {"flops": (0.9 * G, G)} if name == "vitas_deit" else {"flops": ("50%", "55%")}
    count = vitas.count_subnets(model, **budget)
    print(f"count_subnets: {count} in {time.process_time() - start:.1f} s")


if __name__ == "__main__":
    main()

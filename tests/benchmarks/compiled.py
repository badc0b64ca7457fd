"""A compiled training step of vitas_deit against eager and against a compiled plain network.

    python tests/benchmarks/compiled.py [--subnets 3]

Needs a C++ compiler (torch's inductor). Times are CPU times of one thread, forward + backward, batch 4, 224 px.
"""

import argparse
import statistics
import time

import torch
from overhead import cpu_time, training_step

import vitas


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subnets", type=int, default=3)
    subnets = parser.parse_args().subnets
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = vitas.create_superformer("vitas_deit")
    compiled = torch.compile(model)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 224, 224)
    for number in range(subnets):
        subnet = vitas.sample_subnet(model, generator=generator)
        plain = vitas.export_subnet(model)
        plain_compiled = torch.compile(plain)
        ways = {"eager": model, "compiled": compiled, "plain eager": plain, "plain compiled": plain_compiled}
        steps = {name: training_step(way, x) for name, way in ways.items()}
        start = time.perf_counter()
        steps["compiled"]()
        first = time.perf_counter() - start
        for step in steps.values():
            step()
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(4):
            for name, step in steps.items():
                times[name].append(cpu_time(step))
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratios = ", ".join(f"{name} {value / medians['plain eager']:.2f}" for name, value in medians.items())
        shape = f"patch {subnet['patch_size']}, width {subnet['embed_dim']}, depth {subnet['depth']}"
        print(f"subnet {number} ({shape}): first compiled step {first:.0f} s; of plain eager: {ratios}", flush=True)


if __name__ == "__main__":
    main()

"""A superformer's active path against its own export on a GPU: eager and compiled, time, peak memory, images a second.

    python tests/benchmarks/gpu.py [--models vitas_deit vitas_twins] [--batch 256] [--subnets 10]
    python tests/benchmarks/gpu.py --smoke        # a tiny model on the CPU, to see that the script runs; no figures

A step is forward + backward in bfloat16 (autocast), gradients set to None before. Each figure is the median of interleaved
timings between device synchronisations. The export is the same network in plain torch.
"""

import argparse
import copy
import datetime
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

import vitas


def make_step(run: nn.Module, module: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return a forward and backward pass of `run`, whose weights are `module`'s."""

    def step() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            loss = F.cross_entropy(run(x).float(), labels)
        loss.backward()

    return step


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Callable[[], None], device: torch.device) -> float:
    """Return the time of one step."""
    synchronize(device)
    started = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - started


def peak_gigabytes(step: Callable[[], None], device: torch.device) -> float:
    """Return the most memory that one step took on top of the weights: activations and gradients; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e9


def compare(name: str, options: argparse.Namespace, device: torch.device, **arguments: object) -> list[tuple[float, float]]:
    """Print a table for one superformer; return the ratios (eager, compiled) of every subnet."""
    torch.manual_seed(0)
    model = vitas.create_superformer(name, **arguments).to(device)
    size = model.patch_embed.img_size if hasattr(model.patch_embed, "img_size") else (224, 224)
    x = torch.randn(options.batch, 3, *size, device=device)
    labels = torch.zeros(options.batch, dtype=torch.long, device=device)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=options.backend)
    space, generator = vitas.search_space(model), torch.Generator().manual_seed(0)
    subnets = [space.largest(), *(space.sample(generator) for _ in range(options.subnets))]
    print(f"\n{name}, batch {options.batch}, {size[0]} x {size[1]} px; GB: peak above the weights")
    print("| subnet | GMACs | eager / export | compiled / compiled export | images/s eager, compiled | GB, export's |")
    print("|---|---|---|---|---|---|")
    ratios = []
    for number, subnet in enumerate(subnets):
        vitas.activate_subnet(model, subnet)
        plain = vitas.export_subnet(model)
        plain_copy = copy.deepcopy(plain)
        runs = {
            "eager": (model, model),
            "plain": (plain, plain),
            "compiled": (compiled, model),
            "plain compiled": (torch.compile(plain_copy, backend=options.backend, dynamic=False), plain_copy),
        }
        steps = {way: make_step(run, module, x, labels) for way, (run, module) in runs.items()}
        for step in steps.values():
            for _ in range(3):  # compiling, tuning, warming up
                step()
        times: dict[str, list[float]] = {way: [] for way in steps}
        for _ in range(options.repeats):
            for way, step in steps.items():
                times[way].append(seconds(step, device))
        median = {way: statistics.median(values) for way, values in times.items()}
        eager, fast = median["eager"] / median["plain"], median["compiled"] / median["plain compiled"]
        ratios.append((eager, fast))
        model.zero_grad(set_to_none=True)
        plain.zero_grad(set_to_none=True)
        plain_copy.zero_grad(set_to_none=True)
        peaks = [peak_gigabytes(steps[way], device) for way in ("eager", "plain")]
        what = "largest" if number == 0 else f"random {number}"
        speeds = ", ".join(f"{options.batch / median[way]:.0f}" for way in ("eager", "compiled"))
        macs = vitas.count_flops(model, subnet).total / 1e9
        print(f"| {what} | {macs:.3f} | {eager:.3f} | {fast:.3f} | {speeds} | {peaks[0]:.2f}, {peaks[1]:.2f} |", flush=True)
    return ratios


def main() -> None:
    """Print the tables and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=[n for n in ("vitas_deit", "vitas_twins") if n in vitas.list_superformers()]
    )
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--subnets", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--smoke", action="store_true", help="run the same code with a tiny model on the CPU")
    options = parser.parse_args()
    device = torch.device("cpu" if options.smoke else "cuda")
    if options.smoke:
        options.models, options.batch, options.subnets, options.repeats, options.backend = ["deit_micro"], 2, 1, 1, "eager"
        print("smoke test on the CPU: these are no measurements")
    elif not torch.cuda.is_available():
        sys.exit("no CUDA device here: this benchmark needs a GPU (--smoke runs its code on the CPU)")
    card = "CPU" if options.smoke else torch.cuda.get_device_name(device)
    print(f"{card}, torch {torch.__version__}, {datetime.date.today()}")
    small = {"num_classes": 10, "img_size": 16} if options.smoke else {}
    # Superformer and exports run the same code of a block, each export with sizes of its own: many graphs, all of them kept.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 100_000
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for name in options.models:
        eager, compiled = zip(*compare(name, options, device, **small), strict=True)
        medians = f"eager {statistics.median(eager):.3f}, compiled {statistics.median(compiled):.3f}"
        print(f"{name}: medians of {len(eager)} subnets: {medians}")


if __name__ == "__main__":
    main()

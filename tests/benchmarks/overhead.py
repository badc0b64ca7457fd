"""What searching costs in speed: the active path against the same plain network, and the price of an activation.

    python tests/benchmarks/overhead.py [--quick] [--only wrapped]

Times are CPU times of one thread, forward + backward, the two interleaved in one process; the table gives ratios.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

import vitas


def cpu_time(step: Callable[[], object]) -> float:
    """Return the seconds of this thread's CPU time that a step takes."""
    start = time.thread_time()
    step()
    return time.thread_time() - start


def training_step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Return forward + backward, with gradients freed first as zero_grad(set_to_none=True) does."""

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        model(x).square().mean().backward()

    return step


def ratio(elastic: Callable[[], None], plain: Callable[[], None], repeats: int) -> float:
    """Return the ratio of the medians of interleaved runs, the first of each left out; the order turns every time."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        order = [(elastic, times[0]), (plain, times[1])]
        for step, kept in order if repeat % 2 else order[::-1]:
            kept.append(cpu_time(step))
    return statistics.median(times[0][1:]) / statistics.median(times[1][1:])


def steps(name: str, model: nn.Module, batch: int, subnets: int, repeats: int, side: int = 224) -> None:
    """Random subnets of a superformer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, side, side)
    ratios = []
    for _ in range(subnets):
        vitas.sample_subnet(model, generator=generator)
        plain = vitas.export_subnet(model)
        ratios.append(ratio(training_step(model, x), training_step(plain, x), repeats))
    ratios.sort()
    tenth = ratios[min(len(ratios) - 1, round(0.9 * len(ratios)))]
    middle = statistics.median(ratios)
    print(f"{name}, {subnets} subnets, batch {batch}: median {middle:.3f}, 90th percentile {tenth:.3f}", flush=True)


WRAPPED: dict[str, tuple[dict[str, object], int]] = {  # timm's name: arguments, side of the images
    "deit_tiny_patch16_224": ({}, 224),
    "vit_small_patch16_dinov3": ({"img_size": 224, "depth": 6}, 224),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 64, "num_heads": (2, 4, 8, 16), "depths": (2, 2, 4, 2)}, 224),
}


def wrapped(name: str, batch: int, subnets: int, repeats: int) -> None:
    """Random subnets of a model of timm; the exports are timm's own classes."""
    import timm

    options, side = WRAPPED[name]
    model = vitas.wrap(timm.create_model(name, **options), embed_dim="auto", depth="auto", inplace=True)
    steps(f"wrapped {name}", model, batch, subnets, repeats, side)


def linear(wide: int, narrow: int, used: tuple[int, int], tokens: int, repeats: int) -> None:
    """One CyclicLinear narrow -> wide, of which `used` channels are active, against nn.Linear."""
    x = torch.randn(tokens, used[0], requires_grad=True)
    for wraps in (False, True):
        starts = [1, 1] if not wraps else [narrow - 1, wide - 1]
        i, o = (
            vitas.Dim({count, largest}, sharing=lambda values, largest, p, start=start: [start, 0][-len(values) :])
            for count, largest, start in zip(used, (narrow, wide), starts, strict=True)
        )
        layer = vitas.nn.CyclicLinear(i, o)
        i.active, o.active = used
        plain = layer.export()
        got = ratio(training_step(layer, x), training_step(plain, x), repeats)
        how = "wrapping" if wraps else "one run "
        print(f"CyclicLinear {narrow} -> {wide}, {used[0]} -> {used[1]} in use, {tokens} tokens, {how}: {got:.3f}")


def activation(repeats: int) -> None:
    """space.activate on the choices of vitas_deit, validation included."""
    model = vitas.create_superformer("vitas_deit")
    space = vitas.search_space(model)
    generator = torch.Generator().manual_seed(0)
    subnets = [space.subnet({**space.sample(generator), "depth": 16}, fill="largest") for _ in range(repeats)]
    seconds = []
    for subnet in subnets:
        start = time.perf_counter()
        space.activate(subnet)
        seconds.append(time.perf_counter() - start)
    print(f"space.activate, {len(space)} choices all live: median {statistics.median(seconds) * 1e6:.0f} us")
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        vitas.search_space(model)
        seconds.append(time.perf_counter() - start)
    print(f"search_space(model): median {statistics.median(seconds) * 1e3:.2f} ms")


def counting(single: int = 300, many: int = 500_000) -> None:
    """Counts of vitas_deit's subnets, one at a time and as arrays."""
    model = vitas.create_superformer("vitas_deit")
    seconds = cpu_time(lambda: vitas.cost_model(model))
    costs = vitas.cost_model(model)
    generator = torch.Generator().manual_seed(0)
    subnets = [costs.space.sample(generator) for _ in range(single)]
    each = min(cpu_time(lambda: [costs.flops(subnet) for subnet in subnets]) / single for _ in range(5))
    codes = np.stack([costs.space.encode(subnet) for subnet in subnets])
    codes = np.tile(codes, (many // single, 1))
    rate = len(codes) / min(cpu_time(lambda: costs.flops(codes)) for _ in range(3))
    print(f"cost_model: set-up {seconds:.2f} s, one count {each * 1e6:.0f} us, {rate / 1e6:.1f} million counts a second")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer subnets and repeats")
    parser.add_argument("--only", choices=["wrapped"], help="only models of timm against their exports")
    options = parser.parse_args()
    quick = options.quick
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in WRAPPED:
        for batch in (16, 4):
            wrapped(name, batch, 4 if quick else 12, 3)
    if options.only:
        return
    activation(200)
    counting()
    repeats = 5 if quick else 15
    linear(1440, 384, (230, 864), 3152, repeats)
    linear(3072, 768, (461, 1843), 3152, repeats)
    linear(5120, 1280, (1280, 1280), 197, repeats)
    linear(5120, 1280, (640, 2560), 197, repeats)
    linear(4096, 1024, (512, 2048), 196, repeats)  # the last stage of vitas_twins, batch 4
    linear(4096, 1024, (205, 819), 196, repeats)
    for batch in (16, 4):
        steps("vitas_deit", vitas.create_superformer("vitas_deit"), batch, 6 if quick else 30, 3 if quick else 5)
    steps("vitas_twins", vitas.create_superformer("vitas_twins"), 4, 4 if quick else 20, 1 if quick else 2)


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("ignore", "unfair sharing")
    main()

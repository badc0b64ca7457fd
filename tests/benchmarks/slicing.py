"""Ways to cut a run out of a shared weight, each as one linear layer against nn.Linear: forward + backward.

    python tests/benchmarks/slicing.py

Times are CPU times of one thread, interleaved; the table gives ratios. See docs/benchmarks.md for what was kept and why.
"""

import statistics

import torch
import torch.nn.functional as F
from overhead import cpu_time
from torch import Tensor

from vitas.choice import Mark
from vitas.choice.slicing import cut

Runs = tuple[tuple[int, int], tuple[int, int]]


def joined(weight: Tensor, axis: int, start: int, length: int) -> Tensor:
    """A view, or `cat` of two views where the run wraps."""
    first = weight.shape[axis] - start
    if first >= length:
        return weight.narrow(axis, start, length)
    return torch.cat([weight.narrow(axis, start, first), weight.narrow(axis, 0, length - first)], axis)


def by_cat(x: Tensor, weight: Tensor, runs: Runs) -> Tensor:
    """Views and `cat`, torch's own gradients."""
    return F.linear(x, joined(joined(weight, 0, *runs[0]), 1, *runs[1]))


def by_index_select(x: Tensor, weight: Tensor, runs: Runs) -> Tensor:
    """`index_select` on both axes."""
    for axis, (start, length) in enumerate(runs):
        weight = weight.index_select(axis, torch.arange(start, start + length) % weight.shape[axis])
    return F.linear(x, weight)


def by_two_products(x: Tensor, weight: Tensor, runs: Runs) -> Tensor:
    """A matrix product for each piece of the input run."""
    rows = joined(weight, 0, *runs[0])
    start, length = runs[1]
    first = min(length, weight.shape[1] - start)
    y = F.linear(x[..., :first], rows.narrow(1, start, first))
    return y if first == length else y + F.linear(x[..., first:], rows.narrow(1, 0, length - first))


def by_one_function(x: Tensor, weight: Tensor, runs: Runs) -> Tensor:
    """What vitas does: one autograd function, one zeroed gradient."""
    cuts = [(axis, start, length) for axis, (start, length) in enumerate(runs)]
    return F.linear(x, cut([weight], [cuts], [MARK])[0])


MARK = Mark(1, 1).tensor
WAYS = [by_one_function, by_cat, by_index_select, by_two_products]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [
        (3152, 384, 1440, ((144, 720), (38, 192))),
        (3152, 384, 1440, ((1000, 720), (300, 192))),
        (3152, 768, 3072, ((300, 1536), (77, 384))),
        (3152, 768, 3072, ((2000, 1536), (600, 384))),
        (784, 384, 1440, ((1000, 720), (300, 192))),
        (197, 1280, 5120, ((1000, 1280), (0, 1280))),
    ]
    for tokens, width, height, runs in cases:
        x = torch.randn(tokens, runs[1][1], requires_grad=True)
        weight = torch.randn(height, width, requires_grad=True)
        plain = torch.randn(runs[0][1], runs[1][1], requires_grad=True)

        def step(way, x=x, runs=runs, weight=weight, plain=plain):
            weight.grad = plain.grad = x.grad = None
            (F.linear(x, plain) if way is None else way(x, weight, runs)).sum().backward()

        times = {way: [] for way in [None, *WAYS]}
        for _ in range(12):
            for way in times:
                times[way].append(cpu_time(lambda way=way, step=step: step(way)))
        base = statistics.median(times[None][1:])
        wraps = any(start + n > size for (start, n), size in zip(runs, (height, width), strict=True))
        ratios = "  ".join(f"{way.__name__[3:]} {statistics.median(times[way][1:]) / base:.2f}" for way in WAYS)
        how = "wrapping" if wraps else "one run "
        print(f"{tokens:>5} tokens, {width} -> {height}, {runs[1][1]} -> {runs[0][1]} in use, {how}: {ratios}")


if __name__ == "__main__":
    main()

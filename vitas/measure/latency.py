"""How long a network takes, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vitas.checks import as_count
from vitas.errors import VitasError, shown
from vitas.measure.runners import Runner, as_runner, prepared
from vitas.space import arguments_of, device_of, eval_mode


@dataclass(frozen=True)
class Latency:
    """Milliseconds that one batch takes; float() gives the median.

    Attributes:
        median: Median over the runs.
        spread: Distance between the quartiles.
        fastest: The quickest run; other work on the machine only slows one down.
        runs: How many runs were timed.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> latency = vitas.measure_latency(model, torch.randn(1, 3, 16, 16), runs=5)
        >>> float(latency) == latency.median
        True
        >>> latency.runs
        5
    """

    median: float
    spread: float
    fastest: float
    runs: int

    @property
    def busy(self) -> bool:
        """Whether the machine was too busy to believe the times: the quartiles are over a quarter of the median apart.

        Source: where torch.utils.benchmark warns of significant environmental influence (torch 2.14).
        """
        return self.spread > 0.25 * self.median

    def __float__(self) -> float:
        return self.median

    def __str__(self) -> str:
        runs = f"{self.runs} runs, quartiles {self.spread:.2g} ms apart"
        busy = "; the machine was busy: measure again" if self.busy else ""
        return f"median {self.median:.3g} ms, fastest {self.fastest:.3g} ms ({runs}){busy}"


def measure_latency(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    *,
    warmup: int = 5,
    runs: int = 30,
    amp: bool = False,
    runner: str | Runner = "torch",
) -> Latency:
    """Return how many milliseconds a module takes for one batch, in eval mode and without gradients.

    The device is waited for before and after every run. The module's training mode comes back. Of a superformer the active
    path is timed; what counts after the search is `vitas.export_subnet(model)`.

    Args:
        module: Any module.
        inputs: A batch, or a tuple of arguments; tensors are moved to the module's device first.
        warmup: Runs that are not timed.
        runs: Runs that are timed.
        amp: Whether to run under torch's autocast.
        runner: What it runs in, as in `latency_table`.

    Raises:
        VitasError: no module, or one on the meta device; inputs without a tensor, `warmup` below 0, `runs` below 1; another
            runner, or one that is not installed.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> small = vitas.export_subnet(model, vitas.search_space(model).smallest())
        >>> latency = vitas.measure_latency(small, torch.randn(1, 3, 16, 16), runs=5)
        >>> latency.fastest <= latency.median
        True
    """
    if not isinstance(module, nn.Module):
        raise VitasError(f"module: expected a torch.nn.Module, got {shown(module)}")
    warmup, runs = as_count(warmup, "warmup", 0, error=VitasError), as_count(runs, "runs", error=VitasError)
    runner = as_runner(runner)
    device = device_of(module)
    arguments = batch_arguments(inputs, device)
    with eval_mode(module), torch.no_grad(), torch.autocast(device.type, enabled=amp):
        return timed(prepared(runner, module, arguments, {}), device, warmup, runs)


def timed(run: Callable[[], object], device: torch.device, warmup: int, runs: int) -> Latency:
    """Call a function and return how long that took."""
    for _ in range(warmup):
        run()
    seconds = [seconds_of(run, device) for _ in range(runs)]
    low, median, high = (float(1000 * q) for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Latency(median, high - low, 1000 * min(seconds), runs)


def batch_arguments(inputs: Any, device: torch.device) -> tuple[Any, ...]:
    """Return the positional arguments that `inputs` stands for, their tensors on `device`."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), arguments_of(inputs))  # type: ignore[no-any-return]


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Call a function once and return how long that took, the device's work included."""
    _wait_for(device)
    start = time.perf_counter()
    run()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

"""How long a network takes, measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vitas.checks import as_count
from vitas.errors import VitasError, shown
from vitas.space import arguments_of, device_of, eval_mode


@dataclass(frozen=True)
class Latency:
    """Milliseconds that one batch takes; float() gives the median.

    Attributes:
        median: Median over the runs.
        spread: Distance between the quartiles.
        fastest: The quickest run; other work on the machine only slows one down.
        runs: How many runs were timed.
    """

    median: float
    spread: float
    fastest: float
    runs: int

    def __float__(self) -> float:
        return self.median

    def __str__(self) -> str:
        return f"{self.median:.3g} ms (spread {self.spread:.2g}, fastest {self.fastest:.3g}, {self.runs} runs)"


def measure_latency(
    module: nn.Module, inputs: Tensor | tuple[Any, ...], *, warmup: int = 5, runs: int = 30, amp: bool = False
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

    Raises:
        VitasError: no module, or one on the meta device; inputs without a tensor, `warmup` below 0, `runs` below 1.
    """
    if not isinstance(module, nn.Module):
        raise VitasError(f"module: expected a torch.nn.Module, got {shown(module)}")
    warmup, runs = as_count(warmup, "warmup", 0, error=VitasError), as_count(runs, "runs", error=VitasError)
    device = device_of(module)
    arguments = batch_arguments(inputs, device)
    with eval_mode(module), torch.no_grad(), torch.autocast(device.type, enabled=amp):
        for _ in range(warmup):
            module(*arguments)
        seconds = [seconds_of(module, arguments, {}, device) for _ in range(runs)]
    low, median, high = (float(1000 * q) for q in np.quantile(seconds, [0.25, 0.5, 0.75]))
    return Latency(median, high - low, 1000 * min(seconds), runs)


def batch_arguments(inputs: Any, device: torch.device) -> tuple[Any, ...]:
    """Return the positional arguments that `inputs` stands for, their tensors on `device`."""
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), arguments_of(inputs))  # type: ignore[no-any-return]


def seconds_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> float:
    """Run a module once and return how long that took, the device's work included."""
    _wait_for(device)
    start = time.perf_counter()
    module(*args, **kwargs)
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

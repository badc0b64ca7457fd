"""A training loop that goes on where it was stopped, for the superformer and for the network that is found in it."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitas.errors import FileError, ShapeError, VitasError, brief, needs
from vitas.export import check_fits
from vitas.measure.score import described, number_of_batches

LossOf = Callable[[int, Tensor, Tensor], Tensor]
"""(number of the step, images, labels) -> loss."""

_Which = dict[str, Any] | None

_WARM_UP = 0.05
_WEIGHT_DECAY = 0.05


def train(
    model: nn.Module,
    loader: Any,
    loss_of: LossOf,
    name: str,
    epochs: int,
    *,
    lr: float,
    seed: int,
    device: torch.device,
    folder: Path | None = None,
    progress: bool = False,
    subnet: Mapping[str, Any] | None = None,
) -> None:
    """Train a model with AdamW, a linear warm-up and a cosine to 0, and leave it in eval mode.

    What is random in an epoch follows from the seed and the epoch's number, so that a training that was stopped goes on from
    its file to the same end, where the loader draws its order from torch's default generator or has one that stays.

    Args:
        model: Trained in place, on `device`.
        loader: (images, labels) for each step of an epoch; knows its length.
        loss_of: Makes a subnet active where one is to be chosen, and returns the loss.
        name: What the progress bar and the file of the state are called.
        epochs: Passes over the loader.
        lr: Largest learning rate.
        seed: An int of at least 0.
        device: Where to train.
        folder: Where the state after each epoch is kept; None: nowhere.
        progress: Whether to show a progress bar.
        subnet: Which subnet of a superformer the model is, if it is one; the state of another one is not gone on with.

    Raises:
        VitasError: a loader without a length; a loss that is not a finite number.
        ShapeError: batches that are not (images, labels).
        FileError: a file that is not a state of this training, or one of another subnet.
    """
    steps, batches = length(loader), cast(Iterable[Any], loader)
    model.to(device).train()
    optimizer = torch.optim.AdamW(_groups(model), lr=lr)
    file = None if folder is None else folder / f"{name}.pt"
    which = None if subnet is None else dict(subnet)
    done = 0 if file is None or not file.exists() else _restore(file, model, optimizer, device, which)
    shown_steps = _bar(name, done * steps, epochs * steps) if progress else None
    for epoch in range(done, epochs):
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed((seed * 1_000_003 + epoch) % 2**64)  # torch takes no larger ones
            for step, batch in enumerate(batches, epoch * steps):
                images, labels = _pair(batch)
                for group in optimizer.param_groups:
                    group["lr"] = lr * _rate((step + 1) / (epochs * steps + 1))  # 0 only after the last step
                loss = loss_of(step, images.to(device), labels.to(device))
                if not math.isfinite(value := float(loss.detach())):
                    raise VitasError(f"step {step}: the loss is {value}; try a learning rate below {lr:g}")
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if shown_steps is not None:
                    shown_steps.set_postfix(loss=f"{value:.3g}", refresh=False)
                    shown_steps.update()
        if file is not None:
            _keep(file, model, optimizer, epoch + 1, which)
    if shown_steps is not None:
        shown_steps.close()
    model.eval()


def length(loader: Any) -> int:
    """Return how many steps an epoch has.

    Raises:
        VitasError: a loader without a length, or of length 0.
    """
    if not (number := number_of_batches(loader)):
        raise VitasError("train_loader: expected one with a length of at least 1, the number of steps in an epoch")
    return number


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return batch[0], batch[1]
    raise ShapeError(f"train_loader: expected a pair of tensors (images, labels), got {described(batch)}")


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters of an optimiser: biases, gains and other vectors do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": _WEIGHT_DECAY}
    return [decayed, {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0}]


def _rate(done: float) -> float:
    """Return which part of the learning rate holds when this part of the training is done."""
    if done <= _WARM_UP:
        return done / _WARM_UP
    return (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2


def _keep(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, subnet: _Which) -> None:
    draft = file.with_suffix(".draft")
    state = {"epochs": epochs, "subnet": subnet, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, draft)
    os.replace(draft, file)  # a kill leaves the old state or the new one


def _restore(file: Path, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, subnet: _Which) -> int:
    """Load the state of a training and return how many epochs it has behind it."""
    check_fits(file)
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        if state["subnet"] == subnet:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            return int(state["epochs"])
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, pickle.UnpicklingError) as error:
        raise FileError(f"{file}: not a state of this training ({brief(error)}); remove it to start anew") from None
    raise FileError(f"{file}: a state of another subnet; remove it to start anew")


def _bar(name: str, done: int, total: int) -> Any:
    with needs("search"):
        from tqdm.auto import tqdm

    return tqdm(desc=name, initial=done, total=total, unit="step", mininterval=1)

"""From a trained model and a budget to a smaller one, in one call."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitas.checks import ANY_INT, as_count, as_number, check_flags
from vitas.compressing.alike import alike
from vitas.compressing.school import Loss, School, Teacher, check_loss, from_teacher, precision_of
from vitas.compressing.training import length, train
from vitas.cost import count_flops, count_params
from vitas.errors import BudgetError, ChoiceError, FileError, VitasError, brief, one_of, shown
from vitas.export import export_subnet, read_text, save_subnet
from vitas.measure import LatencyTable, cross_entropy, latency_table
from vitas.measure.accuracy import Accuracy
from vitas.nn.kept import copied
from vitas.sample import SubnetSampler
from vitas.search import SearchResult, evolve
from vitas.search.run import digest_of, fingerprint
from vitas.space import Subnet, device_of, search_space
from vitas.tables import text_table
from vitas.wrapping import wrap

WRAP: Mapping[str, Any] = {
    "mlp_ratio": ["12.5%", "25%", "37.5%", "50%", "75%", "100%"],
    "depth": "auto",
    "sharing": "ordinal",
    "order": "magnitude",
}
"""How `compress` wraps what it is given: heads, MLPs and depth are searched, and important channels serve all widths.

MLPs go down to an eighth, beyond "auto", so that a budget of a half can be met by them alone.
"""

_NAMES = ["embed_dim", "num_heads", "mlp_ratio", "depth", "leave", "blocks", "sharing", "order", "images", "records"]


@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """What `compress` made; prints as a table.

    Attributes:
        network: The smaller network, fine-tuned, plain, in eval mode.
        subnet: Which subnet of the superformer it is.
        search: The search that found it.
        accuracy: Fractions of the validation images that are classified right by "original", "inherited" (the network with
            the superformer's weights) and "fine-tuned". The search saw these images: judge on others.
        flops: Multiply-adds of one image: original, network.
        params: Parameters: original, network.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_vit", num_classes=10, img_size=32)
        >>> data = torch.utils.data.TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 10)
        >>> loader = torch.utils.data.DataLoader(data, batch_size=8)
        >>> tiny = {"epochs": 1, "finetune_epochs": 1, "population": 2, "generations": 1}
        >>> done = vitas.compress(model, loader, loader, flops="50%", progress=False, **tiny)
        >>> list(done.accuracy)
        ['original', 'inherited', 'fine-tuned']
        >>> done.network(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """

    network: nn.Module
    subnet: Subnet
    search: SearchResult
    accuracy: Mapping[str, float]
    flops: tuple[int, int]
    params: tuple[int, int]

    def __repr__(self) -> str:
        rows = [("network", "accuracy", "multiply-adds", "parameters")]
        for name, value in self.accuracy.items():
            end = 0 if name == "original" else 1
            rows.append((name, f"{100 * value:.1f} %", f"{self.flops[end]:,}", f"{self.params[end]:,}"))
        return text_table(rows)


def compress(
    model: nn.Module,
    train_loader: Any,
    val_loader: Any,
    *,
    flops: Any = None,
    params: Any = None,
    latency: Any = None,
    epochs: int = 3,
    finetune_epochs: int = 27,
    lr: float = 5e-4,
    population: int = 50,
    generations: int = 10,
    space: Mapping[str, Any] | None = None,
    loss: Loss = from_teacher,
    folder: str | Path | None = None,
    device: torch.device | str | None = None,
    amp: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Compressed:
    """Make a trained classifier smaller: wrap it, train that with it as teacher, search, export, fine-tune.

    All of it is done by functions that you can call too, and written to be copied where you want another loop. All weights
    are trained, frozen ones too. With a `folder` a call that was stopped goes on where it was: after the last epoch of a
    training, the last evaluation of the search; when all is done, the same call returns the same network. Ctrl-C stops it.

    Args:
        model: A model of timm or of transformers that `wrap` takes, trained, in single precision; left as it was.
        train_loader: (images, labels) flipped and cropped, no more; knows its length.
        val_loader: (images, labels) that were not trained on, for the scores of the search; read once. A score is the mean
            of the cross entropies from the labels and from the original's outputs; 500 images are a beginning.
        flops: Budget of multiply-adds: an upper bound, (low, high), or percentages of the original as strings: "50%".
        params: Budget of parameters, likewise.
        latency: Budget of milliseconds for one image on `device`, likewise; the parts of the model are timed first, see
            `latency_table`. One of the three, or several at once.
        epochs: Passes over `train_loader` of the superformer.
        finetune_epochs: Passes of the network that was found.
        lr: Largest learning rate of AdamW; 1e-4 for large pretrained models.
        population: As in `evolve`.
        generations: As in `evolve`: population * generations subnets are scored, first those whose blocks are alike.
        space: Arguments of `wrap` that are not the usual ones, such as {"embed_dim": ["50%", "75%", "100%"]}; the usual ones
            are depth="auto", MLPs from an eighth on, sharing="ordinal", order="magnitude".
        loss: A function of logits, logits of the original and labels.
        folder: Where states, search and network are kept; made where it is missing. None: nothing is kept. It belongs to
            the model and these settings; whether the loaders' images and functions (`loss`, `order`) are the same is not
            looked at.
        device: Where to train; None: where the model is.
        amp: Whether to train in bfloat16 under torch's autocast; scores and latencies are under its default then.
        seed: Any int of at least 0.
        progress: Whether to show progress bars.

    Raises:
        WrapError: a model that cannot be wrapped.
        BudgetError: no budget, one that cannot be read or that no subnet meets.
        ChoiceError: numbers that cannot be used; weights in half precision or of several dtypes; arguments that `wrap` does
            not take.
        FileError: a folder of another model or of other settings.
        ShapeError: images of another dtype, of other channels or of a size that the model refuses; labels that are not those
            of classes.
        VitasError: a loader or outputs that do not fit; a loss, of the original too, that is not a finite number; optuna or
            tqdm is not installed.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_vit", num_classes=10, img_size=32)  # yours, trained
        >>> data = torch.utils.data.TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 10)
        >>> loader = torch.utils.data.DataLoader(data, batch_size=8)  # yours: one to train, one to score
        >>> tiny = {"epochs": 1, "finetune_epochs": 1, "population": 2, "generations": 1}  # leave out
        >>> done = vitas.compress(model, loader, loader, flops="50%", progress=False, **tiny)
        >>> done.flops[1] <= 0.5 * done.flops[0]
        True
    """
    check_flags(amp=amp, progress=progress)
    _check({"epochs": epochs, "finetune_epochs": finetune_epochs, "generations": generations}, population, lr, loss)
    if flops is None and params is None and latency is None:
        raise BudgetError('expected a budget, such as flops="50%"')
    options = _options(space)
    superformer: Any = wrap(model, **options)
    where = _place(model, device)
    superformer.to(where).requires_grad_(True)
    val_loader = list(val_loader) if isinstance(val_loader, Iterator) else val_loader
    frozen = copied(model).to(where).requires_grad_(False)
    teacher = Teacher(frozen, precision_of(superformer), superformer.image_shape(), amp).eval()
    loss_of = cross_entropy(val_loader, device=where, amp=amp, teacher=teacher)
    score = Accuracy.on_images_of(loss_of)
    if not math.isfinite(value := loss_of(teacher)):
        raise VitasError(
            f"val_loader: the loss of the model on these images is {value}; leave out those that give no numbers"
        )
    found = {"original": score(teacher)}
    made_for = {"model": fingerprint(model), "space": search_space(superformer).description(), "seed": seed, "lr": lr}
    made_for |= {"budget": [repr(flops), repr(params), repr(latency)], "epochs": [epochs, finetune_epochs], "amp": amp}
    made_for |= {"search": [population, generations], "loaders": [length(train_loader), score.images]}
    made_for |= {"order": _facts_of_order(options["order"], options.get("images"))}
    kept = None if folder is None else _prepared(folder, made_for)
    table = None if latency is None else _timed(superformer, val_loader, where, kept, amp)
    budget = {"flops": flops, "params": params, "latency": None if table is None else (table, latency)}
    sampler = SubnetSampler(superformer, **budget, seed=seed)
    school = School(teacher, loss, where, amp)
    settings: dict[str, Any] = {"lr": lr, "seed": seed, "device": where, "folder": kept, "progress": progress}

    train(superformer, train_loader, school.lesson(superformer, sampler.sample), "superformer", epochs, **settings)
    search = evolve(
        superformer,
        loss_of,
        **budget,
        objectives={"loss": "min"},
        initial=alike(sampler, population),
        population=population,
        generations=generations,
        seed=seed,
        storage=None if kept is None else kept / "search.log",
        progress=progress,
    )
    if search.interrupted:  # what is best so far is not what the same call is to end at
        raise KeyboardInterrupt
    network = export_subnet(superformer, search.best)
    found["inherited"] = score(network)
    train(network, train_loader, school.lesson(network), "fine-tuned", finetune_epochs, subnet=search.best, **settings)
    found["fine-tuned"] = score(network)
    if kept is not None:
        save_subnet(network, kept / "network", overwrite=True)  # there may be another one, of a search that has gone on
    both = (sampler.space.whole.largest(), search.best)
    macs, sizes = ([count(superformer, subnet) for subnet in both] for count in (_flops, count_params))
    return Compressed(network, search.best, search, found, (macs[0], macs[1]), (sizes[0], sizes[1]))


def _flops(model: nn.Module, subnet: Subnet) -> int:
    return count_flops(model, subnet).total


def _options(space: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of `wrap`.

    Raises:
        ChoiceError: no mapping, or a name that `wrap` does not take here.
    """
    if space is not None and not isinstance(space, Mapping):
        raise ChoiceError(f"space: expected arguments of wrap such as {{'embed_dim': ['50%', '100%']}}, got {shown(space)}")
    for name in space or {}:
        if name not in _NAMES:
            raise ChoiceError(f"space: {one_of(_NAMES, name)}")
    return {**WRAP, **(space or {})}


def _facts_of_order(order: Any, images: Any) -> Any:
    """Return what channels are ordered by, as JSON values; of a function no more than that it is one."""
    if callable(order):
        return "a function"
    if isinstance(order, Mapping):
        return digest_of({name: torch.as_tensor(scores) for name, scores in order.items()})
    inputs = images if isinstance(images, tuple) else (images,)
    return [order, digest_of({str(number): value for number, value in enumerate(inputs)})]


def _check(counts: Mapping[str, Any], population: Any, lr: Any, loss: Any) -> None:
    for name, number in counts.items():
        as_count(number, name, 1, ANY_INT)
    as_count(population, "population", 2, ANY_INT)
    if not 0 < as_number(lr, "lr") < 1e3:
        raise ChoiceError(f"lr: expected a number above 0, got {shown(lr)}")
    check_loss(loss)


def _place(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Return where to train.

    Raises:
        ChoiceError: a device that torch does not know or that is not there.
    """
    own = device_of(model)
    try:
        where = own if device is None else torch.device(device)
        torch.empty(1, device=where).fill_(1.0).item()
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        raise ChoiceError(f"device: got {shown(device, 40)} ({brief(error)})") from None
    return where


def _timed(superformer: nn.Module, loader: Any, device: torch.device, kept: Path | None, amp: bool) -> LatencyTable:
    """Return how long subnets take for one image, as the folder tells it or else as measured now."""
    file = None if kept is None else kept / "latency.json"
    if file is not None and file.exists():
        try:
            return LatencyTable.from_json(read_text(file, _MOST_BYTES), superformer)
        except VitasError as error:
            raise FileError(f"{file}: {brief(error)}; remove it to measure anew") from None
    images, _ = next(iter(loader))
    table = latency_table(superformer, images[:1].to(device), amp=amp)
    if file is not None:
        _write(file, table.to_json())
    return table


_MOST_BYTES = 2**22  # of what the folder tells


def _write(file: Path, text: str) -> None:
    draft = file.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)  # a kill leaves no half of it


def _prepared(place: str | Path, made_for: Mapping[str, Any]) -> Path:
    """Make the folder of a call, or see that it is that of this one.

    Raises:
        FileError: a folder of another model or of other settings; one that cannot be made.
    """
    try:
        folder = Path(place)
        facts = folder / "settings.json"
        folder.mkdir(parents=True, exist_ok=True)
        if not facts.exists():
            _write(facts, json.dumps(made_for, indent=1))
        before = read_text(facts, _MOST_BYTES)
    except (OSError, ValueError, TypeError) as error:
        raise FileError(f"{shown(place)}: cannot be used ({brief(error, 60)})") from None
    there, here = _read(before), json.loads(json.dumps(made_for))
    if differ := [name for name in here if there.get(name) != here[name]]:
        raise FileError(f"{folder}: made for another {' and '.join(differ)}; name another folder")
    return folder


def _read(text: str) -> Mapping[str, Any]:
    with suppress(ValueError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}

"""Measure whether cyclic sharing, identity shifting and weak augmentation steady the training and make rankings truer.

Trains one superformer for each pattern x depth x augmentation x seed, all with the same number of forward passes, scores
the same fixed networks in each, and compares with the accuracy that these networks reach alone. One command, from nothing:

    python examples/ablation.py --quick

Every training is a file in the output folder, so a run that was stopped goes on where it was. What came out, and what
follows from it: docs/ablation.md.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

import vitas

PATTERNS = ("ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired")
DEPTHS = ("free", "shifted", "uniform")
AUGMENTATIONS = ("weak", "strong")
IDENTITY = 0.39
"""Probability of an identity in a slot for "free" and "shifted": the mean depth of four slots is then that of "uniform"."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """What is trained and for how long; two runs with equal settings give equal figures.

    Attributes:
        data: "digits" (scikit-learn's), or a folder as torchvision's ImageFolder takes.
        img_size: Pixels of an image's side.
        patch_size: Pixels of a patch's side.
        distort: Strength of the fixed distortions that make the digits hard: 1 is up to 30 degrees, a fifth of the size,
            one pixel, and noise of 0.5 standard deviations.
        train_images: Training images; the rest of the digits, or `test_images` of a folder, are the test.
        test_images: Most test images.
        scale: Widths are multiples of 6 * scale up to 48 * scale.
        passes: Forward passes of each superformer; bilateral makes two in a step.
        alone_passes: Forward passes of each stand-alone network.
        batch: Images in a pass.
        lr: Largest learning rate.
        networks: Networks that are also trained alone.
        subnets: Further random networks that are only scored.
    """

    data: str = "digits"
    img_size: int = 8
    patch_size: int = 4
    distort: float = 0.5
    train_images: int = 900
    test_images: int = 800
    scale: int = 1
    passes: int = 400
    alone_passes: int = 200
    batch: int = 128
    lr: float = 4e-3
    networks: int = 24
    subnets: int = 50


QUICK = Settings()
SMOKE = replace(QUICK, passes=24, alone_passes=24, batch=16, test_images=100, networks=6, subnets=6)
FULL = replace(QUICK, passes=4000, alone_passes=2000)


class Cell(NamedTuple):
    """One training of a superformer."""

    pattern: str
    depth: str
    augmentation: str
    seed: int


# -- images ------------------------------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Images (n, channels, size, size), standardised, and labels (n,)."""

    pixels: Tensor
    labels: Tensor


@lru_cache(maxsize=1)
def load(settings: Settings) -> tuple[Images, Images]:
    """Return the training and the test part; the split and the distortions never change."""
    generator = torch.Generator().manual_seed(0)
    pixels, labels = _digits() if settings.data == "digits" else _folder(settings)
    order = torch.randperm(len(labels), generator=generator)[: settings.train_images + settings.test_images]
    pixels, labels = pixels[order], labels[order]
    n = settings.train_images
    pixels = (pixels - pixels[:n].mean()) / pixels[:n].std()
    if settings.distort:
        pixels = distort(pixels, settings.distort, generator)
    return Images(pixels[:n], labels[:n]), Images(pixels[n:], labels[n:])


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)


def _folder(settings: Settings) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    size = settings.img_size
    folder = ImageFolder(settings.data, Compose([Resize(size), CenterCrop(size), ToTensor()]))
    order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(1))
    chosen = [folder[i] for i in order[: settings.train_images + settings.test_images].tolist()]
    return torch.stack([image for image, _ in chosen]), torch.tensor([label for _, label in chosen])


def warp(pixels: Tensor, degrees: float, zoom: float, shift: float, generator: torch.Generator) -> Tensor:
    """Turn, scale and move each image by its own uniform amounts; what comes in from outside repeats the border.

    Args:
        pixels: (n, channels, size, size).
        degrees: Largest turn either way.
        zoom: Largest relative change of size.
        shift: Largest move along each axis, as a part of the image's side.
        generator: Source of randomness.
    """
    turn, size, right, down = torch.rand(4, len(pixels), generator=generator).mul(2).sub(1).to(pixels.device)
    angle, size = turn * math.radians(degrees), 1 + size * zoom
    rows = [
        size * angle.cos(),
        -size * angle.sin(),
        2 * shift * right,
        size * angle.sin(),
        size * angle.cos(),
        2 * shift * down,
    ]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def distort(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Make a set of images harder, once and for all: turned, scaled, moved, and noisy."""
    noise = torch.randn(pixels.shape, generator=generator)
    return warp(pixels, 30 * strength, 0.2 * strength, 0.125 * strength, generator) + 0.5 * strength * noise


def weak(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> Images:
    """Move each image by up to an eighth of its side."""
    return Images(warp(pixels, 0, 0, 0.125, generator), targets)


def strong(pixels: Tensor, targets: Tensor, generator: torch.Generator) -> Images:
    """Turn, scale and move each image, add noise, erase a rectangle in half of them, and mix pairs (mixup, alpha 1).

    Args:
        pixels: (n, channels, size, size).
        targets: (n, classes), rows that sum to 1.
        generator: Source of randomness.
    """
    pixels = warp(pixels, 20, 0.2, 0.125, generator)
    pixels = pixels + 0.3 * torch.randn(pixels.shape, generator=generator).to(pixels.device)
    n, size = len(pixels), pixels.shape[-1]
    low, length = torch.rand(2, 2, n, 1, generator=generator).to(pixels.device)
    length, place = 0.2 + 0.3 * length, torch.arange(size, device=pixels.device) / size
    low = low * (1 - length)
    rows, columns = (low <= place) & (place < low + length)
    chosen = (torch.rand(n, generator=generator) < 0.5).to(pixels.device)
    erased = rows[:, None, :, None] & columns[:, None, None, :] & chosen[:, None, None, None]
    pixels = pixels.masked_fill(erased, 0.0)
    part = 0.5 + torch.rand(n, generator=generator).to(pixels.device) / 2  # the heavier of two images keeps its place
    other = torch.randperm(n, generator=generator).to(pixels.device)
    pixels = pixels * part[:, None, None, None] + pixels[other] * (1 - part[:, None, None, None])
    return Images(pixels, targets * part[:, None] + targets[other] * (1 - part[:, None]))


AUGMENT: dict[str, Callable[[Tensor, Tensor, torch.Generator], Images]] = {"weak": weak, "strong": strong}


# -- networks ----------------------------------------------------------------------------------------------------------


def build(settings: Settings, classes: int, channels: int, pattern: str, depth: str) -> nn.Module:
    """Return the superformer of a cell: width, depth, and in each block the widths of attention and MLP, are choices."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "depth law: "
        )  # that deep slots starve under the binomial law is part of the question
        return vitas.superformer.DeiTSuperformer(
            settings.img_size,
            settings.patch_size,
            channels,
            classes,
            embed_dim=[6 * settings.scale * i for i in range(1, 9)],
            depth=range(1, 5),
            num_heads=2,
            global_pool="avg",
            qkv_dim=[8 * settings.scale * i for i in range(1, 5)],
            mlp_dim=[12 * settings.scale * i for i in range(1, 9)],
            sharing=pattern,
            shift=depth != "free",
            depth_p=None if depth == "uniform" else IDENTITY,
        )


def draw_networks(space: vitas.SearchSpace, n: int, seed: int) -> list[vitas.Subnet]:
    """Draw networks far enough apart: the widths and depths are dealt out evenly, the rest is drawn."""
    generator = torch.Generator().manual_seed(seed)

    def dealt(values: Sequence[int]) -> list[int]:
        rounds = [torch.randperm(len(values), generator=generator) for _ in range(n // len(values) + 1)]
        return [values[i] for i in torch.cat(rounds)[:n].tolist()]

    widths, depths = dealt(space.choices["embed_dim"].values), dealt(space.choices["depth"].values)
    chosen: dict[vitas.Subnet, None] = {}
    for width, depth in zip(widths, depths, strict=True):
        subnet = None
        while subnet is None or subnet in chosen:
            drawn = {**space.largest(), **{k: v for k, v in space.sample(generator).items() if k.startswith("blocks")}}
            for name, choice in space.choices.items():
                if name.startswith("blocks"):
                    drawn[name] = choice.values[int(torch.randint(len(choice.values), (), generator=generator))]
            subnet = space.subnet({**drawn, "embed_dim": width, "depth": depth})
        chosen[subnet] = None
    return list(chosen)


def fixed_networks(space: vitas.SearchSpace, settings: Settings) -> dict[str, vitas.Subnet]:
    """Return the networks that every cell scores, by name: extremes, those trained alone ("alone 0"...), and random ones."""
    middle = {name: choice.values[len(choice.values) // 2] for name, choice in space.choices.items()}
    networks = {"smallest": space.smallest(), "middle": space.subnet(middle), "largest": space.largest()}
    networks |= {f"alone {k}": s for k, s in enumerate(draw_networks(space, settings.networks, seed=1))}
    return networks | {f"random {k}": s for k, s in enumerate(draw_networks(space, settings.subnets, seed=2))}


def place(network: vitas.Subnet, space: vitas.SearchSpace, number: int) -> vitas.Subnet:
    """Return a network as a subnet of `space`; without shifting its blocks stand in fixed random slots.

    Args:
        network: In the shifted encoding.
        space: Shifted or not.
        number: Decides the slots.
    """
    if "depth" in space.choices:
        return network
    slots = sum(name.startswith("blocks.use.") for name in space.choices)
    depth = int(network["depth"])
    order = torch.randperm(slots, generator=torch.Generator().manual_seed(number))[:depth].sort().values.tolist()
    values = {"embed_dim": network["embed_dim"], **{f"blocks.use.{slot}": int(slot in order) for slot in range(slots)}}
    for block, slot in enumerate(order):
        values |= {f"blocks.{slot}.{kind}": network[f"blocks.{block}.{kind}"] for kind in ("qkv_dim", "mlp_dim")}
    return space.subnet(values)


# -- training ----------------------------------------------------------------------------------------------------------

CHECKPOINTS = 10
CURVE_IMAGES = 300


def fit(
    model: nn.Module,
    part: Images,
    settings: Settings,
    *,
    steps: int,
    augmentation: str,
    seed: int,
    loss_of: Callable[[nn.Module, Tensor, Tensor, torch.Generator], float],
    look: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Run an ordinary training loop (AdamW, warm-up over a tenth, then a cosine) and return the loss of each step.

    Args:
        model: Superformer or plain network.
        part: Training images.
        settings: Batch and learning rate.
        steps: Optimiser steps.
        augmentation: "weak" or "strong".
        seed: Of batches and augmentation.
        loss_of: (model, images, targets, generator) -> loss; runs forward and backward.
        look: Called after each tenth of the steps.
    """
    batches, draws = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1_000_000)
    device = next(model.parameters()).device
    targets = F.one_hot(part.labels, int(part.labels.max()) + 1).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.05, fused=True)
    warm = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: (t + 1) / warm if t < warm else (1 + math.cos(math.pi * (t - warm) / max(steps - warm, 1))) / 2
    )
    losses = []
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for step in range(1, steps + 1):
        if len(order) < settings.batch:
            order = torch.randperm(len(part.labels), generator=batches)
        chosen, order = order[: settings.batch], order[settings.batch :]
        images, soft = AUGMENT[augmentation](part.pixels[chosen].to(device), targets[chosen].to(device), batches)
        losses.append(loss_of(model, images, soft, draws))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"step {step}: the loss is {losses[-1]}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step * CHECKPOINTS // steps > (step - 1) * CHECKPOINTS // steps:
            model.eval()
            look(step)
            model.train()
    model.eval()
    return losses


def backward(model: nn.Module, images: Tensor, targets: Tensor, weight: float = 1.0) -> float:
    """Run forward and backward, and return the loss."""
    loss = F.cross_entropy(model(images), targets)
    (weight * loss).backward()
    return loss.item()


@torch.inference_mode()
def accuracy(model: nn.Module, part: Images) -> float:
    """Return the part of the images that are classified correctly."""
    device = next(model.parameters()).device
    hits = [
        (model(pixels.to(device)).argmax(dim=1).cpu() == labels).sum().item()
        for pixels, labels in zip(part.pixels.split(1000), part.labels.split(1000), strict=True)
    ]
    return sum(hits) / len(part.labels)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def classes_and_channels(part: Images) -> tuple[int, int]:
    return int(part.labels.max()) + 1, part.pixels.shape[1]


def train_alone(number: int, seed: int, settings: Settings) -> dict[str, Any]:
    """Train network `number` from scratch (weak augmentation) and return its accuracy."""
    train, test = load(settings)
    torch.manual_seed(10_000 + 100 * number + seed)
    model = build(settings, *classes_and_channels(train), "ordinal", "uniform")
    network = fixed_networks(vitas.search_space(model), settings)[f"alone {number}"]
    alone = vitas.export_subnet(model, network, weights="fresh").to(device())
    fit(
        alone,
        train,
        settings,
        steps=settings.alone_passes,
        augmentation="weak",
        seed=10_000 + 100 * number + seed,
        loss_of=lambda model, images, targets, generator: backward(model, images, targets),
    )
    return {"accuracy": accuracy(alone, test), "macs": vitas.count_flops(model, network).total, "network": dict(network)}


def train_cell(cell: Cell, settings: Settings) -> dict[str, Any]:
    """Train the superformer of a cell and return its figures.

    Returns:
        loss: Mean training loss in each tenth of the passes.
        roughness: Standard deviation of the loss about that mean, over the last half.
        curve: Accuracy of smallest, middle and largest at ten checkpoints, on the first `CURVE_IMAGES` test images.
        scores: Accuracy of each fixed network with inherited weights; the mean of both sides for bilateral sharing.
        updates: Backward passes of each channel of the residual stream, one figure for each step of its width.
    """
    train, test = load(settings)
    torch.manual_seed(cell.seed)
    model = build(settings, *classes_and_channels(train), cell.pattern, cell.depth).to(device())
    space = vitas.search_space(model)
    shifted = vitas.search_space(build(settings, *classes_and_channels(train), "ordinal", "uniform"))
    fixed = fixed_networks(shifted, settings)
    networks = {name: place(network, space, number) for number, (name, network) in enumerate(fixed.items())}
    sides = ("left", "right") if space.bilateral else (None,)
    width = space.choices["embed_dim"]
    updates = np.zeros(width.largest, dtype=np.int64)
    curve: dict[str, list[float]] = {name: [] for name in ("smallest", "middle", "largest")}

    def loss_of(model: nn.Module, images: Tensor, targets: Tensor, generator: torch.Generator) -> float:
        subnet = vitas.sample_subnet(model, generator=generator, activate=False)
        total = 0.0
        for side in sides:
            space.activate(subnet, side=side)
            updates[np.asarray(width.channels())] += 1
            total += backward(model, images, targets, weight=1 / len(sides)) / len(sides)
        return total

    def score(name: str, part: Images) -> float:
        total = 0.0
        for side in sides:
            space.activate(networks[name], side=side)
            total += accuracy(model, part)
        return total / len(sides)

    some = Images(test.pixels[:CURVE_IMAGES], test.labels[:CURVE_IMAGES])

    def look(step: int) -> None:
        for name, values in curve.items():
            values.append(score(name, some))

    losses = fit(
        model,
        train,
        settings,
        steps=settings.passes // len(sides),
        augmentation=cell.augmentation,
        seed=cell.seed,
        loss_of=loss_of,
        look=look,
    )
    parts = np.array_split(np.array(losses), CHECKPOINTS)
    return {
        "loss": [float(part.mean()) for part in parts],
        "roughness": float(np.mean([part.std() for part in parts[CHECKPOINTS // 2 :]])),
        "curve": curve,
        "scores": {name: score(name, test) for name in networks},
        "updates": updates[:: width.values[0]].tolist(),
    }


# -- a run: one file for each training ---------------------------------------------------------------------------------


def write_whole(path: Path, content: str) -> None:
    """Write a file to a temporary name and rename it, so that it is whole or not there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(path)


def rounded(value: Any) -> Any:
    """Return nested figures with five decimals."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def work(path: Path, settings: Settings) -> float:
    """Do the training that a file's name stands for, write the file, and return the seconds that it took."""
    torch.set_num_threads(1)  # layers this small lose time on more
    started = time.perf_counter()
    kind, *parts = path.stem.split("_")
    if kind == "alone":
        result = train_alone(int(parts[0]), int(parts[1]), settings)
    else:
        result = train_cell(Cell(parts[0], parts[1], parts[2], int(parts[3])), settings)
    write_whole(path, json.dumps(rounded(result)))
    return time.perf_counter() - started


class Grid(NamedTuple):
    """Which cells are trained: every combination."""

    seeds: int
    patterns: Sequence[str] = PATTERNS
    depths: Sequence[str] = DEPTHS
    augmentations: Sequence[str] = AUGMENTATIONS

    def cells(self) -> list[Cell]:
        """Return the cells, the question of shifting first, seed by seed, then the uniform law."""
        parts = [[d for d in self.depths if d != "uniform"], [d for d in self.depths if d == "uniform"]]
        return [
            Cell(pattern, depth, augmentation, seed)
            for depths in parts
            for seed, pattern, depth, augmentation in product(range(self.seeds), self.patterns, depths, self.augmentations)
        ]


def jobs(settings: Settings, grid: Grid) -> list[str]:
    """Return the names of all trainings, those of the noise ceiling first."""
    alone = [f"alone_{number}_{seed}" for seed in range(2) for number in range(settings.networks)]
    return alone + ["_".join(["cell", *map(str, cell)]) for cell in grid.cells()]


def train_all(folder: Path, settings: Settings, grid: Grid, workers: int) -> None:
    """Do the trainings whose files are missing.

    Raises:
        SystemExit: the folder holds a run with other settings.
    """
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    asked, kept = json.dumps(asdict(settings), indent=1), folder / "settings.json"
    if kept.exists() and kept.read_text(encoding="utf-8") != asked:
        raise SystemExit(f"{folder} holds a run with other settings (settings.json); give another --output, or remove it")
    write_whole(kept, asked)
    files = [folder / "cells" / f"{name}.json" for name in jobs(settings, grid)]
    missing = [file for file in files if not file.exists()]
    print(f"{len(files)} trainings, {len(missing)} to do, {workers} at a time", flush=True)
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(work, file, settings): file for file in missing}
        for done, future in enumerate(as_completed(running), 1):
            seconds = future.result()
            name = running[future].stem
            print(
                f"{done:>4}/{len(missing)}  {name:<40} {seconds:6.1f} s  ({time.perf_counter() - started:6.0f} s)",
                flush=True,
            )


# -- statistics --------------------------------------------------------------------------------------------------------


def agreement(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return, for each pair of networks, whether x and y order it alike (1, -1, or 0 for a tie), and whether each orders it.

    Args:
        x: (n,) one score of each network.
        y: (n,) another.

    Returns:
        Three (n, n) matrices: the product of signs, and the squared signs of x and of y.
    """
    a, b = np.sign(x[:, None] - x[None]), np.sign(y[:, None] - y[None])
    return a * b, a * a, b * b


def kendall_tau(x: Array, y: Array, times: Array | None = None) -> Array:
    """Return Kendall's tau-b between two scores of the same networks; nan where one of them ties all.

    Source: M. G. Kendall, "The treatment of ties in ranking problems", Biometrika 33 (1945).

    Args:
        x: (n,) scores.
        y: (n,) scores.
        times: (draws, n): how often each network is in each resample; None: each once. Copies of a network tie.

    Returns:
        (draws,), or () without `times`.
    """
    weights = np.ones((1, len(x))) if times is None else times
    same, first, second = (np.einsum("bi,ij,bj->b", weights, m, weights, optimize=True) for m in agreement(x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Array = same / np.sqrt(first * second)
    return tau[0] if times is None else tau


def resamples(rng: np.random.Generator, draws: int, n: int) -> Array:
    """Return how often each of n things is in each of `draws` resamples with replacement, (draws, n)."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(value: float, draws: Array) -> Estimate:
    """Return a figure with the 2.5 % and 97.5 % quantiles of its resampled values; all nan where it is not defined."""
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (math.nan, math.nan)
    return Estimate(float(value), float(low), float(high))


Condition = tuple[str, str, str]
"""(pattern, depth, augmentation)."""


class Sample(NamedTuple):
    """One figure of one condition, and its value in every resample; all conditions share seeds and networks."""

    value: float
    draws: Array


class Results:
    """The figures of a run, and their resamples.

    Args:
        records: As `collect` returns them.
        draws: Resamples of seeds and networks.
    """

    def __init__(self, records: Mapping[str, Any], draws: int = 2000) -> None:
        self.records = records
        alone = records["alone"]
        self.alone = np.array([alone["first"], alone["second"]])  # (2, networks)
        cells = [
            (Cell(*name.split("_")[:3], int(name.split("_")[3])), figures) for name, figures in records["cells"].items()
        ]
        found: dict[Condition, dict[int, Any]] = {}
        for cell, figures in cells:
            found.setdefault(cell[:3], {})[cell.seed] = figures
        self.seeds = sorted(max(found.values(), key=len))
        whole = {condition: by_seed for condition, by_seed in found.items() if sorted(by_seed) == self.seeds}
        self.cells = {condition: [by_seed[seed] for seed in self.seeds] for condition, by_seed in whole.items()}
        rng = np.random.default_rng(0)
        self.seed_times = resamples(rng, draws, len(self.seeds)) / len(self.seeds)
        self.network_times = resamples(rng, draws, self.alone.shape[1])
        self.subnet_times = resamples(rng, draws, len(self.array(next(iter(self.cells)), "random")[0]))

    def array(self, condition: Condition, kind: str) -> Array:
        """Return the scores of the networks of a kind, (seeds, networks)."""
        return np.array([figures[kind] for figures in self.cells[condition]], dtype=float)

    def ceiling(self, *, better_half: bool = False) -> Estimate:
        """Return Kendall's tau between the two trainings of the same networks from scratch."""
        (first, second), times = self.alone, self.network_times
        if better_half:
            kept = np.argsort(-self.alone.mean(axis=0), kind="stable")[: len(first) // 2]
            first, second, times = first[kept], second[kept], times[:, kept]
        return estimate(float(kendall_tau(first, second)), kendall_tau(first, second, times))

    def agreement_of(self, size: str) -> Estimate:
        """Return Kendall's tau between stand-alone accuracy and a size that needs no training: "macs" or a choice."""
        alone = self.records["alone"]
        sizes = alone["macs"] if size == "macs" else [network[size] for network in alone["networks"]]
        x, truth = np.array(sizes, dtype=float), self.alone.mean(axis=0)
        return estimate(float(kendall_tau(x, truth)), kendall_tau(x, truth, self.network_times))

    def tau(self, condition: Condition) -> Sample:
        """Kendall's tau between inherited accuracy and the mean of both stand-alone accuracies, mean over seeds."""
        truth = self.alone.mean(axis=0)
        scores = self.array(condition, "alone")
        value = np.mean([kendall_tau(row, truth) for row in scores])
        draws = np.stack([kendall_tau(row, truth, self.network_times) for row in scores], axis=1)
        return Sample(float(value), (draws * self.seed_times).sum(axis=1))

    def random(self, condition: Condition) -> Sample:
        """Mean inherited accuracy of the random networks."""
        scores = self.array(condition, "random")
        draws = np.einsum("bs,sn,bn->b", self.seed_times, scores, self.subnet_times, optimize=True) / scores.shape[1]
        return Sample(float(scores.mean()), draws)

    def _over_seeds(self, values: Array) -> Sample:
        return Sample(float(values.mean()), self.seed_times @ values)

    def smallest(self, condition: Condition) -> Sample:
        """Inherited accuracy of the smallest network."""
        return self._over_seeds(self.array(condition, "smallest"))

    def middle(self, condition: Condition) -> Sample:
        """Inherited accuracy of the middle network."""
        return self._over_seeds(self.array(condition, "middle"))

    def largest(self, condition: Condition) -> Sample:
        """Inherited accuracy of the largest network."""
        return self._over_seeds(self.array(condition, "largest"))

    def falls(self, condition: Condition) -> Sample:
        """Fall of accuracy from a checkpoint to the next (0 where it rose), mean of smallest, middle and largest."""
        curves = np.array([figures["curve"] for figures in self.cells[condition]])  # (seeds, 3, checkpoints)
        return self._over_seeds(np.maximum(0, -np.diff(curves, axis=2)).mean(axis=(1, 2)))

    def spread(self, condition: Condition) -> float:
        """Return the standard deviation of the curves over seeds, mean of three networks and the last half of the passes."""
        curves = np.array([figures["curve"] for figures in self.cells[condition]])
        half = curves[:, :, curves.shape[2] // 2 :]
        return float(half.std(axis=0, ddof=1).mean()) if len(curves) > 1 else math.nan

    def update_ratio(self, condition: Condition) -> float:
        """Most updates of a channel over the least, over all seeds."""
        updates = np.sum([figures["updates"] for figures in self.cells[condition]], axis=0)
        return float(updates.max() / updates.min())

    def contrast(self, figure: Callable[[Condition], Sample], a: Iterable[Condition], b: Iterable[Condition]) -> Estimate:
        """Return the mean figure of conditions a minus that of b, in the same resamples."""
        left, right = [figure(condition) for condition in a], [figure(condition) for condition in b]
        value = np.mean([s.value for s in left]) - np.mean([s.value for s in right])
        draws = np.mean([s.draws for s in left], axis=0) - np.mean([s.draws for s in right], axis=0)
        return estimate(float(value), draws)


def collect(folder: Path, settings: Settings, grid: Grid) -> dict[str, Any]:
    """Return the figures of a run in one small structure; cells that are not there yet are left out."""

    def read(name: str) -> dict[str, Any] | None:
        file = folder / "cells" / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    alone = [[read(f"alone_{number}_{seed}") for number in range(settings.networks)] for seed in range(2)]
    records: dict[str, Any] = {
        "settings": asdict(settings),
        "alone": {
            "macs": [one["macs"] for one in alone[0]],
            "networks": [one["network"] for one in alone[0]],
            "first": [one["accuracy"] for one in alone[0]],
            "second": [one["accuracy"] for one in alone[1]],
        },
        "cells": {},
    }
    for name in jobs(settings, grid):
        figures = read(name) if name.startswith("cell") else None
        if figures is None:
            continue
        scores = figures.pop("scores")
        figures["curve"] = list(figures["curve"].values())
        figures |= {name: scores[name] for name in ("smallest", "middle", "largest")}
        figures |= {kind: [v for k, v in scores.items() if k.startswith(kind + " ")] for kind in ("alone", "random")}
        records["cells"][name.removeprefix("cell_")] = figures
    return records


# -- the report --------------------------------------------------------------------------------------------------------

FIGURES = ("tau", "random", "smallest", "middle", "largest", "falls")
HEADINGS = {
    "tau": "Kendall tau",
    "random": "random networks",
    "smallest": "smallest",
    "middle": "middle",
    "largest": "largest",
    "falls": "falls",
}


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scaled(name: str, one: Estimate) -> str:
    """Return a figure with its interval: tau as it is, accuracies in per cent."""
    factor, digits = (1, 2) if name == "tau" else (100, 2 if name == "falls" else 1)
    value, low, high = (f"{factor * number:.{digits}f}" for number in one)
    return f"{value} [{low}, {high}]"


def levels(results: Results, factor: int) -> list[str]:
    """Return the levels of a factor that were run, in the usual order."""
    return [level for level in (*PATTERNS, *DEPTHS, *AUGMENTATIONS) if any(level == c[factor] for c in results.cells)]


def ceiling_table(results: Results) -> str:
    """Return the noise ceiling and the range of the stand-alone networks."""
    first, second = results.alone
    rows = [
        ["networks, each trained twice", str(len(first))],
        ["Kendall tau between both trainings", str(results.ceiling())],
        ["the same among the better half", str(results.ceiling(better_half=True))],
        ["Kendall tau of multiply-adds with accuracy", str(results.agreement_of("macs"))],
        ["Kendall tau of width with accuracy", str(results.agreement_of("embed_dim"))],
        ["stand-alone accuracy, lowest to highest", f"{100 * results.alone.min():.1f} to {100 * results.alone.max():.1f} %"],
        ["difference between both trainings, mean", f"{100 * np.abs(first - second).mean():.1f} points"],
    ]
    return table(["noise ceiling", "value"], rows)


def cells_table(results: Results) -> str:
    """Return every figure of every condition."""
    rows = []
    for condition in results.cells:
        samples = {name: getattr(results, name)(condition) for name in FIGURES}
        figures = [scaled(name, estimate(*sample)) for name, sample in samples.items()]
        rows.append(
            [*condition, *figures, f"{100 * results.spread(condition):.2f}", f"{results.update_ratio(condition):.2f}"]
        )
    return table(["pattern", "depth", "augmentation", *HEADINGS.values(), "spread", "updates"], rows)


def questions(results: Results) -> dict[str, tuple[list[Condition], list[Condition]]]:
    """Return what is compared with what: all conditions that differ in one factor only."""

    def pairs(factor: int, first: str, second: str, keep: Callable[[Condition], bool] = lambda c: True) -> Any:
        left = [c for c in results.cells if c[factor] == first and keep(c)]
        right = [(*c[:factor], second, *c[factor + 1 :]) for c in left]
        kept = [(a, b) for a, b in zip(left, right, strict=True) if b in results.cells]
        return [a for a, _ in kept], [b for _, b in kept]

    asked = {f"{pattern} - ordinal": pairs(0, pattern, "ordinal") for pattern in PATTERNS[1:]}
    asked["cyclic - bilateral"] = pairs(0, "cyclic", "bilateral")
    asked["identity shifting: shifted - free"] = pairs(1, "shifted", "free")
    asked["depth law: uniform - shifted"] = pairs(1, "uniform", "shifted")
    asked["augmentation: weak - strong"] = pairs(2, "weak", "strong")
    return {name: sides for name, sides in asked.items() if sides[0]}


def contrasts(results: Results) -> dict[str, dict[str, Estimate]]:
    """Return the difference in each figure for each question."""
    return {
        name: {figure: results.contrast(getattr(results, figure), *sides) for figure in FIGURES}
        for name, sides in questions(results).items()
    }


def contrasts_table(results: Results) -> str:
    """Return the differences; those whose interval leaves out 0 are bold."""

    def cell(figure: str, one: Estimate) -> str:
        text = scaled(figure, one)
        return f"**{text}**" if one.low > 0 or one.high < 0 else text

    rows = [[name, *(cell(figure, one) for figure, one in row.items())] for name, row in contrasts(results).items()]
    return table(["difference", *HEADINGS.values()], rows)


def spread_table(results: Results) -> str:
    """Return the roughness of the loss and the spread of the curves over seeds, for each level of each factor."""
    rows = []
    for factor, name in enumerate(("pattern", "depth", "augmentation")):
        for level in levels(results, factor):
            chosen = [condition for condition in results.cells if condition[factor] == level]
            rough = np.mean([[one["roughness"] for one in results.cells[c]] for c in chosen])
            spread = np.mean([results.spread(c) for c in chosen])
            ratio = np.mean([results.update_ratio(c) for c in chosen])
            rows.append([name, level, f"{rough:.3f}", f"{100 * spread:.2f}", f"{ratio:.2f}"])
    return table(["factor", "level", "roughness of the loss", "spread over seeds", "updates, most to least"], rows)


TABLES = {"ceiling": ceiling_table, "contrasts": contrasts_table, "steadiness": spread_table, "cells": cells_table}

COLOURS = dict(zip(PATTERNS, ("#000000", "#E69F00", "#0072B2", "#56B4E9", "#009E73"), strict=True))


def save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def draw_ceiling(results: Results, path: Path) -> None:
    """Draw the two trainings of each network against each other, and inherited against stand-alone accuracy."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    first, second = 100 * results.alone
    left.plot([first.min(), first.max()], [first.min(), first.max()], color="grey", linewidth=1)
    left.plot(first, second, "o", color="#0072B2", markersize=4)
    left.set(title=f"Trained alone, twice: tau {results.ceiling().value:.2f}")
    left.set(xlabel="accuracy, first training (%)", ylabel="accuracy, second training (%)")
    _, depth, augmentation = max(results.cells, key=lambda c: (c[2] == "weak", DEPTHS.index(c[1])))
    for pattern in PATTERNS:
        condition = (pattern, depth, augmentation)
        if condition in results.cells:
            scores = 100 * results.array(condition, "alone").mean(axis=0)
            label = f"{pattern}: tau {results.tau(condition).value:.2f}"
            right.plot((first + second) / 2, scores, "o", color=COLOURS[pattern], markersize=4, label=label)
    right.set(title=f"Inherited ({depth}, {augmentation}; mean of seeds)")
    right.set(xlabel="accuracy alone (%)", ylabel="accuracy, inherited (%)")
    right.legend(frameon=False, fontsize=8)
    save(figure, path)


def draw_taus(results: Results, path: Path) -> None:
    """Draw Kendall's tau of every condition with its interval, below the noise ceiling."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    depths, augmentations = levels(results, 1), levels(results, 2)
    panels = figure.subplots(1, len(augmentations), sharey=True, squeeze=False)[0]
    ceiling = results.ceiling()
    for axes, augmentation in zip(panels, augmentations, strict=True):
        axes.axhspan(ceiling.low, ceiling.high, color="grey", alpha=0.15)
        axes.axhline(ceiling.value, color="grey", linewidth=1)
        for k, pattern in enumerate(PATTERNS):
            for x, depth in enumerate(depths):
                if (pattern, depth, augmentation) not in results.cells:
                    continue
                one = estimate(*results.tau((pattern, depth, augmentation)))
                axes.plot([x + 0.12 * (k - 2)] * 2, one[1:], color=COLOURS[pattern], linewidth=1.5)
                label = pattern if x == 0 else None
                axes.plot(x + 0.12 * (k - 2), one.value, "o", color=COLOURS[pattern], markersize=5, label=label)
        axes.set_xticks(range(len(depths)), depths)
        axes.set_xlim(-0.5, len(depths) - 0.5)
        axes.set(title=f"{augmentation} augmentation", xlabel="depth")
    panels[0].set_ylabel("Kendall tau, inherited and alone")
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def draw_curves(results: Results, path: Path) -> None:
    """Draw the accuracy of smallest, middle and largest (their mean) during training, and its range over seeds."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    depths, augmentations = levels(results, 1), levels(results, 2)
    grid = figure.subplots(len(augmentations), len(depths), sharex=True, sharey=True, squeeze=False)
    for (row, augmentation), (column, depth) in product(enumerate(augmentations), enumerate(depths)):
        axes = grid[row, column]
        for pattern in PATTERNS:
            if (pattern, depth, augmentation) not in results.cells:
                continue
            curves = np.array([one["curve"] for one in results.cells[pattern, depth, augmentation]]).mean(axis=1) * 100
            done = np.arange(1, curves.shape[1] + 1) / curves.shape[1] * 100
            axes.fill_between(done, curves.min(axis=0), curves.max(axis=0), color=COLOURS[pattern], alpha=0.15, linewidth=0)
            axes.plot(done, curves.mean(axis=0), color=COLOURS[pattern], linewidth=1.5, label=pattern)
        axes.set_title(f"{depth}, {augmentation}", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("passes (%)")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    grid[0, 0].legend(frameon=False, fontsize=8)
    save(figure, path)


def draw_updates(results: Results, path: Path) -> None:
    """Draw how often each channel of the residual stream was updated."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for pattern in PATTERNS:
        chosen = [c for c in results.cells if c[0] == pattern]
        if chosen:
            updates = np.mean([one["updates"] for c in chosen for one in results.cells[c]], axis=0)
            unit = 6 * results.records["settings"]["scale"]
            axes.stairs(
                updates,
                np.arange(len(updates) + 1) * unit,
                baseline=None,
                color=COLOURS[pattern],
                linewidth=2,
                label=pattern,
            )
    axes.set(xlabel="channel of the residual stream", ylabel="backward passes", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8, ncols=2)
    save(figure, path)


PICTURES = {"ceiling": draw_ceiling, "tau": draw_taus, "curves": draw_curves, "updates": draw_updates}


def report(records: Mapping[str, Any], folder: Path) -> None:
    """Write figures, tables and pictures of a run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "results.json", json.dumps(records, separators=(",", ":")))
    results = Results(records)
    for name, tabulate in TABLES.items():
        write_whole(folder / f"{name}.md", tabulate(results) + "\n")
    for name, draw in PICTURES.items():
        draw(results, folder / f"{name}.png")
    print("\n\n".join(tabulate(results) for tabulate in TABLES.values()))
    if results.ceiling().value < 0.6:
        print("\nThe noise ceiling is below 0.6: no claim about rankings is possible here.")
    print(f"\nseeds: {len(results.seeds)}; tables and pictures in {folder}")


def main() -> None:
    """Train what is missing, then write figures, tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="a minute; the figures mean nothing")
    size.add_argument("--quick", action="store_true", help="for two CPU cores; default: full, ten times as long")
    parser.add_argument("--data", default="digits", help="'digits', or a folder as ImageFolder takes (not distorted)")
    parser.add_argument("--img-size", type=int, default=32, help="pixels of a folder's images; a multiple of 8")
    parser.add_argument("--images", type=int, default=5000, help="training images of a folder, and as many test images")
    parser.add_argument(
        "--seeds", type=int, help="superformers of a cell (default: 3, smoke 2, full 5); can be raised later"
    )
    parser.add_argument("--passes", type=int, help="forward passes of each superformer, in place of the usual")
    for name, levels in (("patterns", PATTERNS), ("depths", DEPTHS), ("augmentations", AUGMENTATIONS)):
        parser.add_argument(f"--{name}", nargs="+", choices=levels, help="default: all (smoke: three patterns)")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--output", type=Path, default=Path("ablation"), help="folder of the run; what is there is kept")
    options = parser.parse_args()
    settings, seeds = (SMOKE, 2) if options.smoke else (QUICK, 3) if options.quick else (FULL, 5)
    if options.data != "digits":
        images = min(options.images, settings.test_images) if options.smoke else options.images
        size, scale = options.img_size, 1 if options.smoke or options.quick else 4
        settings = replace(settings, data=options.data, img_size=size, patch_size=size // 8, distort=0.0)
        settings = replace(settings, train_images=images, test_images=images, scale=scale)
    settings = replace(settings, passes=options.passes or settings.passes)
    patterns = options.patterns or (("ordinal", "bilateral", "cyclic") if options.smoke else PATTERNS)
    grid = Grid(options.seeds or seeds, patterns, options.depths or DEPTHS, options.augmentations or AUGMENTATIONS)
    train_all(options.output, settings, grid, options.workers)
    report(collect(options.output, settings, grid), options.output / "report")


if __name__ == "__main__":
    main()

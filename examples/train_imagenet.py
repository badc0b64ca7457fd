r"""ViTAS on ImageNet (or any folder of classes): train a superformer, search it, retrain what was found, test it.

Needs pip install -e ".[timm,search]" and a folder with train/CLASS/*.jpg and val/CLASS/*.jpg. The published schedule, on
8 GPUs:

    torchrun --nproc-per-node 8 examples/train_imagenet.py superformer --data imagenet --output runs/superformer
    python examples/train_imagenet.py search --data imagenet --output runs/search \
        --weights runs/superformer/superformer.safetensors --flops 1.2e9 1.3e9
    torchrun --nproc-per-node 8 examples/train_imagenet.py retrain --data imagenet --output runs/retrained \
        --subnet runs/search/best.json
    python examples/train_imagenet.py test --data imagenet --network runs/retrained/network

The same command again goes on from the last checkpoint, and ends with the weights of a run that was never stopped: the
subnet, the images, their augmentation and every other random number of a step are functions of the seed and of the step.
The search scores subnets on images that the superformer was not trained on (`--hold-out`), never on those of the test.
A rank that stops answering ends the run after half of `--timeout`, named by the others; one that answers and only does not
come, after all of it, which is why that has to be longer than one rank ever keeps the others waiting.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_watch import RankWatch
from safetensors.torch import load_file, save_file
from timm.data import Mixup, create_dataset, transforms_factory
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler

import vitas
from vitas.train import RETRAIN, RETRAIN_LARGE, SUPERFORMER, Recipe, depth_law_for, supernet_report

RECIPES = {"superformer": SUPERFORMER, "retrain": RETRAIN, "retrain-large": RETRAIN_LARGE}
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


# -- data -----------------------------------------------------------------------------------------------------------------


def seed_everything(*numbers: int) -> None:
    """Make every generator a function of these numbers."""
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


class Augmented(Dataset[tuple[Tensor, int]]):
    """Images whose augmentation is a function of (seed, epoch, index)."""

    def __init__(self, images: Any, seed: int) -> None:
        self.images, self.seed = images, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        seed_everything(self.seed, *place)
        return self.images[place[1]]


class Batches(Sampler[list[tuple[int, int]]]):
    """One rank's batches from step `start` to `stop`: (epoch, index) of each image, a function of (seed, step)."""

    def __init__(self, indices: Any, size: int, start: int, stop: int, seed: int, rank: int, world: int) -> None:
        self.indices, self.size, self.start, self.stop = indices, size, start, stop
        self.seed, self.rank, self.world = seed, rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = len(self.indices) // (self.size * self.world)
        shuffled = -1
        for step in range(self.start, self.stop):
            epoch, place = divmod(step, per_epoch)
            if epoch != shuffled:
                order, shuffled = np.random.default_rng([self.seed, epoch]).permutation(self.indices), epoch
            first = (place * self.world + self.rank) * self.size
            yield [(epoch, int(index)) for index in order[first : first + self.size]]

    def __len__(self) -> int:
        return self.stop - self.start


def split_off(dataset: Any, per_class: int) -> tuple[Any, Any]:
    """Return the indices of all images but `per_class` of each class, and of those; always the same ones."""
    classes = np.array([label for _, label in dataset.reader.samples])
    order = np.random.default_rng(0).permutation(len(classes))
    held_out = np.concatenate([order[classes[order] == label][:per_class] for label in np.unique(classes)])
    return np.setdiff1d(np.arange(len(classes)), held_out), np.sort(held_out)


def evaluation_loader(options: argparse.Namespace, split: str, indices: Any = None) -> DataLoader[Any]:
    """Return a loader of images as tests see them: resized, centre crop."""
    dataset = create_dataset("", root=options.data, split=split)
    arguments = RETRAIN.to_timm(img_size=options.img_size)["eval_transform"]
    dataset.transform = transforms_factory.transforms_imagenet_eval(**arguments)
    images = dataset if indices is None else torch.utils.data.Subset(dataset, [int(index) for index in indices])
    return DataLoader(images, batch_size=options.eval_batch_size, num_workers=options.workers)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    """Return the fraction of images that are classified correctly."""
    training = model.training
    model.eval()
    right = [model(images.to(device)).argmax(dim=1).cpu() == labels for images, labels in loader]
    model.train(training)
    return torch.cat(right).double().mean().item()


# -- checkpoints ----------------------------------------------------------------------------------------------------------


def save_plain(model: nn.Module, path: Path) -> None:
    """Write the weights of a plain network, as vitas.save_superformer does those of a superformer."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def load_plain(model: nn.Module, path: Path) -> None:
    """Read the weights of a plain network."""
    model.load_state_dict(load_file(path))


class Checkpoints:
    """Folders step-N with all that a run needs to go on; each appears complete or not at all and replaces the last."""

    def __init__(self, folder: Path, settings: dict[str, Any], searchable: bool) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self.write = vitas.save_superformer if searchable else save_plain
        self.read = vitas.load_superformer if searchable else load_plain

    def latest(self) -> Path | None:
        """Return the newest."""
        found = [path for path in self.folder.glob("step-*") if path.name[5:].isdigit()]
        return max(found, key=lambda path: int(path.name[5:]), default=None)

    def save(self, step: int, model: nn.Module, ema: Any, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        """Write a checkpoint after `step` steps."""
        draft = self.folder / "unfinished"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        self.write(model, draft / "model.safetensors")
        if ema is not None:
            self.write(ema.module, draft / "ema.safetensors")
        state = optimizer.state_dict()["state"]
        tensors = {f"{number}.{key}": tensor for number, values in state.items() for key, tensor in values.items()}
        save_file(tensors, draft / "optimizer.safetensors")
        about = {"step": step, "settings": self.settings, "scaler": scaler.state_dict()}
        (draft / "state.json").write_text(json.dumps(about, indent=1))
        before = list(self.folder.glob("step-*"))
        draft.rename(self.folder / f"step-{step}")
        for path in before:
            shutil.rmtree(path)

    def load(self, model: nn.Module, ema: Any, optimizer: torch.optim.Optimizer, scaler: Any, device: torch.device) -> int:
        """Go on from the newest checkpoint; return the number of steps that it has seen, 0 where there is none."""
        path = self.latest()
        if path is None:
            return 0
        about = json.loads((path / "state.json").read_text())
        for name in {**self.settings, **about["settings"]}:
            was, now = about["settings"].get(name), self.settings.get(name)
            if was != now:
                raise SystemExit(f"{path}: cannot go on: {name} was {was!r} and is {now!r} now; choose another --output")
        self.read(model, path / "model.safetensors")
        if ema is not None:
            self.read(ema.module, path / "ema.safetensors")
            ema.n_averaged.fill_(about["step"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(path / "optimizer.safetensors", device=str(device)).items():
            number, key = name.split(".", 1)
            state.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        scaler.load_state_dict(about["scaler"])
        return int(about["step"])


# -- training -------------------------------------------------------------------------------------------------------------


def start_ranks(timeout: float) -> tuple[int, int, torch.device, RankWatch | None]:
    """Join the processes that torchrun started, if it did; return rank, number of ranks, device and watch."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        return 0, 1, device, None
    dist.init_process_group("nccl" if cuda else "gloo", timeout=datetime.timedelta(seconds=timeout))
    watch = RankWatch(timeout / 2, "; the same command goes on from the last checkpoint, --timeout says how long ranks wait")
    return dist.get_rank(), dist.get_world_size(), device, watch


def train(
    options: argparse.Namespace, recipe: Recipe, make_model: Callable[[int], nn.Module], hold_out: int
) -> nn.Module | None:
    """Train a superformer or a plain network; return it (its average where one is kept) on rank 0, None on the others."""
    rank, world, device, watch = start_ranks(options.timeout)
    dataset = create_dataset("", root=options.data, split="train")
    classes = len(dataset.reader.class_to_idx)
    timm_arguments = recipe.to_timm(img_size=options.img_size, num_classes=classes)
    dataset.transform = transforms_factory.transforms_imagenet_train(**timm_arguments["transform"])
    indices, _ = split_off(dataset, hold_out)
    micro_batch, rest = divmod(recipe.batch_size, world * options.accumulate)
    if rest:
        raise SystemExit(f"--batch-size {recipe.batch_size} has to be divided by {world} ranks x {options.accumulate} parts")
    per_epoch = len(indices) // recipe.batch_size
    if per_epoch == 0:
        raise SystemExit(f"--batch-size {recipe.batch_size} is larger than the {len(indices)} images to train on")
    steps = recipe.epochs * per_epoch

    seed_everything(options.seed)  # the same first weights everywhere
    model = make_model(classes).to(device)
    searchable = options.run is superformer
    sampler = vitas.SubnetSampler(model, seed=options.seed) if searchable else None
    optimizer = torch.optim.AdamW(recipe.param_groups(model), lr=recipe.lr)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay)) if recipe.ema_decay else None
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
    mixup = Mixup(**timm_arguments["mixup"]) if timm_arguments["mixup"] else None

    settings = {"recipe": dataclasses.asdict(recipe), "model": options.model, "set": options.set, "seed": options.seed}
    settings |= {"subnet": getattr(options, "subnet", None) and json.loads(Path(options.subnet).read_text())}
    settings |= {"mean_flops": getattr(options, "mean_flops", None)}
    settings |= {"img_size": options.img_size, "images": len(indices), "classes": classes, "hold_out": hold_out}
    settings |= {"ranks": world, "accumulate": options.accumulate, "amp": options.amp}
    checkpoints = Checkpoints(options.output / "checkpoints", settings, searchable)
    done = checkpoints.load(model, ema, optimizer, scaler, device)

    # The unused blocks and private copies of a subnet are what `find_unused_parameters` is for; a plain network has none.
    wrapped = DistributedDataParallel(model, find_unused_parameters=searchable) if world > 1 else model
    parts = options.accumulate
    batches = Batches(indices, micro_batch, done * parts, steps * parts, options.seed, rank, world)
    loader = DataLoader(
        Augmented(dataset, options.seed),
        batch_sampler=batches,
        num_workers=options.workers,
        pin_memory=device.type == "cuda",
    )
    images_of = iter(loader)
    model.train()
    started, first = time.perf_counter(), done
    for step in range(done, steps):
        if watch is not None:
            watch.step = step + 1
        if sampler is not None:
            sampler.sample(step)  # the same subnet on every rank, a function of (seed, step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.lr_factor(step / per_epoch)
        total = 0.0
        for part in range(parts):
            images, labels = (tensor.to(device, non_blocking=True) for tensor in next(images_of))
            seed_everything(options.seed, step, part, rank)
            if mixup is not None:
                images, labels = mixup(images, labels)
            waits = world > 1 and part < parts - 1  # gradients are averaged over the ranks once a step
            with wrapped.no_sync() if waits else contextlib.nullcontext():
                with torch.autocast(device.type, dtype=AMP[options.amp] or torch.bfloat16, enabled=options.amp != "none"):
                    smoothing = 0.0 if mixup else recipe.smoothing  # mixup's targets are smooth already
                    loss = F.cross_entropy(wrapped(images).float(), labels, label_smoothing=smoothing) / parts
                scaler.scale(loss).backward()
            total += loss.detach()
        if recipe.clip_grad is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update_parameters(model)
        if rank == 0 and ((step + 1) % options.checkpoint_every == 0 or step + 1 == steps):
            checkpoints.save(step + 1, model, ema, optimizer, scaler)
        if rank == 0 and ((step + 1) % options.log_every == 0 or step + 1 == steps):
            speed = (step + 1 - first) * recipe.batch_size / (time.perf_counter() - started)
            print(f"step {step + 1}/{steps}  loss {float(total):.4f}  {speed:.1f} images/s", flush=True)
    if watch is not None:
        watch.close()
        dist.destroy_process_group()
    return (ema.module if ema is not None else model) if rank == 0 else None


# -- the four commands ------------------------------------------------------------------------------------------------------


def make_superformer(options: argparse.Namespace, classes: int) -> nn.Module:
    """Return the superformer that the options name."""

    def make(**law: float) -> nn.Module:
        arguments = {**options.set, **law}
        return vitas.create_superformer(options.model, num_classes=classes, img_size=options.img_size, **arguments)

    if getattr(options, "mean_flops", None) is None:
        return make()
    with torch.device("meta"):  # its costs are all that is asked for
        model = make()
    return make(depth_p=depth_law_for(model, flops=options.mean_flops))


def superformer(options: argparse.Namespace) -> None:
    """Train a superformer; write superformer.safetensors and say how well it is trained."""
    model = train(options, recipe_of(options), lambda classes: make_superformer(options, classes), options.hold_out)
    if model is None:
        return
    vitas.save_superformer(model, options.output / "superformer.safetensors")
    if options.hold_out:
        loader = scoring_loader(options)
        device = next(model.parameters()).device
        print(supernet_report(model, lambda candidate: accuracy(candidate, loader, device), n_random=5))


def scoring_loader(options: argparse.Namespace) -> DataLoader[Any]:
    """Return the images that were held out of training."""
    return evaluation_loader(
        options, "train", split_off(create_dataset("", root=options.data, split="train"), options.hold_out)[1]
    )


def search(options: argparse.Namespace) -> None:
    """Search a trained superformer under a budget; write best.json."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = len(create_dataset("", root=options.data, split="train").reader.class_to_idx)
    model = make_superformer(options, classes).to(device)
    vitas.load_superformer(model, options.weights)
    options.output.mkdir(parents=True, exist_ok=True)
    result = vitas.evolve(
        model,
        vitas.accuracy(scoring_loader(options), device=device, amp=options.amp != "none"),
        flops=tuple(options.flops),
        population=options.population,
        generations=options.generations,
        seed=options.seed,
        storage=options.output / "search.log",  # the same command again goes on with the search
    )
    print(result.best)
    print(f"{vitas.count_flops(model, result.best).total:,} multiply-adds")
    (options.output / "best.json").write_text(result.best.to_json())


def retrain(options: argparse.Namespace) -> None:
    """Train a subnet from scratch; write the folder `network`."""
    subnet = vitas.Subnet.from_json(Path(options.subnet).read_text())
    recipe = recipe_of(options)

    def make_model(classes: int) -> nn.Module:
        arguments = {"drop_path_rate": recipe.drop_path, **options.set}
        return vitas.build_subnet(options.model, subnet, num_classes=classes, img_size=options.img_size, **arguments)

    network = train(options, recipe, make_model, hold_out=0)
    if network is not None:
        shutil.rmtree(options.output / "network", ignore_errors=True)
        vitas.save_subnet(network, options.output / "network")


def test(options: argparse.Namespace) -> None:
    """Print the accuracy of a retrained network on the images of val/, which nothing before has seen."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = vitas.load_subnet(options.network).to(device)
    print(f"accuracy {accuracy(network, evaluation_loader(options, 'val'), device):.2%}")


def recipe_of(options: argparse.Namespace) -> Recipe:
    """Return the published recipe with what the options change; at most half of a short training warms up."""
    names = ("epochs", "warmup_epochs", "batch_size", "lr", "ema_decay", "clip_grad")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    recipe = RECIPES[options.recipe]
    if options.epochs is not None:
        changes.setdefault("warmup_epochs", min(recipe.warmup_epochs, options.epochs // 2))
    return dataclasses.replace(recipe, **changes)


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the four commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command in (superformer, search, retrain, test):
        sub = commands.add_parser(command.__name__, help=command.__doc__)
        sub.set_defaults(run=command)
        sub.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and val/CLASS")
        sub.add_argument("--img-size", type=int, default=224)
        sub.add_argument("--workers", type=int, default=8, help="processes that read images, for each rank")
        sub.add_argument("--eval-batch-size", type=int, default=256)
        if command is test:
            sub.add_argument("--network", type=Path, required=True, help="folder that retrain wrote")
            continue
        sub.add_argument("--output", type=Path, required=True, help="folder of this run")
        sub.add_argument("--model", default="vitas_deit", help="name of the superformer")
        sub.add_argument("--set", type=setting, action=Settings, default={}, metavar="NAME=JSON", help="change its space")
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--amp", choices=AMP, default="none", help="the published runs used float32")
        if command is not retrain:
            sub.add_argument("--hold-out", type=int, default=10, help="training images of each class kept for the search")
        if command is search:
            sub.add_argument("--weights", type=Path, required=True, help="superformer.safetensors")
            sub.add_argument("--flops", type=float, nargs=2, required=True, metavar=("LOW", "HIGH"), help="multiply-adds")
            sub.add_argument("--population", type=int, default=50)
            sub.add_argument("--generations", type=int, default=40)
            continue
        if command is superformer:
            sub.add_argument("--mean-flops", type=float, help="depth law for this mean cost, as published; else uniform")
        if command is retrain:
            sub.add_argument("--subnet", type=Path, required=True, help="best.json of the search")
        names = [name for name in RECIPES if name.startswith(command.__name__)]
        sub.add_argument("--recipe", choices=names, default=names[0])
        sub.add_argument("--epochs", type=int)
        sub.add_argument("--warmup-epochs", type=int, help="default: the recipe's, but at most half of the epochs")
        sub.add_argument("--batch-size", type=int, help="over all ranks and parts")
        sub.add_argument("--lr", type=float)
        sub.add_argument("--ema-decay", type=float, help="keep an average of the weights and use that in the end")
        sub.add_argument("--clip-grad", type=float)
        sub.add_argument("--accumulate", type=int, default=1, help="parts of a batch, one after the other")
        sub.add_argument("--checkpoint-every", type=int, default=1000, help="steps")
        sub.add_argument("--log-every", type=int, default=100, help="steps")
        sub.add_argument("--timeout", type=float, default=300, help="seconds that ranks wait for each other; silence: half")
    return parser


def setting(text: str) -> tuple[str, Any]:
    """Read NAME=JSON."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


class Settings(argparse.Action):
    """Collects NAME=JSON arguments in a dict."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), values[0]: values[1]})


if __name__ == "__main__":
    options = arguments().parse_args()
    options.run(options)

"""The command line: `python -m vitas compress | spaces | count | show | serve`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vitas.compressing import compress
from vitas.cost import count_flops, count_params
from vitas.errors import ChoiceError, FileError, VitasError, brief, needs
from vitas.export import load_subnet
from vitas.sample import count_subnets
from vitas.search.storage import address, serve
from vitas.space import device_of, holders, search_space
from vitas.superformer import create_superformer, list_superformers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 1 after a mistake, which is printed in one line."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except VitasError as error:
        print(f"vitas: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vitas", description="Vision Transformers under a budget.")
    commands = parser.add_subparsers(required=True, metavar="compress | spaces | count | show | serve")

    one = commands.add_parser("compress", help="make a trained model of timm smaller")
    one.add_argument("--model", required=True, help="a name of timm, such as vit_small_patch16_224")
    one.add_argument("--data", type=Path, required=True, help="folder with train/ and val/, in either one for each class")
    one.add_argument("--checkpoint", help="file with weights that were trained on these classes; without it timm's own")
    one.add_argument("--flops", help="budget of multiply-adds, such as 50%%")
    one.add_argument("--params", help="budget of parameters, such as 50%%")
    one.add_argument("--latency", help="budget of milliseconds for one image on this machine, such as '8 ms'")
    one.add_argument("--img-size", type=int, help="height and width of the images; without it the model's own")
    one.add_argument("--epochs", type=int, default=3, help="of the superformer")
    one.add_argument("--finetune-epochs", type=int, default=27, help="of the network that is found")
    one.add_argument("--lr", type=float, default=5e-4)
    one.add_argument("--batch-size", type=int, default=64)
    one.add_argument("--population", type=int, default=50, help="of the search")
    one.add_argument("--generations", type=int, default=10, help="of the search")
    one.add_argument("--workers", type=int, default=2, help="processes that read images")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    one.add_argument("--amp", action="store_true", help="bfloat16")
    one.add_argument("--output", type=Path, help="folder of states and network; goes on where it was")
    one.set_defaults(run=_compress)

    one = commands.add_parser("spaces", help="list the search spaces that create_superformer knows")
    one.set_defaults(run=_spaces)

    one = commands.add_parser("count", help="show the choices of a space and how many networks a budget leaves")
    one.add_argument("space", help="a name that `spaces` lists")
    one.add_argument("--flops", help="budget of multiply-adds, such as 50%% or 1.3G")
    one.add_argument("--params", help="budget of parameters, likewise")
    one.add_argument("--img-size", type=int, default=224)
    one.add_argument("--num-classes", type=int, default=1000)
    one.set_defaults(run=_count)

    one = commands.add_parser("show", help="say what a folder of save_subnet holds")
    one.add_argument("folder", type=Path)
    one.set_defaults(run=_show)

    one = commands.add_parser("serve", help="let workers on other machines search in a journal file, by grpc://HOST:PORT")
    one.add_argument("storage", help="path of a journal file, or URL of a database")
    one.add_argument("--host", default="localhost", help="address on which to listen; who reaches it can change searches")
    one.add_argument("--port", type=int, default=13000)
    one.set_defaults(run=_serve)
    return parser


def _serve(options: argparse.Namespace) -> None:
    """Serve a storage until Ctrl-C."""
    told = f"grpc://{address(options.host, options.port)} serves {options.storage}; Ctrl-C ends it"
    with suppress(KeyboardInterrupt):
        serve(options.storage, options.host, options.port, partial(print, told, flush=True))


def _compress(options: argparse.Namespace) -> None:
    """Compress a model of timm for a folder of images."""
    with needs("timm"):
        import timm
        from timm.data import create_transform, resolve_model_data_config
        from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]

    try:
        parts = [ImageFolder(options.data / part) for part in ("train", "val")]
    except OSError as error:
        raise FileError(f"{options.data}: expected train/ and val/, a folder of images for each class ({error})") from None
    classes = parts[0].classes
    if classes != parts[1].classes:
        raise FileError(f"{options.data}: train/ and val/ have other classes")
    arguments: dict[str, Any] = {"img_size": options.img_size} if options.img_size else {}
    own = {"checkpoint_path": options.checkpoint, "num_classes": len(classes)}
    arguments |= {"pretrained": True} if options.checkpoint is None else own
    try:
        model: Any = timm.create_model(options.model, **arguments)
    except (RuntimeError, ValueError, TypeError, OSError, LookupError) as error:
        raise ChoiceError(f"{options.model}: timm cannot make it ({brief(error)})") from None
    if model.num_classes != len(classes):
        raise ChoiceError(
            f"{options.model}: trained on {model.num_classes} classes, and {options.data} has {len(classes)};"
            " fine-tune it, and give its weights by --checkpoint"
        )
    images: Any = {**resolve_model_data_config(model)}
    if options.img_size:
        images["input_size"] = (images["input_size"][0], options.img_size, options.img_size)
    for part, training in zip(parts, (True, False), strict=True):  # crops and flips only, as for a superformer
        plain = {"color_jitter": 0.0} if training else {}
        part.transform = create_transform(**images, is_training=training, **plain)
    if not 0 < options.batch_size <= len(parts[0]):
        raise ChoiceError(f"--batch-size: expected 1 to {len(parts[0])}, the images in train/, got {options.batch_size}")
    train, val = (
        torch.utils.data.DataLoader(part, options.batch_size, shuffle=first, drop_last=first, num_workers=options.workers)
        for part, first in zip(parts, (True, False), strict=True)
    )
    output = options.output or Path(f"{options.model}-compressed")
    done = compress(
        model,
        train,
        val,
        flops=options.flops,
        params=options.params,
        latency=options.latency,
        epochs=options.epochs,
        finetune_epochs=options.finetune_epochs,
        lr=options.lr,
        population=options.population,
        generations=options.generations,
        folder=output,
        seed=options.seed,
        device=options.device,
        amp=options.amp,
    )
    print(f'{done}\n\nvitas.load_subnet("{output / "network"}")')


def _spaces(options: argparse.Namespace) -> None:
    """List the search spaces."""
    for name in list_superformers():
        with torch.device("meta"):
            model = create_superformer(name)
        space = search_space(model) if any(holders(model)) else None
        number = "one network, nothing to search" if space is None else f"{space.size:.1e} networks, {len(space)} choices"
        print(f"{name:<24} {number}")


def _count(options: argparse.Namespace) -> None:
    """Show a space, and how many of its networks lie inside a budget."""
    with torch.device("meta"):
        model = create_superformer(options.space, num_classes=options.num_classes, img_size=options.img_size)
    budgeted = options.flops or options.params  # what cannot be read is said before anything is printed
    inside = count_subnets(model, flops=options.flops, params=options.params) if budgeted else None
    print(search_space(model))
    if inside is not None:
        print(f"{inside} networks inside the budget")


def _show(options: argparse.Namespace) -> None:
    """Say what a saved network is and costs."""
    network = load_subnet(options.folder)
    print(f"{type(network).__module__}.{type(network).__qualname__}")
    print(f"parameters     {count_params(network):,}")
    embed: Any = vars(network)["_modules"].get("patch_embed")
    size = None if embed is None else vars(embed).get("img_size")
    if size is not None:
        image = torch.zeros(1, embed.proj.in_channels, *size, device=device_of(network))
        shape = " x ".join(map(str, image.shape[1:]))
        print(f"multiply-adds  {count_flops(network, inputs=image).total:,} for {shape}")


if __name__ == "__main__":
    sys.exit(main())

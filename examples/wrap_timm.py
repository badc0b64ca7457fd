"""Fine-tune a timm model as a superformer, find a cheaper subnet in it, export that, and compare it with the original.

    python examples/wrap_timm.py  # timm's smallest ViT on scikit-learn's digits: a minute or two on two cores
    python examples/wrap_timm.py --model deit_small_patch16_224 --img-size 224 --data FOLDER

FOLDER holds train/ and val/, with a folder for each class in either.

Pretrained weights are downloaded; without a network it says so and goes on with random ones.
"""

import argparse
import socket
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import vitas

Parts = tuple[Dataset, Dataset, Dataset]


def create_model(name: str, num_classes: int, img_size: int) -> nn.Module:
    """Return a timm model, with pretrained weights where they can be had."""
    pretrained = True
    try:  # timm itself would try for a minute
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError as error:
        print(f"no pretrained weights of {name} ({error}): going on with random ones")
        pretrained = False
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, img_size=img_size)


def load_digit_parts(img_size: int) -> Parts:
    """Return 60 % of scikit-learn's 1,797 digits for training, 20 % for searching and 20 % for the final test."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, img_size, mode="bilinear").expand(-1, 3, -1, -1)
    everything = TensorDataset(images, torch.tensor(digits))
    return split(everything, [0.6, 0.2, 0.2])


def load_folder_parts(folder: Path, model: nn.Module) -> Parts:
    """Return 90 % of folder/train for training, 10 % of it for searching, and folder/val for the final test."""
    settings = {**resolve_model_data_config(model), "input_size": (3, *model.patch_embed.img_size)}
    train_images = ImageFolder(folder / "train", create_transform(**settings, is_training=True))
    search_images = ImageFolder(folder / "train", create_transform(**settings))
    train, _ = split(train_images, [0.9, 0.1])
    _, search = split(search_images, [0.9, 0.1])
    return train, search, ImageFolder(folder / "val", create_transform(**settings))


def split(data: Dataset, shares: list[float]) -> list[Subset]:
    """Return random parts of a dataset, always the same ones."""
    return torch.utils.data.random_split(data, shares, torch.Generator().manual_seed(0))


def fine_tune(model: nn.Module, data: Dataset, *, epochs: int, lr: float, superformer: bool) -> None:
    """Run an ordinary training loop, in which a wrapped model needs one extra line."""
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True, generator=generator)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=epochs * len(loader))
    model.train()
    for _ in tqdm(range(epochs), desc="wrapped model" if superformer else "original", unit="epoch", mininterval=1):
        for images, labels in loader:
            if superformer:
                vitas.sample_subnet(model, generator=generator)  # the extra line
            F.cross_entropy(model(images), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    model.eval()


def main() -> None:
    """Wrap, fine-tune, search, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="test_vit", help="a Vision Transformer of timm, such as deit_small_patch16_224")
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; without it scikit-learn's digits")
    parser.add_argument("--img-size", type=int, default=64, help="height and width of the images in pixels")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-3, help="largest learning rate; 1e-4 for pretrained weights")
    parser.add_argument("--budget", default="50%", help="of the original's multiply-adds")
    parser.add_argument("--generations", type=int, default=6, help="of ten subnets each")
    parser.add_argument("--output", type=Path, help="new folder for the export")
    options = parser.parse_args()
    torch.manual_seed(0)
    if not options.data:
        torch.set_num_threads(1)  # layers this small lose time on more

    classes = len(list((options.data / "train").iterdir())) if options.data else 10
    original = create_model(options.model, classes, options.img_size)
    parts = load_folder_parts(options.data, original) if options.data else load_digit_parts(options.img_size)
    train, search_part, test = parts

    model = vitas.wrap(original, depth="auto")  # a copy: heads, MLP widths and depth can now be searched
    space = vitas.search_space(model)
    print(space)
    fine_tune(original, train, epochs=options.epochs, lr=options.lr, superformer=False)
    fine_tune(model, train, epochs=options.epochs, lr=options.lr, superformer=True)

    score = vitas.accuracy(DataLoader(search_part, batch_size=128))
    best = vitas.evolve(model, score, flops=options.budget, population=10, generations=options.generations).best
    print(best)
    print(vitas.export_report(model, best))
    image = torch.stack([test[0][0]])
    small = vitas.export_subnet(model, best, verify=image)  # timm's own class, with the same outputs
    whole = vitas.export_subnet(model, space.largest(), verify=image)

    right = vitas.accuracy(DataLoader(test, batch_size=128))
    print(f"\n{'network':<28}  {'test accuracy':>13}  {'MACs':>13}  {'parameters':>10}  {'one image':>9}")
    for name, network, subnet in (
        ("original, fine-tuned", original.eval(), space.largest()),
        ("wrapped model, largest", whole, space.largest()),
        (f"wrapped model, best at {options.budget}", small, best),
    ):
        cost, size = vitas.count_flops(model, subnet).total, vitas.count_params(model, subnet)
        percent, milliseconds = 100 * right(network), vitas.measure_latency(network, image).median
        print(f"{name:<28}  {percent:>11.1f} %  {cost:>13,}  {size:>10,}  {milliseconds:>6.1f} ms")
    if options.output:
        vitas.save_subnet(small, options.output)
        name = vitas.register(options.output)
        print(f'\nsaved; timm.create_model("{name}", pretrained=True) builds it after vitas.register("{options.output}")')


if __name__ == "__main__":
    main()

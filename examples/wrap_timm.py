"""Fine-tune a vision tower as a superformer, find a cheaper subnet in it, export that, also as ONNX, and compare.

    python examples/wrap_timm.py  # timm's smallest ViT on scikit-learn's digits: a minute or two on two cores
    python examples/wrap_timm.py --model vit_small_patch16_dinov3 --pretrained --img-size 224 --lr 1e-4 --data FOLDER
    python examples/wrap_timm.py --model swin_tiny_patch4_window7_224 --kwargs embed_dim=24 depths=1,1,2,1 num_heads=1,2,4,8
    python examples/wrap_timm.py --transformers --model dinov2 --kwargs hidden_size=48 num_attention_heads=4

FOLDER holds train/ and val/, with a folder for each class in either. --kwargs are those of timm.create_model, or of the
config of transformers; here they make tiny models.
"""

import argparse
import ast
import math
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import vitas


def create_model(options: argparse.Namespace, num_classes: int) -> nn.Module:
    """Return a model of timm or of Hugging Face's transformers for images of this size."""
    kwargs = {name: ast.literal_eval(value) for name, _, value in (pair.partition("=") for pair in options.kwargs)}
    if not options.transformers:
        sizes = {"num_classes": num_classes, "img_size": options.img_size}
        return timm.create_model(options.model, pretrained=options.pretrained, **{**sizes, **kwargs})
    from transformers import AutoConfig, AutoModelForImageClassification

    if options.pretrained:
        return AutoModelForImageClassification.from_pretrained(options.model, num_labels=num_classes, **kwargs)
    config = AutoConfig.for_model(options.model, num_labels=num_classes, image_size=options.img_size, **kwargs)
    return AutoModelForImageClassification.from_config(config)


def logits_of(outputs: Any) -> Tensor:
    """Return the logits of a model of timm, or of one of transformers."""
    return outputs if isinstance(outputs, Tensor) else outputs.logits


def load_parts(folder: Path | None, img_size: int, model: nn.Module) -> list[Dataset]:
    """Return images to train with, to search with and for the final test: of a folder, or scikit-learn's digits."""
    seeded = torch.Generator().manual_seed(0)
    if folder is None:
        pixels, digits = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
        images = F.interpolate(images, img_size, mode="bilinear").expand(-1, 3, -1, -1)
        return random_split(TensorDataset(images, torch.tensor(digits)), [0.6, 0.2, 0.2], seeded)
    settings = {**resolve_model_data_config(model), "input_size": (3, img_size, img_size)}
    augmented = ImageFolder(folder / "train", create_transform(**settings, is_training=True))
    plain = [ImageFolder(folder / part, create_transform(**settings)) for part in ("train", "val")]
    train, search = torch.randperm(len(augmented), generator=seeded).split(math.ceil(0.9 * len(augmented)))
    return [Subset(augmented, train.tolist()), Subset(plain[0], search.tolist()), plain[1]]


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
            F.cross_entropy(logits_of(model(images)), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
    model.eval()


def save_onnx(model: nn.Module, image: Tensor, path: Path) -> None:
    """Write a network for batches of any size."""
    batch = torch.export.Dim("batch", min=1, max=1024)
    images = image.expand(2, -1, -1, -1)
    torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False).save(path)


def main() -> None:
    """Wrap, fine-tune, search, export, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="test_vit", help="a name of timm, or with --transformers a type such as dinov2")
    parser.add_argument("--transformers", action="store_true", help="a model of Hugging Face's transformers")
    parser.add_argument("--pretrained", action="store_true", help="download weights; --model then is a name that has some")
    parser.add_argument("--kwargs", nargs="*", default=[], metavar="NAME=VALUE", help="more arguments of the model")
    parser.add_argument("--data", type=Path, help="folder with train/ and val/; without it scikit-learn's digits")
    parser.add_argument("--img-size", type=int, default=64, help="height and width of the images in pixels")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-3, help="largest learning rate; 1e-4 for pretrained weights")
    parser.add_argument("--budget", default="50%", help="of the original's multiply-adds")
    parser.add_argument("--generations", type=int, default=6, help="of ten subnets each")
    parser.add_argument("--output", type=Path, help="new folder for the export; its ONNX file stands in it too")
    options = parser.parse_args()
    torch.manual_seed(0)
    if not options.data:
        torch.set_num_threads(1)  # layers this small lose time on more

    classes = len(list((options.data / "train").iterdir())) if options.data else 10
    original = create_model(options, classes)
    train, search_part, test = load_parts(options.data, options.img_size, original)

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
    small = vitas.export_subnet(model, best, verify=image)  # the library's own class, with the same outputs
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
        save_onnx(small, image, options.output / "model.onnx")
        print(f'\nsaved: vitas.load_subnet("{options.output}"), and {options.output / "model.onnx"}')


if __name__ == "__main__":
    main()

"""Fashion-MNIST from a folder of its four idx files, split into training, held-out and test images; and a stand-in."""

import gzip
import math
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FILES = {"train": "train", "test": "t10k"}
CLASSES, SIZE = 10, 28


class Images(NamedTuple):
    """Grey images (n, 1, 28, 28) of bytes, labels (n,), and what makes the training images standardised."""

    pixels: Tensor
    labels: Tensor
    mean: float
    std: float

    def batch(self, chosen: Tensor | slice, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the standardised images that `chosen` selects, and their labels."""
        pixels = self.pixels[chosen].to(device, torch.float32)
        return (pixels - self.mean) / self.std, self.labels[chosen].to(device)

    def batches(self, size: int = 500) -> list[tuple[Tensor, Tensor]]:
        """Return all images in order, as `vitas.accuracy` takes them."""
        return [self.batch(slice(first, first + size)) for first in range(0, len(self.labels), size)]


class Split(NamedTuple):
    """Images to train on, images of the same 60,000 that are held out for scores, and the test, used for one table only."""

    train: Images
    held_out: Images
    test: Images


def load(folder: str | Path, held_out: int = 5000) -> Split:
    """Read the four files, gzipped or not; which images are held out never changes.

    Args:
        folder: Where Debian's package `dataset-fashion-mnist` or torchvision's `FashionMNIST` (in `raw`) put the files.
        held_out: Number of images taken out of the training part.

    Raises:
        FileNotFoundError: no such file, with what to install.
        ValueError: a file that is cut, or of another kind or size.
    """
    parts = {}
    for part, prefix in FILES.items():
        pixels = read_idx(_find(Path(folder), f"{prefix}-images-idx3-ubyte"), axes=3)
        labels = read_idx(_find(Path(folder), f"{prefix}-labels-idx1-ubyte"), axes=1)
        if tuple(pixels.shape) != (len(labels), SIZE, SIZE):
            raise ValueError(f"{folder}: {part}: {len(labels)} labels do not fit images of shape {tuple(pixels.shape)}")
        if len(labels) and int(labels.max()) >= CLASSES:
            raise ValueError(f"{folder}: {part}: expected labels below {CLASSES}, got {int(labels.max())}")
        parts[part] = (pixels[:, None], labels.long())
    if not 0 < held_out < len(parts["train"][1]):
        raise ValueError(f"held_out: expected less than the {len(parts['train'][1])} training images, got {held_out}")
    return _split(*parts["train"], *parts["test"], held_out)


def stand_in(train: int = 400, held_out: int = 200, test: int = 100) -> Split:
    """Return generated images that take the place of the real ones in tests: a smooth pattern a class, and noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(CLASSES, 1, 4, 4, generator=generator)
    patterns = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")
    labels = torch.arange(train + held_out + test) % CLASSES
    noise = torch.rand(len(labels), 1, SIZE, SIZE, generator=generator)
    pixels = ((patterns[labels] + noise) * 127).to(torch.uint8)
    n = train + held_out
    return _split(pixels[:n], labels[:n], pixels[n:], labels[n:], held_out)


@lru_cache(maxsize=1)
def images(folder: str, held_out: int) -> Split:
    """Return the images of the study, or generated ones where there is no folder."""
    return load(folder, held_out) if folder else stand_in(held_out=held_out)


def read_idx(path: Path, axes: int) -> Tensor:
    """Return the bytes of an idx file as a tensor of `axes` axes.

    Raises:
        ValueError: not such a file, or one that is cut or too long.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes([0, 0, 8, axes]):
        raise ValueError(f"{path}: expected an idx file of bytes with {axes} axes, got one that begins {content[:4]!r}")
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path}: expected {start + math.prod(shape)} bytes for shape {tuple(shape)}, got {len(content)}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{folder}: {name} or {name}.gz expected; Debian's package dataset-fashion-mnist puts the files into"
        " /usr/share/datasets/fashion-mnist, torchvision.datasets.FashionMNIST(root, download=True) into FashionMNIST/raw"
    )


def _split(pixels: Tensor, labels: Tensor, test_pixels: Tensor, test_labels: Tensor, held_out: int) -> Split:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    kept, out = order[held_out:], order[:held_out]
    counts = torch.bincount(pixels[kept].flatten(), minlength=256).double() / pixels[kept].numel()
    mean = float(counts @ torch.arange(256.0).double())
    std = float(counts @ (torch.arange(256.0).double() - mean) ** 2) ** 0.5
    parts = ((pixels[kept], labels[kept]), (pixels[out], labels[out]), (test_pixels, test_labels))
    return Split(*(Images(*part, mean, std) for part in parts))

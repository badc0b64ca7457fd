"""The size of images, fixed or searched: what it may be, what depends on it, and images brought to the active one."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitas.checks import MOST_VALUES, are_several, is_int
from vitas.choice import Choice, mark_sizes, outside_graphs
from vitas.cost import Cost
from vitas.errors import ChoiceError, ShapeError, shown

MOST_PIXELS = 2**20  # of a side

Size = tuple[int, int]
ImageSize = int | tuple[int, int] | Iterable[int] | Choice[int]
"""A side for both, or (height, width); several sides, or a Choice of them: square images of a searched size."""


def pixels(img_size: int | tuple[int, int]) -> Size:
    """Return (height, width).

    Raises:
        ChoiceError: not one or two positive ints.
    """
    pair = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    if len(pair) != 2 or not all(is_int(n, 1, MOST_PIXELS) for n in pair):
        raise ChoiceError(f"img_size: expected a positive int or (height, width), got {shown(img_size)}")
    return int(pair[0]), int(pair[1])


def as_size(img_size: ImageSize) -> Size | Choice[int]:
    """Return (height, width), or a Choice of the sides of square images.

    A tuple is (height, width). Anything else that holds several ints, a list of two too, makes a choice; where they are
    equal, there is nothing to choose.

    Raises:
        ChoiceError: sides that are not positive ints.
    """
    if isinstance(img_size, Choice):
        choice = img_size
    elif not are_several(img_size) or isinstance(img_size, tuple):
        return pixels(img_size)  # type: ignore[arg-type]
    else:
        listed: list[Any] = list(islice(img_size, MOST_VALUES + 1))
        if len(listed) in (1, 2) and is_int(listed[0]) and is_int(listed[-1]) and listed[0] == listed[-1]:
            return pixels(listed[0])
        choice = Choice(listed, name="img_size")
    for side in choice.values:
        if not is_int(side, 1, MOST_PIXELS):
            raise ChoiceError(f"{choice.name or 'img_size'}: expected positive ints up to {MOST_PIXELS}, got {shown(side)}")
    return pixels(choice.largest) if choice.fixed else choice


def sizes_of(size: Size | Choice[int]) -> list[Size]:
    """Return every (height, width) that images may have, the largest last."""
    return [(side, side) for side in size.values] if isinstance(size, Choice) else [size]


class SizedImages(nn.Module):
    """Put before what is given images: their height and width are fixed, or one side for both is searched.

    Whatever has a table with an entry for each patch has that of the largest size.
    """

    @property
    def img_size(self) -> Size:
        """Height and width in pixels; those of the active subnet, where they are searched."""
        choice = searched_size(self)
        return largest_size(self) if choice is None else (choice.active, choice.active)

    @img_size.setter
    def img_size(self, size: Size | Choice[int]) -> None:
        vars(self)["img_size"] = size

    def resized(self, x: Tensor) -> Tensor:
        """Return images (B, C, S, S) in the active size, where that is searched: those of another one bicubic, antialiased.

        Raises:
            ShapeError: images of none of the sizes.
        """
        choice = searched_size(self)
        return x if choice is None else _resized(x, choice)


def searched_size(images: SizedImages) -> Choice[int] | None:
    """Return the choice of a side; None: there is nothing to choose."""
    size = vars(images)["img_size"]
    return size if isinstance(size, Choice) else None


def largest_size(images: SizedImages) -> Size:
    """Return height and width in pixels of the largest images."""
    return sizes_of(vars(images)["img_size"])[-1]


def each_size(images: SizedImages) -> Iterator[tuple[Cost, Size]]:
    """Yield every (height, width) with a Cost that is 1 in subnets of that size, else 0."""
    choice = searched_size(images)
    for size in sizes_of(vars(images)["img_size"]):
        own = Cost(1) if choice is None else Cost.table(choice, (int(side == size[0]) for side in choice.values))
        yield own, size


@outside_graphs
def _resized(x: Tensor, choice: Choice[int]) -> Tensor:
    height, width = x.shape[-2:] if x.ndim == 4 else (0, 0)
    if height != width or height not in choice.values:
        sides = ", ".join(map(str, choice.values))
        raise ShapeError(f"images: expected shape (batch, channels, S, S), S one of {sides}, got {tuple(x.shape)}")
    side = choice.active
    if side != height:
        wide = x if x.dtype is torch.float64 else x.float()
        x = F.interpolate(wide, size=(side, side), mode="bicubic", antialias=True).to(x.dtype)
    mark_sizes(x)
    return x


def as_exported(model: nn.Module, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return what a model is given as the export of its active subnet takes it: images of the size that this has.

    The first argument is resized, where it is a batch of images and a part of the model searches their size.
    """
    sized = (part for part in model.modules() if isinstance(part, SizedImages) and searched_size(part) is not None)
    part = next(sized, None)
    if part is None or not arguments or not isinstance(arguments[0], Tensor) or arguments[0].ndim != 4:
        return tuple(arguments)
    return part.resized(arguments[0]), *arguments[1:]

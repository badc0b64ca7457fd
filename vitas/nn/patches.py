"""How an image is cut into patches: sizes, counts and what does not fit."""

from vitas.checks import is_int
from vitas.choice import Choice
from vitas.cost import Cost
from vitas.errors import ChoiceError, shown

MOST_PIXELS = 2**20  # of a side


def pixels(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        ChoiceError: not one or two positive ints.
    """
    pair = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    if len(pair) != 2 or not all(is_int(n, 1, MOST_PIXELS) for n in pair):
        raise ChoiceError(f"img_size: expected a positive int or (height, width), got {shown(img_size)}")
    return int(pair[0]), int(pair[1])


def patch_count(img_size: tuple[int, int], patch: int) -> int:
    """Return the number of patches of one size."""
    return (img_size[0] // patch) * (img_size[1] // patch)


def patches(patch_size: Choice[int], img_size: tuple[int, int]) -> Cost:
    """Return the number of patches for each patch size as a Cost."""
    return Cost.table(patch_size, (patch_count(img_size, patch) for patch in patch_size.values))


def check_patches(patch_size: Choice[int], img_size: tuple[int, int]) -> None:
    """Refuse patch sizes that do not divide the image.

    Raises:
        ChoiceError: with the sizes that do.
    """
    height, width = img_size
    for patch in patch_size.values:
        if not isinstance(patch, int) or patch < 1 or height % patch or width % patch:
            fitting = [n for n in range(1, min(img_size) + 1) if height % n == 0 and width % n == 0]
            raise ChoiceError(
                f"{patch_size.name or 'patch_size'}: {patch} does not divide an image of {height} x {width} pixels;"
                f" these do: {', '.join(map(str, fitting))}"
            )

"""How an image is cut into patches: sizes, counts and what does not fit."""

from typing import Any

from vitas.choice import Choice
from vitas.cost import Cost
from vitas.errors import ChoiceError, listed
from vitas.nn.images import Size, SizedImages, each_size, searched_size, sizes_of


def patch_count(img_size: tuple[int, int], patch: int) -> int:
    """Return the number of patches of one size."""
    return (img_size[0] // patch) * (img_size[1] // patch)


def patches(patch_size: Choice[int], images: SizedImages) -> Cost:
    """Return the number of patches for each patch size, and each size of images, as a Cost."""
    counts = (
        own * Cost.table(patch_size, (patch_count(size, patch) for patch in patch_size.values))
        for own, size in each_size(images)
    )
    return sum(counts, Cost())


def check_patches(patch_size: Choice[int], img_size: Size | Choice[int]) -> None:
    """Refuse patch sizes that do not divide the image, in each of its sizes.

    Raises:
        ChoiceError: with the sizes that do.
    """
    for height, width in sizes_of(img_size):
        for patch in patch_size.values:
            if not isinstance(patch, int) or patch < 1 or height % patch or width % patch:
                sides = range(1, min(height, width) + 1)
                fitting = listed(str(side) for side in sides if height % side == 0 and width % side == 0)
                raise ChoiceError(
                    f"{patch_size.name or 'patch_size'}: {patch} does not divide an image of {height} x {width} pixels;"
                    f" these do: {fitting}"
                )


def lacks_patches(patch_size: Choice[int], images: SizedImages, choice: Choice[Any], value: Any) -> str | None:
    """Say that a size of images is not made of whole patches, where it is not."""
    if choice is searched_size(images) and (value < 1 or any(value % patch for patch in patch_size.values)):
        return f"needs images that patches of {', '.join(map(str, patch_size.values))} pixels divide"
    return None

"""What both families of superformers have in common."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from vitas.choice import Dim
from vitas.errors import ChoiceError
from vitas.memory import refuse_beyond_memory, takes_memory
from vitas.nn import Elastic
from vitas.nn.follow import follow
from vitas.nn.images import SizedImages, pixels, searched_size
from vitas.space import State, holders, search_space
from vitas.superformer.arguments import read_again

M = TypeVar("M", bound=nn.Module)


def within_memory(kind: type[M]) -> type[M]:
    """Let the constructor of a class refuse more weights than this machine has memory for, before any is allocated.

    It runs on the meta device first, where every mistake is found, and the size, at no cost.
    """
    construct: Any = kind.__init__

    @wraps(construct)
    def bounded(self: nn.Module, *args: Any, **options: Any) -> None:
        args = tuple(read_again(value) for value in args)
        options = {name: read_again(value) for name, value in options.items()}
        if takes_memory():
            draft = kind.__new__(kind)
            with torch.device("meta"):
                construct(draft, *args, **options)
            size = sum(parameter.nbytes for parameter in draft.parameters())
            refuse_beyond_memory(size, f"{kind.__name__} of these sizes", ChoiceError)
        construct(self, *args, **options)

    kind.__init__ = bounded  # type: ignore[method-assign]
    return kind


@contextmanager
def our_words() -> Iterator[None]:
    """Raise what a plain network refuses, a ValueError, as a ChoiceError."""
    try:
        yield
    except ValueError as error:
        raise ChoiceError(str(error)) from None


class OfImages(Elastic):
    """Put before a model that is given images of one size, which its cost is about."""

    needs_tokens = False

    def image_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of an image."""
        raise NotImplementedError


class Superformer(SizedImages, OfImages):
    """Put before a plain model: its features are those of the active subnet, which it shows when printed.

    A classifier or norm that somebody assigns follows the width, as the one before it did. Where the size of images is
    searched, `forward` takes images of any of the sizes and brings them to the active one.
    """

    follows: ClassVar[tuple[str, ...]] = ("head", "head_dist", "norm", "fc_norm")
    """Parts that read the channels of `last_width`."""

    def _new_size(self, img_size: int | tuple[int, int]) -> tuple[int, int]:
        """Return the height and width that images are to have from now on.

        Raises:
            ChoiceError: not one or two positive ints; a size that is searched.
        """
        if (choice := searched_size(self)) is not None:
            name, left = choice.name or "img_size", [choice.values[number] for number in choice.left]
            if len(left) == 1:
                raise ChoiceError(f"{name}: narrowed to {left[0]}; export a subnet: load_subnet(img_size=) resamples")
            raise ChoiceError(
                f"{name}: it is searched, among {', '.join(map(str, left))}: activate one, or leave one by"
                f" vitas.narrow(model, fixed={{'{name}': {choice.largest}}})"
            )
        return pixels(img_size)

    def last_width(self) -> Dim:
        """Return the channels behind the last block."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a new classifier is searchable like the old one.

        Raises:
            VitasError: a classifier or norm that could not follow the width.
        """
        if name in self.follows and isinstance(value, nn.Module) and not isinstance(value, (Elastic, nn.Identity)):
            follow(value, self.last_width(), name)
        super().__setattr__(name, value)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in the place of the old one, searched as that was; of a distilled model both.

        Args:
            num_classes: Classes; 0: no classifier.
            global_pool: Another pooling, as in the model's argument; None: as before. The last norm stays where it is.

        Raises:
            ChoiceError: another word, or number; "avg" for a distilled model.
        """
        with State.of_module(self).largest().restored(), our_words():
            super().reset_classifier(num_classes, global_pool)  # type: ignore[misc]

    def feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return the numbers of the features that `indices` means, of those that the active subnet has.

        Raises:
            ChoiceError: out of range.
        """
        with our_words():
            return super().feature_indices(indices)  # type: ignore[misc, no-any-return]

    def extra_repr(self) -> str:
        try:
            return f"active: {search_space(self).active()!r}" if any(holders(self)) else ""
        except ChoiceError as error:  # printing must not fail where the space does
            return f"no search space: {error}"

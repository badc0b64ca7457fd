"""Class token and positions, with a table for each patch size."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Choice, Dim, as_choice, as_dim
from vitas.cost import Cost
from vitas.errors import ShapeError
from vitas.memory import refuse_huge
from vitas.nn.images import ImageSize, Size, SizedImages, as_size, largest_size
from vitas.nn.layer import Axes, Elastic
from vitas.nn.patches import check_patches, lacks_patches, patch_count, patches

Table = nn.Parameter | nn.ParameterDict


class ElasticTokens(SizedImages, Elastic, plain.Tokens):
    """Class token and learned positions, one of each for every patch size; for models of one's own.

    Shapes: (B, N, D) -> (B, 1 + N, D), D = embed_dim.active, N the patches of the active patch size.
    Cost: 0 MACs; adding positions is listed as not counted.
    Source: private class token and positions for each patch size, public ViTAS code (Su et al., July 2021).

    Args:
        img_size: Height and width in pixels, or one int for both; several sides, as a list or a Choice shared with the patch
            embedding, make the size of square images a choice, for which positions are resampled.
        patch_size: Pixels of a patch's side, an int or a Choice; each has to divide every image.
        embed_dim: Channels D, an int or a Dim shared with the layers around.

    Raises:
        ChoiceError: a patch size that does not divide the image; channels that are neither a positive int nor a Dim.
    """

    holds = ("img_size",)

    def __init__(
        self,
        img_size: ImageSize = 224,
        patch_size: int | Choice[int] = 16,
        embed_dim: int | Dim = 768,
    ) -> None:
        size = as_size(img_size)
        patch_size, embed_dim = as_choice(patch_size, "patch_size"), as_dim(embed_dim, "embed_dim")
        check_patches(patch_size, size)
        nn.Module.__init__(self)
        self.patch_size, self.embed_dim = patch_size, embed_dim
        self.img_size = size
        whole = largest_size(self)
        self.cls_token = make_table(patch_size, embed_dim, lambda patch: 1)  # type: ignore[assignment]
        self.pos_embed = make_table(patch_size, embed_dim, lambda patch: 1 + patch_count(whole, patch))  # type: ignore[assignment]
        self.reset_parameters()

    def axes(self) -> Axes:
        """Return the channels of class token (1, 1, D) and positions (1, 1 + N, D)."""
        return dict.fromkeys(("cls_token", "pos_embed"), (None, None, self.embed_dim))

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that a patch size has no tables, or a size of images no whole patches, where that is so."""
        if choice is self.patch_size:
            return "has tables for each patch size"
        return lacks_patches(self.patch_size, self, choice, value)

    def plain_sizes(self) -> dict[str, Any]:
        """Return nothing: the tables alone say how large they are."""
        return {}

    def stored(self, name: str) -> Tensor:
        """Return a table of the active patch size, of full width; positions for the active size of images."""
        table = chosen_table(getattr(self, name), self.patch_size)
        return positions_in_use(table, self.patch_size, self, 1) if name == "pos_embed" else table

    def forward(self, x: Tensor) -> Tensor:
        """Add token and positions.

        Raises:
            ShapeError: x does not have N tokens and D channels.
        """
        weights = self.active_weights()
        expected = (weights["pos_embed"].shape[1] - 1, self.embed_dim.active)
        if tuple(x.shape[1:]) != expected:
            raise ShapeError(f"tokens: expected shape (batch, {expected[0]}, {expected[1]}), got {tuple(x.shape)}")
        return plain.add_tokens(x, [weights["cls_token"]], weights["pos_embed"])

    def cost(self, tokens: Cost) -> Cost:
        """Return nothing: adding positions is listed as not counted."""
        return Cost()

    def param_count(self) -> Cost:
        """Return (2 + N) * D."""
        return (patches(self.patch_size, self) + 2) * self.embed_dim


def make_table(patch_size: Choice[int], dim: Dim, length: Callable[[int], int]) -> Table:
    """Return a table (1, length, L) of zeros, or one for each patch size."""

    def table(patch: int) -> nn.Parameter:
        shape = (1, length(patch), dim.largest)
        refuse_huge(shape, "tokens: a table")
        return nn.Parameter(torch.zeros(shape))

    if patch_size.fixed:
        return table(patch_size.largest)
    return nn.ParameterDict({str(patch): table(patch) for patch in patch_size.values})


def active_table(table: Table, patch_size: Choice[int], dim: Dim) -> Tensor:
    """Return the table in use, (1, length, D)."""
    return dim.take(chosen_table(table, patch_size), axis=2)


def chosen_table(table: Table, patch_size: Choice[int]) -> Tensor:
    """Return the table of the active patch size, (1, length, L)."""
    return table[str(patch_size.active)] if isinstance(table, nn.ParameterDict) else table


def positions_in_use(table: Tensor, patch_size: Choice[int], images: SizedImages, prefix: int) -> Tensor:
    """Return the positions of the largest images, (1, prefix + N, D), resampled for the active size, as timm does."""

    def grid(size: Size) -> Size:
        return size[0] // patch_size.active, size[1] // patch_size.active

    return plain.resample_positions(table, grid(largest_size(images)), grid(images.img_size), prefix)

"""Patch embedding, class token and positions, with a searchable patch size."""

from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Choice, Dim, as_choice, as_count, as_dim
from vitas.cost import Cost, cost_of, params_of
from vitas.errors import ChoiceError, ShapeError, shown
from vitas.nn.base import filled, rebuilt
from vitas.nn.conv import ElasticConv2d
from vitas.nn.private import Private

Table = nn.Parameter | nn.ParameterDict


class ElasticPatchEmbed(plain.PatchEmbed):
    """Patch embedding with a projection of its own for each patch size.

    Shapes: (B, C, H, W) -> (B, N, D), N = (H / P) * (W / P), D = embed_dim.active, P = patch_size.active.
    Cost: N * C * P^2 * D MACs; the bias is not counted.
    Source: private projections for each patch size, public ViTAS code (Su et al., July 2021).

    Args:
        img_size: Height and width in pixels, or one int for both.
        patch_size: Pixels of a patch's side, an int or a Choice; each has to divide the image.
        in_chans: Image channels C.
        embed_dim: Channels D, an int or a Dim shared with the layers around.
        bias: Whether the projection has a bias.

    Raises:
        ChoiceError: a patch size that does not divide the image; image channels that are no positive int; channels that
            are neither a positive int nor a Dim.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | Choice[int] = 16,
        in_chans: int = 3,
        embed_dim: int | Dim = 768,
        bias: bool = True,
    ) -> None:
        size = pixels(img_size)
        patch_size, embed_dim = as_choice(patch_size, "patch_size"), as_dim(embed_dim, "embed_dim")
        in_chans = as_count(in_chans, "in_chans")
        check_patches(patch_size, size)

        def projection(patch: int) -> ElasticConv2d:
            return ElasticConv2d(in_chans, embed_dim, kernel_size=patch, stride=patch, bias=bias)

        proj = projection(patch_size.largest) if patch_size.fixed else Private(patch_size, projection)
        super().__init__(proj, size, in_chans)
        self.patch_size, self.embed_dim = patch_size, embed_dim

    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        return self.patch_size.active

    def refuse(self, x: Tensor, any_size: bool = False) -> NoReturn:
        """Raise for images of another shape.

        Raises:
            ShapeError: always.
        """
        raise ShapeError(self.expected(x, any_size))

    def tokens(self) -> Cost:
        """Return the number of patches N for each patch size."""
        return patches(self.patch_size, self.img_size)

    def cost(self, tokens: Cost | None = None) -> Cost:
        """Return N * C * P^2 * D; the number of patches is its own."""
        return cost_of(self.proj, self.tokens()).under("proj")

    def param_count(self) -> Cost:
        """Return the parameters of the chosen projection."""
        return params_of(self.proj)

    def export(self) -> plain.PatchEmbed:
        """Return a plain patch embedding with its own copy of the chosen projection."""
        return rebuilt(self, plain.PatchEmbed, img_size=self.img_size, in_chans=self.in_chans)

    def extra_repr(self) -> str:
        return f"img_size={self.img_size}, patch_size={self.patch_size.brief()}"


class ElasticTokens(plain.Tokens):
    """Class token and learned positions, one of each for every patch size; for models of one's own.

    Shapes: (B, N, D) -> (B, 1 + N, D), D = embed_dim.active, N the patches of the active patch size.
    Cost: 0 MACs; adding positions is listed as not counted.
    Source: private class token and positions for each patch size, public ViTAS code (Su et al., July 2021).

    Args:
        img_size: Height and width in pixels, or one int for both.
        patch_size: Pixels of a patch's side, an int or a Choice.
        embed_dim: Channels D, an int or a Dim shared with the layers around.

    Raises:
        ChoiceError: a patch size that does not divide the image; channels that are neither a positive int nor a Dim.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | Choice[int] = 16,
        embed_dim: int | Dim = 768,
    ) -> None:
        size = pixels(img_size)
        patch_size, embed_dim = as_choice(patch_size, "patch_size"), as_dim(embed_dim, "embed_dim")
        check_patches(patch_size, size)
        nn.Module.__init__(self)
        self.patch_size, self.embed_dim, self.img_size = patch_size, embed_dim, size
        self.cls_token = make_table(patch_size, embed_dim, lambda patch: 1)  # type: ignore[assignment]
        self.pos_embed = make_table(patch_size, embed_dim, lambda patch: 1 + patch_count(size, patch))  # type: ignore[assignment]
        self.reset_parameters()

    def active_weights(self) -> dict[str, Tensor]:
        """Return the class token (1, 1, D) and positions (1, 1 + N, D) in use; nothing else slices."""
        names = ("cls_token", "pos_embed")
        return {name: active_table(getattr(self, name), self.patch_size, self.embed_dim) for name in names}

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
        return (patches(self.patch_size, self.img_size) + 2) * self.embed_dim

    def export(self) -> plain.Tokens:
        """Return plain token and positions with their own copies of the tables."""
        weights = self.active_weights()
        empty = {name: torch.empty_like(table, device="meta") for name, table in weights.items()}
        return filled(self, plain.Tokens(**empty), weights)


MOST_PIXELS = 2**20  # of a side


def pixels(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width).

    Raises:
        ChoiceError: not one or two positive ints.
    """
    img_size = img_size.item() if isinstance(img_size, np.integer) else img_size
    pair = tuple(img_size) if isinstance(img_size, (tuple, list)) else (img_size, img_size)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= MOST_PIXELS for n in pair):
        raise ChoiceError(f"img_size: expected a positive int or (height, width), got {shown(img_size)}")
    return pair


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


def make_table(patch_size: Choice[int], dim: Dim, length: Callable[[int], int]) -> Table:
    """Return a table (1, length, L) of zeros, or one for each patch size."""

    def table(patch: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(1, length(patch), dim.largest))

    if patch_size.fixed:
        return table(patch_size.largest)
    return nn.ParameterDict({str(patch): table(patch) for patch in patch_size.values})


def active_table(table: Table, patch_size: Choice[int], dim: Dim) -> Tensor:
    """Return the table in use, (1, length, D)."""
    chosen = table[str(patch_size.active)] if isinstance(table, nn.ParameterDict) else table
    return dim.take(chosen, axis=2)

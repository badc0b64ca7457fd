"""Patch embedding, class token and positions, with a searchable patch size."""

from typing import Any

from torch import Tensor

from vitas import plain
from vitas.checks import as_count
from vitas.choice import Choice, Dim, as_choice, as_dim
from vitas.cost import Cost, cost_of
from vitas.errors import ShapeError
from vitas.nn.conv import ElasticConv2d
from vitas.nn.images import ImageSize, SizedImages, as_size, searched_size
from vitas.nn.layer import Elastic
from vitas.nn.patches import check_patches, lacks_patches, patches
from vitas.nn.private import Private


class ElasticPatchEmbed(SizedImages, Elastic, plain.PatchEmbed):
    """Patch embedding with a projection of its own for each patch size.

    Shapes: (B, C, H, W) -> (B, N, D), N = (H / P) * (W / P), D = embed_dim.active, P = patch_size.active.
    Cost: N * C * P^2 * D MACs; the bias is not counted.
    Source: private projections for each patch size, public ViTAS code (Su et al., July 2021).

    Args:
        img_size: Height and width in pixels, or one int for both; several sides, as a list or a Choice, make the size of
            square images a choice. Images then have the active size.
        patch_size: Pixels of a patch's side, an int or a Choice; each has to divide every image.
        in_chans: Image channels C.
        embed_dim: Channels D, an int or a Dim shared with the layers around.
        bias: Whether the projection has a bias.

    Raises:
        ChoiceError: a patch size that does not divide the image; image channels that are not a positive int; channels that
            are neither a positive int nor a Dim.
    """

    needs_tokens = False

    def __init__(
        self,
        img_size: ImageSize = 224,
        patch_size: int | Choice[int] = 16,
        in_chans: int = 3,
        embed_dim: int | Dim = 768,
        bias: bool = True,
    ) -> None:
        size = as_size(img_size)
        patch_size, embed_dim = as_choice(patch_size, "patch_size"), as_dim(embed_dim, "embed_dim")
        in_chans = as_count(in_chans, "in_chans")
        check_patches(patch_size, size)

        def projection(patch: int) -> ElasticConv2d:
            return ElasticConv2d(in_chans, embed_dim, kernel_size=patch, stride=patch, bias=bias)

        proj = projection(patch_size.largest) if patch_size.fixed else Private(patch_size, projection)
        super().__init__(proj, size, in_chans)  # type: ignore[arg-type]  # the property takes a Choice too
        self.patch_size, self.embed_dim = patch_size, embed_dim

    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        return self.patch_size.active

    def check(self, x: Tensor, any_size: bool = False) -> Tensor:
        """Return images of the shape that is accepted.

        Raises:
            ShapeError: another shape.
        """
        return plain.of_shape(x, self.accepted(any_size), error=ShapeError)

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that a size of images is not made of whole patches, where it is not."""
        return lacks_patches(self.patch_size, self, choice, value)

    def tokens(self) -> Cost:
        """Return the number of patches N for each patch size, and each size of images."""
        return patches(self.patch_size, self)

    def cost(self, tokens: Cost | None = None) -> Cost:
        """Return N * C * P^2 * D; the number of patches is its own."""
        return cost_of(self.proj, self.tokens()).under("proj")

    def plain_sizes(self) -> dict[str, Any]:
        """Return the size of images in use."""
        return {"img_size": self.img_size}

    def extra_repr(self) -> str:
        size = self.img_size if (choice := searched_size(self)) is None else choice.brief()
        return f"img_size={size}, patch_size={self.patch_size.brief()}"

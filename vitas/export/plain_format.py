"""Networks of `vitas.plain` in files: their descriptions stand beside them."""

from pathlib import Path
from typing import Any

from torch import nn

from vitas import plain
from vitas.export.formats import Format
from vitas.export.positions import resampled_positions


def resize(model: nn.Module, size: tuple[int, int], where: Path) -> None:
    """Give a network another image size: positions are resampled; a Twins has none.

    Raises:
        FileError: patches that do not divide the image.
    """
    if isinstance(model, plain.VisionTransformer):
        embed: Any = model.patch_embed
        table: Any = model.pos_embed
        table = resampled_positions(table.detach(), embed.img_size, size, embed.patch(), model.num_prefix_tokens, where)
        model.pos_embed, embed.img_size = nn.Parameter(table), size


PLAIN = Format(
    {
        "vitas.plain.VisionTransformer": plain.VisionTransformerConfig,
        "vitas.plain.Twins": plain.TwinsConfig,
    },
    resize,
)

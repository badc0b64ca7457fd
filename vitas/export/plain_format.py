"""Networks of `vitas.plain` in files: their descriptions stand beside them."""

from pathlib import Path
from typing import Any

from torch import nn

from vitas import plain
from vitas.errors import FileError
from vitas.export.formats import Format
from vitas.memory import refuse_beyond_memory


def resize(model: nn.Module, size: tuple[int, int], where: Path) -> None:
    """Give a network another image size: positions are resampled; Twins have none.

    Raises:
        FileError: patches that do not divide the image; a size that no machine like this one holds.
    """
    if isinstance(model, plain.VisionTransformer):
        embed: Any = model.patch_embed
        table: Any = model.pos_embed
        patch = embed.patch()
        needs = table.shape[2] * table.element_size() * (size[0] // patch) * (size[1] // patch)
        refuse_beyond_memory(needs, f"{where}: img_size: the table", FileError)
        try:
            model.set_input_size(size)
        except ValueError as error:
            raise FileError(f"{where}: {error}") from None


PLAIN = Format(
    {
        "vitas.plain.VisionTransformer": plain.VisionTransformerConfig,
        "vitas.plain.Twins": plain.TwinsConfig,
    },
    resize,
)

"""Networks of `vitas.plain` in files: their descriptions stand beside them."""

from pathlib import Path

from torch import nn

from vitas import plain
from vitas.errors import FileError
from vitas.export.formats import Format


def resize(model: nn.Module, size: tuple[int, int], where: Path) -> None:
    """Give a network another image size: positions are resampled; a Twins has none.

    Raises:
        FileError: patches that do not divide the image.
    """
    if isinstance(model, plain.VisionTransformer):
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

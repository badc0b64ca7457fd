"""Named search spaces: plain arguments of the superformers."""

import inspect
from typing import Any

from torch import nn

from vitas.errors import ChoiceError, one_of
from vitas.sharing import Sharing
from vitas.superformer.deit import DeiTSuperformer


def _tenths(largest: int) -> list[int]:
    return [round(largest * i / 10) for i in range(1, 11)]


_VITAS = {"patch_size": [14, 16, 32], "num_heads": [3, 6, 12, 16], "private": "qk", "final_norm_eps": 1e-5}

_SPACES: dict[str, dict[str, Any]] = {
    # Public ViTAS code (Su et al., July 2021): 16 slots, 384 channels, q/k/v and MLP of 1440 rows.
    "vitas_deit": {
        **_VITAS,
        "embed_dim": _tenths(384),
        "depth": range(1, 17),
        "qkv_dim": _tenths(480),
        "mlp_dim": _tenths(1440),
    },
    # The same code's larger space: twice the widths, 13 blocks, none left out.
    "vitas_deit_large": {
        **_VITAS,
        "embed_dim": _tenths(768),
        "depth": 13,
        "qkv_dim": _tenths(960),
        "mlp_dim": _tenths(2880),
    },
    # A space of our own for CPUs and images of 8 to 64 pixels.
    "deit_micro": {
        "patch_size": [2, 4],
        "embed_dim": [32, 48, 64, 80, 96],
        "depth": range(1, 7),
        "num_heads": [2, 4],
        "qkv_dim": [32, 64, 96],
        "mlp_dim": [48, 96, 144, 192],
    },
    # DeiT (Touvron et al., arXiv:2012.12877v2, table 1) with nothing to choose: timm's models.
    "deit_tiny": {"embed_dim": 192, "num_heads": 3},
    "deit_small": {"embed_dim": 384, "num_heads": 6},
    "deit_base": {"embed_dim": 768, "num_heads": 12},
}


def list_superformers() -> list[str]:
    """Return the names that `create_superformer` takes."""
    return list(_SPACES)


def create_superformer(
    name: str,
    *,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    sharing: Sharing = "cyclic",
    **overrides: Any,
) -> nn.Module:
    """Return a superformer by name.

    Args:
        name: One of `list_superformers()`.
        num_classes: Classes; 0: no classifier.
        img_size: Height and width in pixels, or one int for both.
        in_chans: Image channels.
        sharing: Which channels a width uses, see vitas.sharing.
        overrides: Other arguments of DeiTSuperformer in place of the named space's.

    Raises:
        ChoiceError: an unknown name or argument, or values that do not fit together.
    """
    if name not in _SPACES:
        raise ChoiceError(f"superformer: {one_of(list_superformers(), name)}")
    legal = list(inspect.signature(DeiTSuperformer).parameters)
    for key in overrides:
        if key not in legal:
            raise ChoiceError(f"{name}: unknown argument, {one_of(legal, key, most=40)}")
    arguments = {**_SPACES[name], **overrides}
    return DeiTSuperformer(img_size, in_chans=in_chans, num_classes=num_classes, sharing=sharing, **arguments)

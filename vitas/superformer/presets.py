"""Named search spaces: plain arguments of the superformers."""

import inspect
from typing import Any

from torch import nn

from vitas.errors import ChoiceError, is_one_of, one_of, shown, unknown
from vitas.nn.images import ImageSize
from vitas.space import Subnet
from vitas.superformer.arguments import Patterns
from vitas.superformer.deit import DeiTSuperformer
from vitas.superformer.twins import TwinsSuperformer


def _tenths(largest: int) -> list[int]:
    return [round(largest * i / 10) for i in range(1, 11)]


_VITAS = {"patch_size": [14, 16, 32], "num_heads": [3, 6, 12, 16], "private": "qk", "final_norm_eps": 1e-5}


_AUTOFORMER = {"head_dim": 64, "global_pool": "avg", "fc_norm": False}


_DEIT: dict[str, dict[str, Any]] = {
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
    # AutoFormer (Chen et al., ICCV 2021, arXiv:2107.00651): public configurations; without relative positions.
    "autoformer_tiny": {
        **_AUTOFORMER,
        "embed_dim": [192, 216, 240],
        "depth": range(12, 15),
        "num_heads": [3, 4],
        "mlp_ratio": [3.5, 4],
    },
    "autoformer_small": {
        **_AUTOFORMER,
        "embed_dim": [320, 384, 448],
        "depth": range(12, 15),
        "num_heads": [5, 6, 7],
        "mlp_ratio": [3, 3.5, 4],
    },
    "autoformer_base": {
        **_AUTOFORMER,
        "embed_dim": [528, 576, 624],
        "depth": range(14, 17),
        "num_heads": [9, 10],
        "mlp_ratio": [3, 3.5, 4],
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


_TWINS: dict[str, dict[str, Any]] = {
    # Twins-SVT with every width in tenths. Reconstructed: the ViTAS paper's own numbers for Twins were not at hand; stage 3
    # has the 18 slots that Twins-SVT-L needs.
    "vitas_twins": {
        "embed_dims": [_tenths(128), _tenths(256), _tenths(512), _tenths(1024)],
        "depths": [range(1, 5), range(1, 5), range(1, 19), range(1, 7)],
        "num_heads": [[2, 4], [4, 8], [8, 16], [16, 32]],
        "qkv_dims": [_tenths(160), _tenths(320), _tenths(640), _tenths(1280)],
        "mlp_dims": [_tenths(512), _tenths(1024), _tenths(2048), _tenths(4096)],
    },
    # A space of our own for CPUs and images of 32 to 64 pixels.
    "twins_micro": {
        "patch_size": 2,
        "embed_dims": [[16, 24, 32], [24, 36, 48], [48, 64, 80], [64, 96, 128]],
        "depths": [range(1, 3), range(1, 3), range(1, 5), range(1, 3)],
        "num_heads": [[2, 4]] * 4,
        "qkv_dims": [[16, 32], [24, 48], [32, 64], [64, 128]],
        "mlp_dims": [[32, 64, 96], [48, 96, 144], [64, 128, 192], [128, 256, 384]],
        "wss": [4, 4, 4, 2],
    },
    # Twins-SVT (Chu et al., arXiv:2104.13840v4, table 2) with nothing to choose: timm's models.
    "twins_svt_small": {"embed_dims": [64, 128, 256, 512], "depths": [2, 2, 10, 4], "num_heads": [2, 4, 8, 16]},
    "twins_svt_base": {"embed_dims": [96, 192, 384, 768], "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "twins_svt_large": {"embed_dims": [128, 256, 512, 1024], "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
}


# The networks that the method's authors published (public ViTAS code, configurations of July 2021), identities left out.
_PUBLISHED: dict[str, tuple[str, int, list[int], list[int], list[int]]] = {
    # name: (space, embed_dim, heads, widths of q, k and v, hidden widths)
    "vitas_a": (
        "vitas_deit",
        154,
        [12, 16, 6, 16, 16, 16, 16],
        [96, 240, 96, 336, 384, 288, 480],
        [1008, 576, 1296, 720, 1008, 1152, 1296],
    ),
    "vitas_b": (
        "vitas_deit",
        192,
        [16, 16, 16, 12, 12, 12, 16, 6],
        [96, 144, 144, 384, 336, 288, 144, 288],
        [864, 576, 1008, 864, 720, 576, 1296, 864],
    ),
    "vitas_c": ("vitas_deit", 230, [3] * 12, [144] * 12, [720] * 12),
    "vitas_e": (
        "vitas_deit",
        346,
        [16, 16, 16, 6, 3, 12, 6, 12, 12, 6, 12],
        [240, 336, 288, 288, 192, 432, 432, 240, 480, 192, 384],
        [720, 864, 1008, 1008, 720, 1296, 1152, 144, 864, 1008, 1296],
    ),
    "vitas_f": (
        "vitas_deit_large",
        307,
        [16] * 13,
        [288, 96, 576, 384, 672, 480, 864, 480, 768, 672, 672, 480, 576],
        [1728, 2304, 864, 2016, 864, 1440, 2304, 2016, 864, 576, 2016, 2304, 2304],
    ),
}


_EITHER = (("qkv_dim", "head_dim"), ("mlp_dim", "mlp_ratio"), ("mlp_dims", "mlp_ratios"))
"""Arguments that say the same in two ways: one that is given replaces the other one of a named space."""


def list_published_subnets() -> dict[str, str]:
    """Return the names that `published_subnet` takes, each with the superformer whose space it lies in.

    Example:
        >>> vitas.list_published_subnets()["vitas_c"]
        'vitas_deit'
    """
    return {name: published[0] for name, published in _PUBLISHED.items()}


def published_subnet(name: str) -> Subnet:
    """Return a network that the method's authors published, as a subnet of its superformer's space.

    Source: public ViTAS code (Su et al., configurations of July 2021): ViTAS-A, B, C, E and F.

    Args:
        name: One of `list_published_subnets()`.

    Raises:
        ChoiceError: an unknown name.

    Example:
        >>> subnet = vitas.published_subnet("vitas_c")
        >>> subnet["depth"], subnet["embed_dim"]
        (12, 230)
    """
    if not is_one_of(list(_PUBLISHED), name):
        raise ChoiceError(f"published subnet: {one_of(list(_PUBLISHED), name, 'list_published_subnets()')}")
    space, embed_dim, heads, widths, hidden = _PUBLISHED[name]
    values = {"embed_dim": embed_dim, "patch_size": 16}
    if space == "vitas_deit":
        values["depth"] = len(heads)
    for i, (h, d, m) in enumerate(zip(heads, widths, hidden, strict=True)):
        values |= {f"blocks.{i}.num_heads": h, f"blocks.{i}.qkv_dim": d, f"blocks.{i}.mlp_dim": m}
    return Subnet(values)


def list_superformers() -> list[str]:
    """Return the names that `create_superformer` takes.

    Example:
        >>> "deit_micro" in vitas.list_superformers()
        True
    """
    return [*_DEIT, *_TWINS]


def create_superformer(
    name: str,
    *,
    num_classes: int = 1000,
    img_size: ImageSize = 224,
    in_chans: int = 3,
    sharing: Patterns = "cyclic",
    **overrides: Any,
) -> nn.Module:
    """Return a superformer by name.

    Args:
        name: One of `list_superformers()`.
        num_classes: Classes; 0: no classifier.
        img_size: Height and width in pixels, or one int for both; several sides, such as the list [160, 192, 224], make the
            size of square images a choice.
        in_chans: Image channels.
        sharing: Which channels a width uses, see vitas.sharing; or a mapping from "embed_dim", "qkv_dim", "num_heads" and
            "mlp_dim" to patterns, where what it does not name is "cyclic".
        overrides: Other arguments of DeiTSuperformer or TwinsSuperformer in place of the named space's; `mlp_ratio` also
            replaces its `mlp_dim`, `head_dim` its `qkv_dim`, and the other way round. Of heads and widths inside blocks each
            may have its own: `num_heads={"blocks.[0-5]": [2, 4], "*": [4]}`, see there.

    Raises:
        ChoiceError: an unknown name or argument, values that do not fit together, or more weights than this machine has
            memory for. Nothing of the model's size is allocated before that is known.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=32, depth=[2, 4])
        >>> model(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 10])
        >>> vitas.search_space(model).values["depth"]
        (2, 4)
    """
    if not is_one_of(list_superformers(), name):
        if isinstance(name, str) and "patch" in name:
            timm = f"vitas.wrap(timm.create_model({shown(name, 40)}))"
            raise ChoiceError(f"superformer: {shown(name, 40)} is timm's name of a model; make that searchable: {timm}")
        raise ChoiceError(unknown("superformer", list_superformers(), name, "list_superformers()"))
    family: type[nn.Module] = DeiTSuperformer if name in _DEIT else TwinsSuperformer
    legal = list(inspect.signature(family).parameters)
    for key in overrides:
        if key not in legal:
            raise ChoiceError(f"{name}: {unknown('argument', list(legal), key, 'help(type(model))')}")
    preset = {**_DEIT.get(name, {}), **_TWINS.get(name, {})}
    for pair in _EITHER:
        given = [key for key in pair if overrides.get(key) is not None]
        if len(given) > 1:
            raise ChoiceError(f"{name}: give {' or '.join(pair)}, not both")
        if given:
            preset = {key: value for key, value in preset.items() if key not in pair}
    sizes = {"img_size": img_size, "in_chans": in_chans, "num_classes": num_classes}
    return family(sharing=sharing, **{**preset, **overrides, **sizes})

"""Exports of wrapped models under a name that `timm.create_model` knows."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from vitas.errors import ChoiceError, FileError, VitasError, brief, one_of, shown
from vitas.export import origins
from vitas.export.files import as_path
from vitas.export.formats import NO_NETWORK
from vitas.export.network import load_subnet, read_config


def register(folder: str | PathLike[str], name: str | None = None) -> str:
    """Let `timm.create_model(name)` build a network of timm that `save_subnet` wrote; return the name.

    `pretrained=True` loads the weights of the folder, without it they are drawn anew. `num_classes`, `global_pool` and
    `img_size` are taken as timm takes them, and so are rates of dropout, `in_chans`, `dynamic_img_size` and
    `features_only` with `out_indices`, where the file says what the network was made of.

    Args:
        folder: What `save_subnet` wrote from the export of a wrapped model; read again whenever a model is created.
        name: A word of letters, digits and underscores; None: the folder's name.

    Raises:
        ChoiceError: a name that timm has already, or that is not a word.
        FileError: as `load_subnet`; a network that is not timm's.
        VitasError: timm is not installed.
    """
    try:
        from timm.models import is_model, model_entrypoint, register_model
    except ImportError:
        raise VitasError('timm is not installed: pip install "vitas[timm]"') from None

    folder = as_path(folder).absolute()
    name = folder.name if name is None else name
    if not isinstance(name, str) or not name.isidentifier():
        raise ChoiceError(f"name: expected a word of letters, digits and underscores, got {shown(name)}")
    if is_model(name) and (known := getattr(model_entrypoint(name), "folder", None)) != folder:
        raise ChoiceError(f"name: {shown(name)} is {'registered for ' + str(known) if known else 'a model of timm'} already")
    if not type(load_subnet(folder)).__module__.startswith("timm."):
        raise FileError(f"{folder}: not a network of timm; load_subnet builds it")

    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        return _created(folder, pretrained, options)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.folder = folder  # type: ignore[attr-defined]
    if not is_model(name):
        register_model(entrypoint)
    return name


_TIMMS_OWN = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_ANY = ("num_classes", "global_pool", "img_size")
_RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_ORIGINALS = ("in_chans", *_RATES, "dynamic_img_size", "dynamic_img_pad", "features_only", "out_indices")
"""Options that only a network takes whose original can be built with them."""


def _created(folder: Path, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Return the network of a folder as `timm.create_model` was asked for it."""
    options = {name: value for name, value in options.items() if name not in _TIMMS_OWN}
    told = read_config(folder)["model"]
    legal = (*_ANY, *(_ORIGINALS if origins.is_origin(told) else ()))
    for option in options:
        if option not in legal:
            raise ChoiceError(f"{folder.name}: {one_of(legal, option)}; the rest of a saved network is settled")
    loaded: Any = load_subnet(folder, img_size=options.get("img_size"))  # checks the file too
    classes, pool = options.get("num_classes", loaded.num_classes), options.get("global_pool")
    asked = shown(options)
    try:
        if classes != loaded.num_classes or pool is not None:
            loaded.reset_classifier(classes, pool)
        if not origins.is_origin(told):
            return loaded if pretrained else _drawn(loaded)
        features: dict[str, Any] = {name: options.pop(name) for name in ("features_only", "out_indices") if name in options}
        model = origins.drawn(told, **options)
        if pretrained:
            model.load_state_dict(_adapted(loaded, options))
        return _features(model, features) if features.get("features_only") else model
    except NO_NETWORK as error:
        raise ChoiceError(f"{folder.name}: {asked}: {brief(error)}") from None


def _adapted(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a model, those of the first convolutions for other channels of images, as timm makes them."""
    from timm.models import adapt_input_conv

    state, first = dict(model.state_dict()), model.pretrained_cfg.get("first_conv")
    if "in_chans" in options and first is not None:
        for name in (first,) if isinstance(first, str) else first:
            state[f"{name}.weight"] = adapt_input_conv(options["in_chans"], state[f"{name}.weight"])
    return state


def _drawn(model: nn.Module) -> nn.Module:
    from vitas.export.timm_format import draw_weights

    draw_weights(model)
    return model


def _features(model: nn.Module, given: dict[str, Any]) -> nn.Module:
    """Return a model's intermediate features, as timm's `features_only` does."""
    from timm.models._features import FeatureGetterNet  # timm.models has the others only

    made: nn.Module = FeatureGetterNet(model, **({"out_indices": given["out_indices"]} if "out_indices" in given else {}))
    return made

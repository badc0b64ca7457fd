"""Exports of wrapped models under a name that `timm.create_model` knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

from torch import nn

from vitas.errors import ChoiceError, FileError, VitasError, brief, one_of, shown
from vitas.export import origins
from vitas.export.files import as_path
from vitas.export.formats import NO_NETWORK
from vitas.export.network import load_subnet, read_config


def register(folder: str | PathLike[str], name: str | None = None) -> str:
    """Let `timm.create_model(name)` build a network of timm that `save_subnet` wrote; return the name.

    `pretrained=True` loads the weights of the folder, without it they are drawn anew. `num_classes`, `global_pool`,
    `img_size`, `features_only` with `out_indices`, `device` and `dtype` are taken as timm takes them. So are rates of
    dropout, `in_chans` (with fresh weights) and `dynamic_img_size`: all of them where the file says what the network was
    made of, else those that its description names. `cache_dir` is passed over, since nothing is downloaded.

    Args:
        folder: What `save_subnet` wrote from the export of a wrapped model; read again whenever a model is created.
        name: A word of letters, digits and underscores; None: the folder's name.

    Raises:
        ChoiceError: a name that timm has already, or that is not a word.
        FileError: as `load_subnet`; a network that is not timm's.
        VitasError: timm is not installed.

    Example:
        >>> import timm
        >>> model = vitas.wrap(timm.create_model("test_vit"))
        >>> vitas.save_subnet(vitas.export_subnet(model, vitas.search_space(model).smallest()), "my_vit")
        >>> vitas.register("my_vit")
        'my_vit'
        >>> network = timm.create_model("my_vit", pretrained=True, num_classes=10)
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
_ANY = ("num_classes", "global_pool", "img_size", "features_only", "out_indices", "device", "dtype")
_RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_ORIGINALS = ("in_chans", *_RATES, "dynamic_img_size", "dynamic_img_pad")
"""Options that a network takes whose original can be built with them, or whose description has a field of that name."""


def _created(folder: Path, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Return the network of a folder as `timm.create_model` was asked for it."""
    options = {name: value for name, value in options.items() if name not in _TIMMS_OWN}
    told = read_config(folder)["model"]
    legal = (*_ANY, *(name for name in _ORIGINALS if origins.is_origin(told) or name in told))
    for option in options:
        if option not in legal:
            raise ChoiceError(f"{folder.name}: {one_of(legal, option)}")
    loaded: Any = load_subnet(folder, img_size=options.get("img_size"))  # checks the file too
    asked = shown(options)
    features: dict[str, Any] = {name: options.pop(name) for name in ("features_only", "out_indices") if name in options}
    place = {name: options.pop(name) for name in ("device", "dtype") if name in options}
    try:
        classes, pool = options.get("num_classes", loaded.num_classes), options.get("global_pool")
        if classes != loaded.num_classes or pool is not None:
            loaded.reset_classifier(classes, pool)
        model: Any = loaded
        if origins.is_origin(told):
            model = origins.drawn(told, **options)
        elif changed := {name: value for name, value in options.items() if name in _ORIGINALS}:
            model = _described(loaded, changed)
        elif not pretrained:
            model = _drawn(loaded)
        if pretrained and model is not loaded:
            weights = _adapted(loaded, options)
            fit = {name: weight.shape for name, weight in model.state_dict().items()}
            if fit != {name: weight.shape for name, weight in weights.items()}:
                raise ValueError("the weights of the file have other shapes: pretrained=False draws weights anew")
            model.load_state_dict(weights)
        model = model.to(**place)
        return _features(model, features) if features.get("features_only") else model
    except NO_NETWORK as error:
        raise ChoiceError(f"{folder.name}: {asked}: {' '.join(brief(error).split())}") from None


def _described(loaded: nn.Module, changed: dict[str, Any]) -> nn.Module:
    """Return a network as `loaded`, but with other values of what its description says."""
    from vitas.export.timm_format import TIMM

    kind = type(loaded)
    known = TIMM.kinds[f"{kind.__module__}.{kind.__qualname__}"]
    return cast(nn.Module, replace(known.of(loaded), **changed).build())


def _adapted(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a model, those of the first convolutions for other channels of images, as timm makes them."""
    from timm.models import adapt_input_conv

    state, first = dict(model.state_dict()), vars(model).get("pretrained_cfg", {}).get("first_conv")
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

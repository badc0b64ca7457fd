"""Exports of wrapped models under a name that `timm.create_model` knows."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from vitas.errors import ChoiceError, FileError, VitasError, one_of, shown
from vitas.export import as_path, load_subnet


def register(folder: str | PathLike[str], name: str | None = None) -> str:
    """Let `timm.create_model(name)` build a network of timm that `save_subnet` wrote; return the name.

    `pretrained=True` loads the weights of the folder, without it they are drawn anew. `num_classes`, `global_pool` and
    `img_size` are taken as timm takes them.

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


def _created(folder: Path, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Return the network of a folder as `timm.create_model` was asked for it."""
    from vitas.export.timm_format import draw_weights

    legal = ["num_classes", "global_pool", "img_size"]
    for option in options:
        if option not in (*legal, *_TIMMS_OWN):
            raise ChoiceError(f"{folder.name}: {one_of(legal, option)}; the rest of a saved network is settled")
    model: Any = load_subnet(folder, img_size=options.get("img_size"))
    if not pretrained:
        draw_weights(model)
    classes, pool = options.get("num_classes", model.num_classes), options.get("global_pool")
    if classes != model.num_classes or pool not in (None, model.global_pool):
        model.reset_classifier(classes, pool)
    return model  # type: ignore[no-any-return]

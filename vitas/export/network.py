"""Plain networks as folders: JSON and safetensors, never pickle; checked before memory is taken."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from vitas.errors import FileError, brief, listed, shown
from vitas.export.files import (
    AnyPath,
    as_path,
    check,
    check_header,
    complete_or_not_at_all,
    dtype_name,
    own_tensors,
    read_json,
    refuse_meta,
)
from vitas.export.formats import Format, built, expressed
from vitas.export.plain_format import PLAIN
from vitas.fields import check_keys
from vitas.nn.patches import pixels
from vitas.space import holders, unwrap

FORMAT, VERSION = "vitas-subnet", 1


_MOST_CONFIG_BYTES = 2**20


def save_subnet(module: nn.Module, folder: AnyPath) -> None:
    """Write a plain network to a new folder: `config.json` (sizes, dtypes, hash) and `model.safetensors`.

    Args:
        module: An export; a network of a class of your own is saved too, and loads with `into=`.
        folder: Must not exist; it appears complete or not at all.

    Raises:
        FileError: a searchable module, a folder that exists, a disk that is full.
    """
    module = unwrap(module)
    if any(holders(module)):
        raise FileError(f"{type(module).__name__} is searchable: save what export_subnet returns, or use save_superformer")
    tensors = own_tensors(module)
    name = _class_name(module)
    known = _format_of(name, "config")
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "class": name,
        "model": expressed(known.kinds[name], module) if known else {},
        "dtypes": {name: dtype_name(tensor) for name, tensor in tensors.items()},
    }
    config["hash"] = _hash(config)
    folder = as_path(folder)
    if folder.exists():
        raise FileError(f"{folder}: exists already")
    with complete_or_not_at_all(folder) as draft:
        draft.mkdir()
        (draft / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(tensors, draft / "model.safetensors")


def load_subnet(
    folder: AnyPath, *, into: nn.Module | None = None, img_size: int | tuple[int, int] | None = None
) -> nn.Module:
    """Read what `save_subnet` wrote, without the superformer.

    Args:
        folder: Folder with `config.json` and `model.safetensors`.
        into: A module of your own class to load into, where the network is neither of vitas.plain nor of timm.
        img_size: Another image size: the positions are resampled (bicubic, antialiased) as timm does. A Twins has none
            and takes images of any size; that of timm only notes it, for counts.

    Raises:
        FileError: a file in place of its folder; one that is missing, cut short or of another version; a hash, a field, a
            tensor's name, shape or type that does not fit. Nothing of the network's size is allocated before that is known.
    """
    folder = as_path(folder)
    if folder.name in ("config.json", "model.safetensors") and folder.is_file():
        raise FileError(f"{folder}: expected the folder that it lies in, {folder.parent}")
    config = _read_config(folder / "config.json")
    weights = folder / "model.safetensors"
    known = None
    if into is None:
        known = _format_of(config["class"], folder)
        if known is None:
            raise FileError(
                f"{folder}: a network of class {shown(config['class'])}, not one of those that are built here;"
                " build one and pass it as into="
            )
        model = built(known.kinds[config["class"]], config["model"], f"{folder / 'config.json'}: model")
    elif img_size is not None:
        raise FileError("img_size: positions are resampled only where load_subnet builds the network, not with into=")
    else:
        model = unwrap(into)
        _check_class(model, config, folder)
        refuse_meta(model, f"{folder}: into=")
    state = model.state_dict()
    check_header(weights, {name: (tuple(t.shape), config["dtypes"].get(name)) for name, t in state.items()})
    check_keys(config["dtypes"], set(state), f"{folder / 'config.json'}: dtypes", FileError)
    # Copies: the file's tensors lie at any address, and some kernels round differently where it is not aligned.
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    model.load_state_dict(tensors, assign=into is None)
    if known is not None and img_size is not None:
        known.resize(model, pixels(img_size), folder)
    return model


def _format_of(name: str, where: object) -> Format | None:
    """Return the format of networks of a class, that of timm imported when needed; None: a class of one's own."""
    if name in PLAIN.kinds:
        return PLAIN
    if not name.startswith("timm.models."):
        return None
    try:
        from vitas.export.timm_format import TIMM
    except ImportError as error:
        raise FileError(f"{where}: {name}: {error}; pip install 'vitas[timm]'") from None
    return TIMM if name in TIMM.kinds else None


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _check_class(model: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a module of another class, or of ours with other options, than the one that was saved."""
    name, wanted = type(model).__name__, config["class"].rpartition(".")[2]  # a script's classes live in __main__
    check(name == wanted, f"{folder}: class", f"a {wanted} as into=", name)
    if kind := PLAIN.kinds.get(config["class"]):
        check(isinstance(config["model"], dict), f"{folder}: model", "an object", config["model"])
        got = expressed(kind, model)
        for key, value in config["model"].items():
            check(got.get(key) == value, f"{folder}: into: {key}", str(value)[:60], got.get(key))


def _hash(config: Mapping[str, Any]) -> str:
    content = {key: value for key, value in config.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise FileError(f"{path}: larger than {_MOST_CONFIG_BYTES} bytes")
        config = read_json(path.read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({brief(error)})") from None
    wanted = {"format", "version", "class", "model", "dtypes", "hash"}
    if not isinstance(config, dict):
        raise FileError(f"{path}: expected a JSON object, got {type(config).__name__}")
    if config.get("format") != FORMAT:
        raise FileError(f"{path}: format: expected {shown(FORMAT)}, got {shown(config.get('format'))}")
    if config.get("version") != VERSION or isinstance(config.get("version"), bool):
        raise FileError(f"{path}: version: expected {VERSION}, got {shown(config.get('version'))}")
    check_keys(config, wanted, f"{path}", FileError)
    if config["hash"] != _hash(config):
        raise FileError(f"{path}: hash: does not fit the content; the file was changed or cut")
    check(isinstance(config["class"], str), f"{path}: class", "a string", config["class"])
    check(isinstance(config["dtypes"], dict), f"{path}: dtypes", "an object", config["dtypes"])
    for name, dtype in config["dtypes"].items():
        check(isinstance(dtype, str) and len(dtype) < 32, f"{path}: dtypes: {listed([name])}", "a type's name", dtype)
    return config

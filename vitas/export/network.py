"""Plain networks as folders: JSON and safetensors, never pickle; checked before memory is taken."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vitas.checks import as_flag
from vitas.errors import ExportError, FileError, VitasError, brief, listed, shown
from vitas.export import origins
from vitas.export.files import (
    AnyPath,
    as_path,
    check,
    check_header,
    complete_or_not_at_all,
    dtype_name,
    own_tensors,
    read_json,
    read_text,
    refuse_meta,
)
from vitas.export.formats import NO_NETWORK, Format, Resize, built, expressed
from vitas.export.hub import HUB, downloaded
from vitas.export.plain_format import PLAIN
from vitas.fields import check_keys
from vitas.nn.images import pixels
from vitas.nn.kept import refuse_patches
from vitas.space import holders, unwrap

FORMAT, VERSION = "vitas-subnet", 1


_MOST_CONFIG_BYTES = 2**20


def save_subnet(
    module: nn.Module,
    folder: AnyPath,
    *,
    source: tuple[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a plain network to a new folder: `config.json` (what it is made of, dtypes, hash) and `model.safetensors`.

    Where the constructor of its library builds the network alone, the folder is also one that
    `timm.create_model("local-dir:FOLDER", pretrained=True)`, or `from_pretrained` of Hugging Face, loads as it is.

    Args:
        module: An export; a network with classes of your own is saved too, and loads with `into=`.
        folder: Must not exist, unless `overwrite`; it appears complete or not at all.
        source: Name and arguments with which `timm.create_model` builds what was wrapped, where timm does not tell: before
            1.0.31 it forgets the arguments.
        overwrite: Whether a network that `save_subnet` wrote there before is replaced, when the new one is complete.

    Raises:
        ChoiceError: an `overwrite` that is not a bool.
        FileError: a searchable module, a folder that exists, a disk that is full; a network that was changed so that it
            cannot be described, or a `source` that does not make it.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.save_subnet(vitas.export_subnet(model), "small")
        >>> vitas.load_subnet("small")(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 10])
    """
    module, overwrite = unwrap(module), as_flag(overwrite, "overwrite")
    if any(holders(module)):
        raise FileError(f"{type(module).__name__} is searchable: save what export_subnet returns, or use save_superformer")
    try:
        for part in module.modules():
            refuse_patches(part)
    except ExportError as error:
        raise FileError(f"{error}; no file holds that") from None
    tensors = own_tensors(module)
    told = _told(module, source)
    config: dict[str, Any] = {
        **(origins.native(told, module) if origins.is_origin(told) else {}),
        "format": FORMAT,
        "version": VERSION,
        "class": _class_name(module),
        "model": told,
        "dtypes": {name: dtype_name(tensor) for name, tensor in tensors.items()},
    }
    config["hash"] = _hash(config)
    folder = as_path(folder)
    if folder.exists():
        _refuse_to_replace(folder, overwrite)
    with complete_or_not_at_all(folder) as draft:
        draft.mkdir()
        (draft / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(tensors, draft / "model.safetensors", {"format": "pt"})


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that exists, unless it holds a saved network and nothing else, and may be replaced."""
    if not overwrite:
        raise FileError(f"{shown(str(folder))} exists already: pass overwrite=True, or another folder")
    names = sorted(it.name for it in folder.iterdir()) if folder.is_dir() else []
    if names != ["config.json", "model.safetensors"]:
        raise FileError(
            f"{shown(str(folder))} is not a folder of save_subnet alone, so it is not replaced: name another one"
        )
    read_config(folder)


def _told(module: nn.Module, source: tuple[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    """Return what a config says of a network: what it was made of, else each of its sizes; {} for classes of one's own."""
    name = _class_name(module)
    known, fault = _format_of(name, "config"), None
    if origins.is_known(name):
        try:
            if (told := origins.expressed(module, source)) is not None:
                return told
        except FileError as error:
            fault = error
    if known is not None and source is None:
        return expressed(known.kinds[name], module)
    if fault is not None and (source is not None or not any(map(_is_ones_own, module.modules()))):
        raise fault
    return {}


def _is_ones_own(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] not in ("torch", "timm", "transformers", "vitas")


def load_subnet(
    folder: AnyPath, *, into: nn.Module | None = None, img_size: int | tuple[int, int] | None = None
) -> nn.Module:
    """Read what `save_subnet` wrote, without the superformer.

    Args:
        folder: Folder with `config.json` and `model.safetensors`; or "hf-hub:user/name", perhaps with "@revision" behind it:
            a repository on the hub of Hugging Face, which is fetched, or found in the hub's cache without a connection.
        into: A module of your own class to load into, where the network is neither of vitas.plain nor of timm.
        img_size: Another image size: the positions are resampled (bicubic, antialiased) as timm does. Twins have none
            and take images of any size; that of timm only notes it, for counts.

    Raises:
        FileError: a file in place of its folder; one that is missing, cut short or of another version; a hash, a field, a
            tensor's name, shape or type that does not fit. Nothing of the network's size is allocated before that is known.
            No such repository or revision; no connection.
        VitasError: a repository, where huggingface_hub is not installed.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.save_subnet(vitas.export_subnet(model), "small")
        >>> larger = vitas.load_subnet("small", img_size=32)
        >>> larger(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    folder = downloaded(folder) if isinstance(folder, str) and folder.startswith(HUB) else as_path(folder)
    if folder.name in ("config.json", "model.safetensors") and folder.is_file():
        raise FileError(f"{folder}: expected the folder that it lies in, {folder.parent}")
    config = read_config(folder)
    weights = folder / "model.safetensors"
    told, resize = config["model"], None
    if into is None:
        model, resize = _built(config, folder)
    elif img_size is not None:
        raise FileError("img_size: positions are resampled only where load_subnet builds the network, not with into=")
    else:
        model = unwrap(into)
        _check_class(model, config, folder)
        refuse_meta(model, f"{folder}: into=")
    state = model.state_dict()
    check_header(weights, {name: (tuple(t.shape), config["dtypes"].get(name)) for name, t in state.items()})
    check_keys(config["dtypes"], set(state), f"{folder / 'config.json'}: dtypes", FileError)
    for name, _ in model.named_parameters():
        dtype = config["dtypes"][name]
        check(getattr(torch, dtype).is_floating_point, f"{weights}: {listed([name])}", "a floating type", dtype)
    # Copies: the file's tensors lie at any address, and some kernels round differently where it is not aligned.
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    if into is None and origins.is_origin(told):
        dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        model = origins.completed(told, f"{folder / 'config.json'}: model", dtypes.pop() if len(dtypes) == 1 else None)
    model.load_state_dict(tensors, assign=into is None)
    if resize is not None and img_size is not None:
        try:
            resize(model, pixels(img_size), folder)
        except VitasError:
            raise
        except NO_NETWORK as error:  # of the library's own code
            raise FileError(f"{folder}: img_size: {brief(error)}") from None
    return model


def _built(config: Mapping[str, Any], folder: Path) -> tuple[nn.Module, Resize]:
    """Return the network that a config describes, on the meta device, and what gives it another image size."""
    name, told, where = config["class"], config["model"], f"{folder / 'config.json'}: model"
    known = _format_of(name, folder)
    if origins.is_origin(told):
        return origins.built(told, name, where), origins.resize if known is None else known.resize
    if known is None:
        raise FileError(
            f"{folder}: class {shown(name)} is not built here; build one and pass it as into=, or save it with source="
        )
    return built(known.kinds[name], told, where), known.resize


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


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checked config of a folder, but for what it says of the model.

    Raises:
        FileError: missing, too long, of another version, changed.
    """
    path = folder / "config.json"
    config = read_json(read_text(path, _MOST_CONFIG_BYTES), path)
    wanted = {"format", "version", "class", "model", "dtypes", "hash"}
    if not isinstance(config, dict):
        raise FileError(f"{path}: expected a JSON object, got {type(config).__name__}")
    if config.get("format") != FORMAT:
        raise FileError(f"{path}: format: expected {FORMAT!r}, got {shown(config.get('format'))}")
    if config.get("version") != VERSION or isinstance(config.get("version"), bool):
        raise FileError(f"{path}: version: expected {VERSION}, got {shown(config.get('version'))}")
    librarys = set(config) if origins.is_origin(config.get("model")) else set()  # what timm or Hugging Face reads
    check_keys(config, wanted | librarys, f"{path}", FileError)
    if config["hash"] != _hash(config):
        raise FileError(f"{path}: hash: does not fit the content; the file was changed or cut")
    check(isinstance(config["class"], str), f"{path}: class", "a string", config["class"])
    check(isinstance(config["dtypes"], dict), f"{path}: dtypes", "an object", config["dtypes"])
    for name, dtype in config["dtypes"].items():
        check(isinstance(dtype, str) and len(dtype) < 32, f"{path}: dtypes: {listed([name])}", "a type's name", dtype)
    return config

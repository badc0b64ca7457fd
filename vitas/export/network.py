"""Plain networks as folders: JSON and safetensors, never pickle; checked before memory is taken."""

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitas.errors import FileError, brief, listed, shown
from vitas.export.files import (
    AnyPath,
    as_path,
    check_header,
    complete_or_not_at_all,
    dtype_name,
    own_tensors,
    read_json,
    refuse_meta,
)
from vitas.export.plain_format import CLASSES, check, check_model, same_keys
from vitas.export.positions import resampled_positions
from vitas.nn.patches import pixels
from vitas.space import holders, unwrap

FORMAT, VERSION = "vitas-subnet", 1


_TIMM = {
    "timm.models.vision_transformer.VisionTransformer": "vitas.export.timm_format",
    "timm.models.deit.VisionTransformerDistilled": "vitas.export.timm_format",
    "timm.models.twins.Twins": "vitas.export.timm_format",
}
"""Classes of timm that exports of wrapped models have, and the file that describes and builds them, imported when needed."""


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
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "class": name,
        "model": _expressed(module) if name in CLASSES else _expressed_by_timm(name, module) if name in _TIMM else {},
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
    if into is None:
        if config["class"] in _TIMM:
            model: nn.Module = _timm_on_meta(config, folder)
        elif config["class"] in CLASSES:
            model = _on_meta(config, folder)
        else:
            raise FileError(
                f"{folder}: a network of your own class {shown(config['class'])}; build one and pass it as into="
            )
    elif img_size is not None:
        raise FileError("img_size: positions are resampled only where load_subnet builds the network, not with into=")
    else:
        model = unwrap(into)
        _check_class(model, config, folder)
        refuse_meta(model, f"{folder}: into=")
    state = model.state_dict()
    check_header(weights, {name: (tuple(t.shape), config["dtypes"].get(name)) for name, t in state.items()})
    same_keys(config["dtypes"], set(state), f"{folder / 'config.json'}: dtypes")
    # Copies: the file's tensors lie at any address, and some kernels round differently where it is not aligned.
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    if img_size is not None and config["class"] in CLASSES:
        model, tensors = _resized(config, tensors, pixels(img_size), folder)
    model.load_state_dict(tensors, assign=into is None)
    if img_size is not None and config["class"] in _TIMM:
        _timm_file(config["class"], folder).set_input_size(model, pixels(img_size))
    return model


def _expressed(module: nn.Module) -> dict[str, Any]:
    """Return a network's config, having made sure that it says all there is."""
    try:
        config: dict[str, Any] = module.config  # type: ignore[assignment]
        check_model(_class_name(module), config, "config")
        with torch.device("meta"):
            again = type(module).from_config(config)  # type: ignore[attr-defined]
    except (AttributeError, TypeError, KeyError, ArithmeticError) as error:
        raise FileError(
            f"config: this network was changed in a way that its config cannot express ({brief(error)})"
        ) from None
    got = {name: tuple(tensor.shape) for name, tensor in again.state_dict().items()}
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if got != expected or repr(again) != repr(module) or _parts(again) != _parts(module):
        different = [name for name in {**got, **expected} if got.get(name) != expected.get(name)]
        what = listed(different) if different else "its layers' options"
        raise FileError(f"config: this network was changed in a way that its config cannot express: {what}")
    return config


_NO_NETWORK = (TypeError, ValueError, KeyError, AttributeError, AssertionError, ArithmeticError, RuntimeError)


def _timm_file(name: str, where: object) -> Any:
    """Return the file that describes and builds networks of a class of timm."""
    try:
        return importlib.import_module(_TIMM[name])
    except ImportError as error:
        raise FileError(f"{where}: {name}: {error}; pip install 'vitas[timm]'") from None


def _expressed_by_timm(name: str, module: nn.Module) -> dict[str, Any]:
    """Return the config of a network of timm, having made sure that it says all there is."""
    family = _timm_file(name, "config")
    try:
        config: dict[str, Any] = json.loads(json.dumps(family.config_of(module), allow_nan=False))
        with torch.device("meta"):
            again = family.from_config(name, config)
    except _NO_NETWORK as error:
        raise FileError(f"config: it cannot express this network ({brief(error)})") from None
    told, own = ({**_shapes(one), **_kinds(one), **family.scalars(one)} for one in (again, module))
    if different := [name for name in {**told, **own} if told.get(name) != own.get(name)]:
        raise FileError(f"config: this network was changed in a way that its config cannot express: {listed(different)}")
    return config


def _shapes(module: nn.Module) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _kinds(module: nn.Module) -> dict[str, Any]:
    return {name: type(part) for name, part in module.named_modules()}


def _timm_on_meta(config: Mapping[str, Any], where: Path) -> nn.Module:
    """Return the network of timm that a config describes; the network's own description has to be the same."""
    family = _timm_file(config["class"], where)
    try:
        with torch.device("meta"):
            model: nn.Module = family.from_config(config["class"], config["model"])
        again = json.loads(json.dumps(family.config_of(model)))
    except _NO_NETWORK as error:
        said = f"{type(error).__name__}: {brief(error)}"
        raise FileError(f"{where}: config.json: model: no network of timm ({said})") from None
    if field := _difference(config["model"], again, "model"):
        raise FileError(f"{where}: config.json: {field}")
    return model


def _difference(got: Any, expected: Any, where: str) -> str | None:
    """Say where two JSON values differ first; 1, 1.0 and true are three values."""
    if isinstance(got, dict) and isinstance(expected, dict):
        for key in {**got, **expected}:
            if key not in got or key not in expected:
                return f"{where}: {key}: {'missing' if key in expected else 'unknown field'}"
            if found := _difference(got[key], expected[key], f"{where}.{key}"):
                return found
        return None
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        pairs = enumerate(zip(got, expected, strict=True))
        return next(filter(None, (_difference(a, b, f"{where}.{i}") for i, (a, b) in pairs)), None)
    if type(got) is not type(expected) or got != expected:
        return f"{where}: got {shown(got)}, a network of timm would have {shown(str(expected)[:60])}"
    return None


def _parts(module: nn.Module) -> list[tuple[str, type, Any, Any]]:
    """Return the class of every part and the options that it does not print in full."""
    return [
        (name, type(part), getattr(part, "drop_prob", None), getattr(part, "init_values", None))
        for name, part in module.named_modules()
    ]


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _check_class(model: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a module of another class, or of ours with other options, than the one that was saved."""
    name, wanted = type(model).__name__, config["class"].rpartition(".")[2]  # a script's classes live in __main__
    check(name == wanted, f"{folder}: class", f"a {wanted} as into=", name)
    if config["class"] in CLASSES:
        got = _expressed(model)
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
    same_keys(config, wanted, f"{path}")
    if config["hash"] != _hash(config):
        raise FileError(f"{path}: hash: does not fit the content; the file was changed or cut")
    check(isinstance(config["class"], str), f"{path}: class", "a string", config["class"])
    check(isinstance(config["dtypes"], dict), f"{path}: dtypes", "an object", config["dtypes"])
    for name, dtype in config["dtypes"].items():
        check(isinstance(dtype, str) and len(dtype) < 32, f"{path}: dtypes: {listed([name])}", "a type's name", dtype)
    if config["class"] in CLASSES:
        check_model(config["class"], config["model"], f"{path}: model")
    return config


def _on_meta(config: Mapping[str, Any], where: Path) -> nn.Module:
    try:
        with torch.device("meta"):
            return CLASSES[config["class"]].from_config(config["model"])  # type: ignore[no-any-return]
    except (RuntimeError, OverflowError) as error:
        raise FileError(f"{where}: sizes that no tensor can have ({brief(error)})") from None


def _resized(
    config: Mapping[str, Any], tensors: dict[str, Tensor], size: tuple[int, int], where: Path
) -> tuple[nn.Module, dict[str, Tensor]]:
    model = config["model"]
    if "pos_embed" not in tensors:
        return _on_meta(config, where), tensors
    prefix = 2 if model["distilled"] else 1
    old, patch = tuple(model["img_size"]), model["patch_size"]
    tensors = {**tensors, "pos_embed": resampled_positions(tensors["pos_embed"], old, size, patch, prefix, where)}
    return _on_meta({**config, "model": {**model, "img_size": list(size)}}, where), tensors

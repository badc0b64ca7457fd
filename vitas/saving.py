"""Networks and superformers as files: JSON and safetensors, never pickle; checked before memory is taken."""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Dim
from vitas.errors import FileError, brief, listed, shown
from vitas.nn.embed import pixels
from vitas.plain_file import CLASSES, check, check_model, is_size, same_keys
from vitas.space import search_space
from vitas.walk import held, holders, unwrap

FORMAT, VERSION = "vitas-subnet", 1
SUPERFORMER = "vitas-superformer"
_TIMM = {
    "timm.models.vision_transformer.VisionTransformer": "vitas.timm_file",
    "timm.models.deit.VisionTransformerDistilled": "vitas.timm_file",
    "timm.models.twins.Twins": "vitas.timm_file",
}
"""Classes of timm that exports of wrapped models have, and the file that describes and builds them, imported when needed."""
_MOST_CONFIG_BYTES = 2**20
_MOST_HEADER_BYTES = 2**22

AnyPath = str | os.PathLike[str]


def as_path(path: AnyPath) -> Path:
    """Return what was given as the place of a file or folder.

    Raises:
        FileError: neither text nor a path.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise FileError(f"expected a path, got {shown(path)}")
    return Path(path)


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
    tensors = _own_tensors(module)
    name = _class_name(module)
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "class": name,
        "model": _expressed(module) if name in CLASSES else _expressed_by_timm(name, module) if name in _TIMM else {},
        "dtypes": {name: _dtype_name(tensor) for name, tensor in tensors.items()},
    }
    config["hash"] = _hash(config)
    folder = as_path(folder)
    if folder.exists():
        raise FileError(f"{folder}: exists already")
    with _complete_or_not_at_all(folder) as draft:
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
        _refuse_meta(model, f"{folder}: into=")
    state = model.state_dict()
    _check_header(weights, {name: (tuple(t.shape), config["dtypes"].get(name)) for name, t in state.items()})
    same_keys(config["dtypes"], set(state), f"{folder / 'config.json'}: dtypes")
    # Copies: the file's tensors lie at any address, and some kernels round differently where it is not aligned.
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    if img_size is not None and config["class"] in CLASSES:
        model, tensors = _resized(config, tensors, pixels(img_size), folder)
    model.load_state_dict(tensors, assign=into is None)
    if img_size is not None and config["class"] in _TIMM:
        _timm_file(config["class"], folder).set_input_size(model, pixels(img_size))
    return model


def save_superformer(model: nn.Module, path: AnyPath) -> None:
    """Write the weights of a superformer with a description of its space to one safetensors file.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        path: File; one that exists is replaced when the new one is complete.

    Raises:
        ChoiceError: a model without choices.
        FileError: a disk that is full.
    """
    inner = unwrap(model)
    metadata = {
        "format": SUPERFORMER,
        "version": str(VERSION),
        "space": json.dumps(search_space(inner).description()),
        "fixed": json.dumps(_fixed_values(inner)),
        "derived": json.dumps(_derived_runs(inner)),
        "img_size": json.dumps(_img_size(inner)),
    }
    tensors = _own_tensors(inner)
    with _complete_or_not_at_all(as_path(path)) as draft:
        save_file(tensors, draft, metadata)


def load_superformer(model: nn.Module, path: AnyPath) -> None:
    """Read weights that `save_superformer` wrote into a model of the same space; positions follow its image size.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        path: File.

    Raises:
        FileError: a file that is missing, cut short or of another version; another space; a tensor's name, shape or type
            that does not fit. The model is then unchanged.
    """
    inner, path = unwrap(model), as_path(path)
    _refuse_meta(inner, f"{path}")
    metadata = _metadata(path)
    if metadata.get("format") != SUPERFORMER or metadata.get("version") != str(VERSION):
        raise FileError(
            f"{path}: expected format {shown(SUPERFORMER)} version {VERSION}, got {shown(metadata.get('format'))}"
        )
    saved, own = _json(metadata.get("space", ""), path), search_space(inner).description()
    check(isinstance(saved, dict), f"{path}: space", "an object", saved)
    if saved != own:
        differing = [name for name in {**own, **saved} if own.get(name) != saved.get(name)]
        raise FileError(f"{path}: another search space; different in {listed(differing)}")
    state = inner.state_dict()
    old, new = _json(metadata.get("img_size", "null"), path), _img_size(inner)
    check(old == new or (new is not None and is_size(old)), f"{path}: img_size", "two ints", old)
    if old != new and not hasattr(inner, "patch_size"):
        raise FileError(f"{path}: images of {old} pixels; model.set_input_size({old}) before loading")
    resampled = [name for name in state if name.split(".")[0] == "pos_embed"] if old != new else []
    _check_header(path, {n: (tuple(t.shape), _dtype_name(t)) for n, t in state.items()}, ignore_shape=set(resampled))
    fixed = _json(metadata.get("fixed", "{}"), path)
    check(isinstance(fixed, dict), f"{path}: fixed", "an object", fixed)
    for name, value in _fixed_values(inner).items():  # equal shapes do not tell how many heads there are
        check(fixed.get(name) == value, f"{path}: {name}", str(value), fixed.get(name))
    derived, here = _json(metadata.get("derived", "null"), path), _derived_runs(inner)  # null: an older file
    if derived is not None and derived != here:
        check(isinstance(derived, dict), f"{path}: derived", "an object", derived)
        differing = [name for name in {**here, **derived} if here.get(name) != derived.get(name)]
        raise FileError(f"{path}: widths that follow others use other channels in {listed(differing)}")
    tensors = load_file(path)
    for name in resampled:
        patch, width, shape = _patch_of(inner, name), state[name].shape[-1], tuple(tensors[name].shape)
        if len(shape) != 3 or (shape[0], shape[2]) != (1, width):
            raise FileError(f"{path}: {name}: expected shape (1, positions, {width}), got {shown(shape)}")
        tensors[name] = _resampled(tensors[name], old, new, patch, inner.num_prefix_tokens, path)
    inner.load_state_dict(tensors)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors as safetensors takes them: contiguous, none sharing memory with another."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if tensor.is_meta:
            raise FileError(f"{name}: on the meta device, there is nothing to write")
        tensor = tensor.detach().contiguous()
        address = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return tensors


# -- config ------------------------------------------------------------------------------------------------------------


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


def _refuse_meta(model: nn.Module, where: str) -> None:
    """Refuse a model without memory: torch would load into it, and nothing would come of that."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise FileError(
                f"{where}: {name} is on the meta device, there is nothing to load into; model.to_empty(...) first"
            )


def _hash(config: Mapping[str, Any]) -> str:
    content = {key: value for key, value in config.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not valid JSON ({brief(error)})") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_CONFIG_BYTES:
            raise FileError(f"{path}: larger than {_MOST_CONFIG_BYTES} bytes")
        config = _json(path.read_text(), path)
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


# -- tensors -----------------------------------------------------------------------------------------------------------


def _metadata(path: Path) -> dict[str, str]:
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > _MOST_HEADER_BYTES:
            raise FileError(f"{path}: cannot be read (a header of more than {_MOST_HEADER_BYTES} bytes)")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: cannot be read ({brief(error)})") from None


_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
_TYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64"}
_TYPES |= {"U64": "uint64", "U32": "uint32", "U16": "uint16"}
_TYPES |= {"U8": "uint8", "I8": "int8", "I16": "int16", "BOOL": "bool"}


def _check_header(
    path: Path,
    wanted: Mapping[str, tuple[tuple[int, ...], str | None]],
    ignore_shape: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Compare names, shapes and types with the file's header, which is small."""
    with _opened(path) as file:
        names = set(file.keys())
        extra, missing = sorted(names - set(wanted)), sorted(set(wanted) - names)
        if missing:
            raise FileError(f"{path}: missing tensors: {listed(missing)}")
        if extra:
            raise FileError(f"{path}: tensors that the network does not have: {listed(extra)}")
        for name, (shape, dtype) in wanted.items():
            tensor = file.get_slice(name)
            got = tuple(tensor.get_shape())
            if got != shape and name not in ignore_shape:
                raise FileError(f"{path}: {name}: expected shape {shape}, got {shown(got)}")
            kind = _TYPES.get(tensor.get_dtype(), tensor.get_dtype())
            if kind != dtype:
                raise FileError(f"{path}: {name}: expected type {dtype}, got {kind}")


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
    tensors = {**tensors, "pos_embed": _resampled(tensors["pos_embed"], old, size, patch, prefix, where)}
    return _on_meta({**config, "model": {**model, "img_size": list(size)}}, where), tensors


def _resampled(table: Tensor, old: Any, new: Any, patch: int, prefix: Any, where: Path) -> Tensor:
    if any(n % patch for n in new):
        raise FileError(f"{where}: img_size: patches of {patch} pixels do not divide an image of {new[0]} x {new[1]}")
    grids = [(size[0] // patch, size[1] // patch) for size in (old, new)]
    if table.shape[1] != prefix + grids[0][0] * grids[0][1]:
        raise FileError(f"{where}: pos_embed: {table.shape[1]} positions do not fit an image of {old[0]} x {old[1]} pixels")
    return plain.resample_positions(table, grids[0], grids[1], prefix)


def _fixed_values(model: nn.Module) -> dict[str, int | float]:
    """Return the values that are not searched, such as a head count given as an int, by module path."""
    return {
        f"{path}.{name}": choice.largest
        for path, module in model.named_modules()
        for name, choice in held(module)
        if choice.fixed and not name.startswith("_")
    }


def _derived_runs(model: nn.Module) -> dict[str, list[list[list[int]]]]:
    """Return the runs of widths that follow other choices, by module path: those choices may not tell them."""
    return {
        f"{path}.{name}": [[list(run) for run in side] for side in choice.sides]
        for path, module in model.named_modules()
        for name, choice in held(module)
        if isinstance(choice, Dim) and not choice.fixed and choice.bases != (choice,) and not name.startswith("_")
    }


def _img_size(model: nn.Module) -> list[int] | None:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return list(size) if size is not None else None


def _patch_of(model: nn.Module, table: str) -> int:
    _, _, patch = table.partition(".")
    return int(patch) if patch else model.patch_size.largest  # type: ignore[union-attr, return-value]


@contextmanager
def _complete_or_not_at_all(target: Path) -> Iterator[Path]:
    """Yield a path to write to, beside `target`; renamed when done, removed on any error."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise FileError(f"{target}: cannot be written ({brief(error)})") from None
    try:
        yield scratch / target.name
        os.replace(scratch / target.name, target)
    except (OSError, SafetensorError, KeyError) as error:  # a KeyError for a type that safetensors does not know
        raise FileError(f"{target}: cannot be written ({brief(error)})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)

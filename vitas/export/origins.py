"""Networks in files by what they were made of: a model of a library by its name and arguments, and the subnets taken of it.

Nothing in such a file is run. The names are those of timm's entry points and of classes that records describe, the
arguments plain data; the network is built on the meta device first, within bounds, and compared with the weights there are.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitas.checks import MOST_CHANNELS, is_int
from vitas.errors import FileError, brief, listed, shown
from vitas.export.files import check
from vitas.export.formats import differences
from vitas.fields import check_keys
from vitas.wrapping.origin import LEAVE, MADE_FROM, is_plain, origin_of
from vitas.wrapping.records import RECORDS
from vitas.wrapping.remake import original, regular, remade, taken, unwritten, weightless

_MOST_CALLS = 25_000  # of torch, while a network is built: five times what the largest known ones need
_MOST_BLOCKS = 1024  # of an argument that counts them
_MOST_BYTES = 2**38  # of the parameters of the original
_MOST_BUFFERS = 2**30  # bytes of what is computed when a network is built, and stands in no file
_MOST_PRETRAINED = 2**16  # characters
_MOST_SUBNETS = 16
_LABELS = ("id2label", "label2id")  # of a config: the names of classes, whatever those are
_MOST_NUMBERS = 2**20  # in a tensor that is not on the meta device, such as the rates of all blocks


def is_known(name: str) -> bool:
    """Say whether networks of a class, by its full name, can be made again."""
    return "rows " in RECORDS.get(name, "")


def is_origin(told: object) -> bool:
    """Say whether a config tells what its network was made of."""
    return isinstance(told, Mapping) and "source" in told


def expressed(module: nn.Module, source: tuple[str, Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """Return what a config says of a network, having made sure that this makes the same; None: nothing is known.

    Args:
        module: The network.
        source: The name of its original and the arguments, where the network does not know.

    Raises:
        FileError: a network that was changed, or a source that does not make it.
    """
    origin = _given(origin_of(module), module, source)
    if origin is None or origin["source"] is None:
        return None
    own = origin["source"]
    refused = _refused_by(own["library"], own["name"], "config: source")
    arguments = _without(own["arguments"], refused)  # such as notes in a config
    origin["source"] = {**own, "arguments": arguments}
    _check_source(origin["source"], "config: source")
    with _told("config: it cannot be made again from what it was made of"), _bounded():
        made = _made(origin, "config")
        now = _without(_now(module), refused)
        if changed := _changed(_now(made), now):
            origin["source"]["arguments"] = _merged(arguments, changed)
            made = _made(origin, "config")
    if different := differences(made, module):
        raise FileError(
            f"config: made again from {shown(origin['source']['name'], 40)} it differs in {listed(different, 1)};"
            " pass source=(name, arguments) of the original"
        )
    told: dict[str, Any] = json.loads(json.dumps(origin))
    pretrained = dict(vars(module).get("pretrained_cfg") or {})
    return {**told, "pretrained_cfg": {key: value for key, value in pretrained.items() if is_plain(value)}}


def _given(
    origin: dict[str, Any] | None, module: nn.Module, source: tuple[str, Mapping[str, Any]] | None
) -> dict[str, Any] | None:
    if source is None:
        return origin
    fits = isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], str) and isinstance(source[1], Mapping)
    check(fits, "source", "(name, arguments)", source)
    library = type(module).__module__.partition(".")[0]
    told = {"library": library, "name": source[0], "arguments": dict(source[1])}
    _check_source(told, "source")
    return {"subnets": [], **(origin or {}), "source": told}


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is otherwise now, of objects inside only that part; names of labels are taken together."""
    changed = {}
    for name, value in now.items():
        if before.get(name) != value:
            inner = isinstance(value, dict) and isinstance(before.get(name), dict) and name not in _LABELS
            changed[name] = _changed(before[name], value) if inner else value
    return changed


def _merged(told: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name for name, own in changed.items() if isinstance(own, dict) and name not in _LABELS and name in told}
    return {**told, **changed, **{name: _merged(told[name], changed[name]) for name in inner}}


def _now(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that may be changed afterwards: by methods of timm's models, in a config of transformers."""
    own: Any = vars(model)
    if type(model).__module__.partition(".")[0] == "transformers":
        config: dict[str, Any] = json.loads(own["config"].to_json_string())
        return config
    if type(model).__module__.partition(".")[0] != "timm":
        return {}
    head, embed = model._modules.get("head"), model._modules.get("patch_embed")
    pool = getattr(getattr(head, "global_pool", None), "pool_type", own.get("global_pool"))
    size = vars(embed).get("img_size") if embed is not None else None
    now = {"num_classes": own.get("num_classes"), "global_pool": pool, "img_size": size}
    return {name: value for name, value in now.items() if is_plain(value) and value is not None}


def native(told: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """Return what the library itself reads in a config, where its constructor builds the network as it is.

    Else nothing, or for timm a name of no model, which it shows when it refuses the folder.
    """
    own: Any = vars(module)
    name, of_timm = told["source"]["name"], told["source"]["library"] == "timm"
    arguments = _of_constructor(told, module, regular(told) if of_timm else [json.loads(own["config"].to_json_string())])
    if arguments is None:
        refused = f"subnet of {name}, which timm's constructor does not build: it is read by load_subnet of vitas"
        return {"architecture": refused, "pretrained_cfg": {}} if of_timm else {}
    if not of_timm:
        return {**arguments, "architectures": [type(module).__name__], "model_type": own["config"].model_type}
    return {
        "architecture": name,
        "num_classes": own["num_classes"],
        "num_features": own["num_features"],
        "model_args": arguments,
        "pretrained_cfg": {**told["pretrained_cfg"], "architecture": name, "custom_load": False},
    }


def _of_constructor(told: Mapping[str, Any], module: nn.Module, several: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first arguments, or config, by which the library's constructor builds a network; None where it cannot."""
    try:
        with _bounded(), torch.device("meta"):
            for arguments in several:
                if not differences(original({**told["source"], "arguments": arguments}), module):
                    return arguments
    except Exception:  # whatever the library's own code raises for sizes that are not regular
        return None
    return None


def built(told: Any, name: str, where: str) -> nn.Module:
    """Return the network that a config tells of, on the meta device.

    Args:
        told: What the config says.
        name: The full name of its class.
        where: What messages begin with.

    Raises:
        FileError: unknown names, arguments that are no data, sizes out of bounds.
    """
    check_keys(told, {"source", "subnets", "pretrained_cfg"}, where, FileError)
    check(isinstance(told["source"], dict), f"{where}: source", "an object", told["source"])
    _check_source(told["source"], f"{where}: source")
    subnets, pretrained = told["subnets"], told["pretrained_cfg"]
    check(isinstance(subnets, list) and len(subnets) <= _MOST_SUBNETS, f"{where}: subnets", "a list", subnets)
    for subnet in subnets:
        check(isinstance(subnet, dict), f"{where}: subnets", "objects", subnet)
        for key, value in subnet.items():
            slots = value if key.rpartition(".")[2] == LEAVE and isinstance(value, list) else [value or None]
            fits = all(is_int(slot, 0, MOST_CHANNELS) for slot in slots)
            check(fits, f"{where}: subnets: {listed([key])}", "a positive int", value)
    check(isinstance(pretrained, dict), f"{where}: pretrained_cfg", "an object", pretrained)
    length = len(json.dumps(pretrained))
    check(length <= _MOST_PRETRAINED, f"{where}: pretrained_cfg", f"at most {_MOST_PRETRAINED} characters", length)
    with _told(f"{where}: describes no network"), _bounded():
        model = _made(told, where)
    got = f"{type(model).__module__}.{type(model).__qualname__}"
    check(got == name, f"{where}: source", f"the name of a {name}", got)
    return model


def completed(told: Mapping[str, Any], where: str, dtype: torch.dtype | None) -> nn.Module:
    """Return a network that `built` has made sure of, with all that stands in no file; its weights say nothing.

    Args:
        told: What the config says.
        where: What messages begin with.
        dtype: That of all floating weights: what else is computed has it too. None: they have several.

    Raises:
        FileError: arguments that its library looks at only when it draws weights.
    """
    made_in = torch.get_default_dtype()
    if dtype is not None and told["source"]["arguments"].get("dtype") == str(dtype).removeprefix("torch."):
        made_in = dtype  # by transformers, where some buffers have a type of their own
    with _told(f"{where}: describes no network"), weightless(), _default(made_in):
        model = _settled(remade(told), told, told["source"])

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and not isinstance(tensor, nn.Parameter) else tensor

    if dtype not in (None, made_in):
        model._apply(cast)  # type: ignore[no-untyped-call]  # as `.to(dtype)` did, which layers of timm limit
    return model


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def drawn(told: Mapping[str, Any], **options: Any) -> nn.Module:
    """Return a network that `built` has made sure of with weights as its library draws them.

    Args:
        told: What the config says.
        options: Other arguments of the original.
    """
    source = {**told["source"], "arguments": {**told["source"]["arguments"], **options}}
    return _settled(remade({**told, "source": source}), told, source)


def _settled(model: nn.Module, told: Mapping[str, Any], source: Mapping[str, Any]) -> nn.Module:
    """Return a network that knows of what it was made, and where its weights came from, as it knew it."""
    own: Any = vars(model)
    own[MADE_FROM] = {"source": dict(source), "subnets": [dict(subnet) for subnet in told["subnets"]]}
    if "pretrained_cfg" in own:
        pretrained = {key: tuple(item) if isinstance(item, list) else item for key, item in told["pretrained_cfg"].items()}
        own["pretrained_cfg"] = own["default_cfg"] = pretrained
    return model


def resize(model: nn.Module, size: tuple[int, int], where: Path) -> None:
    """Give a loaded network another image size; its library resamples the positions.

    Raises:
        FileError: a class that has no method for it.
    """
    method: Any = getattr(model, "set_input_size", None)
    if method is None:
        raise FileError(f"{where}: img_size: a {type(model).__name__} cannot be given another one")
    method(img_size=size)


# -- what a file may say -----------------------------------------------------------------------------------------------


def _check_source(source: Mapping[str, Any], where: str) -> None:
    check_keys(source, {"library", "name", "arguments"}, where, FileError)
    library, name, arguments = source["library"], source["name"], source["arguments"]
    check(library in ("timm", "transformers"), f"{where}: library", "timm or transformers", library)
    check(isinstance(name, str), f"{where}: name", "a string", name)
    check(isinstance(arguments, dict), f"{where}: arguments", "an object", arguments)
    if not is_plain(arguments):
        raise FileError(f"{where}: arguments: expected numbers, words and lists of them")
    refused = next(_refused_in(arguments, _refused_by(library, name, where)), None)
    check(refused is None, f"{where}: arguments", "those of the model alone", refused)
    for argument, value in arguments.items():
        most = _MOST_BLOCKS if any(word in argument for word in _COUNTS_BLOCKS) else MOST_CHANNELS
        for number in _numbers(value):
            check(abs(number) <= most, f"{where}: arguments: {listed([argument])}", f"numbers up to {most}", number)


_COUNTS_BLOCKS = ("depth", "layers", "blocks")
"""Words in the names of arguments that say how many blocks there are: lists of that length are made before any block."""


def _numbers(value: Any) -> Iterator[int | float]:
    """Yield all numbers in plain data, those too that no float holds, NaN and infinities."""
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


_Rule = Callable[[str, Sequence[str]], bool]
"""Whether no argument may have a name, given the names of the objects around it."""


def _refused_in(arguments: Mapping[str, Any], refused: _Rule, inside: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the names of arguments that a rule refuses, also of those inside of objects."""
    for name, value in arguments.items():
        if refused(name, inside):
            yield ".".join((*inside, name))
        elif isinstance(value, dict):
            yield from _refused_in(value, refused, (*inside, name))


def _without(arguments: Mapping[str, Any], refused: _Rule, inside: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return arguments without those that a rule refuses."""
    return {
        name: _without(value, refused, (*inside, name)) if isinstance(value, dict) else value
        for name, value in arguments.items()
        if not refused(name, inside)
    }


def _refused_by(library: str, name: str, where: str) -> _Rule:
    """Return the rule of what no argument of a model may be called; refuse names of no model."""
    try:
        return _refused_by_timm(name, where) if library == "timm" else _refused_by_transformers(name, where)
    except ImportError as error:
        raise FileError(f"{where}: {error}; pip install 'vitas[{library}]'") from None


def _refused_by_timm(name: str, where: str) -> _Rule:
    """Return the rule that refuses what says where files lie, and what to download."""
    import timm
    from timm.models import build_model_with_cfg, is_model, model_entrypoint

    plain = name.isidentifier() and is_model(name) and model_entrypoint(name).__module__.startswith("timm.")
    check(plain, f"{where}: name", "a model of timm", name)
    own = {key for of in (timm.create_model, build_model_with_cfg) for key in inspect.signature(of).parameters}
    own |= {"pruned", "features_only", "feature_cls", "out_indices", "device", "dtype"}
    return lambda argument, inside: not inside and argument in own


def _refused_by_transformers(name: str, where: str) -> _Rule:
    """Return the rule that refuses what a config, or one inside of it, does not have, or what names code elsewhere."""
    import transformers

    check(name.startswith("transformers.") and is_known(name), f"{where}: name", "a class that records describe", name)
    kind: Any = getattr(transformers, name.rpartition(".")[2], None)
    check(kind is not None, f"{where}: name", f"a class of transformers {transformers.__version__}", name)
    known = kind.config_class().to_dict()
    said = {"architectures", "model_type", "transformers_version", "dtype"}

    def refused(key: str, inside: Sequence[str]) -> bool:
        if inside and inside[-1] in _LABELS:
            return False
        here: Any = known
        for outer in inside:
            here = here.get(outer) if isinstance(here, dict) else None
        strange = isinstance(here, dict) and key not in here and key not in said
        return strange or key.startswith("_") or "implementation" in key or key in ("auto_map", "quantization_config")

    return refused


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Tell what a library makes of arguments that do not fit in our words."""
    try:
        yield
    except FileError:
        raise
    except Exception as error:  # whatever the library's own code raises
        raise FileError(f"{what} ({brief(error, kind=True)})") from None


class _bounded(unwritten):
    """Stop what builds a network without end, or that allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.calls > _MOST_CALLS:
            raise FileError("arguments: the network has too many parts")
        made = super().__torch_function__(func, types, args, kwargs)
        if isinstance(made, Tensor) and not made.is_meta and made.numel() > _MOST_NUMBERS:
            raise FileError(f"arguments: a list of {made.numel()} numbers")
        return made


def _made(origin: Mapping[str, Any], where: str) -> nn.Module:
    """Return the network on the meta device.

    Raises:
        FileError: one that is too large, or whose original is.
    """
    with torch.device("meta"):
        model = original(origin["source"])
        _check_size(model, where)
        return taken(model, origin["subnets"])


def _check_size(model: nn.Module, where: str) -> None:
    kept = set(model.state_dict(keep_vars=True))
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    buffers = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in kept)
    if parameters > _MOST_BYTES or buffers > _MOST_BUFFERS:
        raise FileError(f"{where}: arguments: a network of {parameters + buffers} bytes")

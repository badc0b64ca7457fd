"""What a file may say of a network of `vitas.plain`: fields, types and bounds, checked before anything is built."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from vitas import plain
from vitas.errors import FileError, listed, one_of, shown

CLASSES: dict[str, Any] = {f"vitas.plain.{one.__name__}": one for one in (plain.VisionTransformer, plain.Twins)}


_LARGEST_INT = 2**24


_MOST_BLOCKS = 1024


def same_keys(got: Mapping[str, Any], wanted: set[str], where: str) -> None:
    """Refuse an object that has other fields than these."""
    for key in got:
        if key not in wanted:
            raise FileError(f"{where}: unknown field, {one_of(sorted(wanted), key)}")
    missing = sorted(wanted - set(got))
    if missing:
        raise FileError(f"{where}: missing {listed(missing)}")


def check(fits: bool, where: str, wanted: str, got: object) -> None:
    """Refuse a value that does not fit."""
    if not fits:
        raise FileError(f"{where}: expected {wanted}, got {shown(got)}")


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST_INT


def _count_or_zero(value: object) -> bool:
    return (value == 0 and isinstance(value, int) and not isinstance(value, bool)) or _count(value)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _real(value: object) -> bool:
    if isinstance(value, int):  # one of many digits is no float
        return not isinstance(value, bool) and abs(value) <= _LARGEST_INT
    return isinstance(value, float) and math.isfinite(value)


def _real_or_none(value: object) -> bool:
    return value is None or _real(value)


def _eps(value: object) -> bool:
    return _real(value) and value >= 0  # type: ignore[operator]


def _eps_or_none(value: object) -> bool:
    return value is None or _eps(value)


def _rate(value: object) -> bool:
    return _real(value) and 0 <= value < 1  # type: ignore[operator]


def is_size(value: object) -> bool:
    """Whether a value is the height and width of an image."""
    return isinstance(value, list) and len(value) == 2 and all(map(_count, value))


def _pooling(value: object) -> bool:
    return value in ("token", "avg")


def _pooling_or_none(value: object) -> bool:
    return value in ("avg", "")


def _list(value: object) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_BLOCKS


Fields = dict[str, tuple[Callable[[object], bool], str]]


_COUNT = (_count, f"an int in 1..{_LARGEST_INT}")


_RATE = (_rate, "a number in [0, 1)")


_OPTIONAL = (_real_or_none, "a number or null")


_EPS = (_eps_or_none, "a number of at least 0 or null")


_SOME_EPS = (_eps, "a number of at least 0")


_BLOCKS = (_list, f"a list of blocks, at most {_MOST_BLOCKS}")


_VIT: Fields = {
    "img_size": (is_size, "two ints"),
    "patch_size": _COUNT,
    "in_chans": _COUNT,
    "num_classes": (_count_or_zero, "an int of at least 0"),
    "embed_dim": _COUNT,
    "global_pool": (_pooling, "'token' or 'avg'"),
    "distilled": (_flag, "true or false"),
    "norm_eps": _EPS,
    "fc_norm_eps": _EPS,
    "blocks": _BLOCKS,
}


_TWINS: Fields = {
    "in_chans": _COUNT,
    "num_classes": (_count_or_zero, "an int of at least 0"),
    "global_pool": (_pooling_or_none, "'avg' or ''"),
    "norm_eps": _SOME_EPS,
    "drop_rate": _RATE,
    "pos_drop_rate": _RATE,
    "stages": (lambda value: _list(value) and value != [], f"a list of stages, at most {_MOST_BLOCKS}"),
}


_STAGE: Fields = {"embed_dim": _COUNT, "patch_size": _COUNT, "norm_eps": _SOME_EPS, "blocks": _BLOCKS}


_BLOCK: Fields = {
    "num_heads": _COUNT,
    "qkv_dim": _COUNT,
    "mlp_dim": _COUNT,
    "qkv_bias": (_flag, "true or false"),
    "norm_eps": _SOME_EPS,
    "init_values": _OPTIONAL,
    "attn_drop": _RATE,
    "proj_drop": _RATE,
    "drop_path": _RATE,
}


_VIT_BLOCK: Fields = {**_BLOCK, "qk_norm_eps": _EPS}


_WINDOW_BLOCK: Fields = {**_BLOCK, "window_size": _COUNT}


_SUBSAMPLED_BLOCK: Fields = {**_BLOCK, "sr_ratio": _COUNT, "sr_norm_eps": _EPS}


def _check_fields(got: object, fields: Fields, where: str) -> None:
    if not isinstance(got, dict):
        raise FileError(f"{where}: expected an object, got {type(got).__name__}")
    same_keys(got, set(fields), where)
    for name, (fits, wanted) in fields.items():
        check(fits(got[name]), f"{where}: {name}", wanted, got[name])


def check_model(name: str, model: Any, where: str) -> None:
    """Check the sizes and options of a network of the class `name`."""
    if CLASSES[name] is plain.Twins:
        _check_fields(model, _TWINS, where)
        for k, stage in enumerate(model["stages"]):
            _check_fields(stage, _STAGE, f"{where}: stages.{k}")
            for i, block in enumerate(stage["blocks"]):
                subsampled = isinstance(block, dict) and "sr_ratio" in block
                _check_block(block, _SUBSAMPLED_BLOCK if subsampled else _WINDOW_BLOCK, f"{where}: stages.{k}.blocks.{i}")
        return
    _check_fields(model, _VIT, where)
    patch = model["patch_size"]
    check(all(n % patch == 0 for n in model["img_size"]), f"{where}: patch_size", "a divisor of img_size", patch)
    for i, block in enumerate(model["blocks"]):
        _check_block(block, _VIT_BLOCK, f"{where}: blocks.{i}")


def _check_block(block: Any, fields: Fields, where: str) -> None:
    _check_fields(block, fields, where)
    heads, width = block["num_heads"], block["qkv_dim"]
    check(width % heads == 0, f"{where}: num_heads", f"a divisor of qkv_dim {width}", heads)
    if "sr_ratio" in block:
        fits = (block["sr_ratio"] == 1) == (block["sr_norm_eps"] is None)
        check(fits, f"{where}: sr_norm_eps", "null for a ratio of 1, else a number", block["sr_norm_eps"])

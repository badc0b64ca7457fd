"""What the formats of networks in files have in common: the description says all, and can be built."""

from collections.abc import Callable, Mapping
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vitas.errors import FileError, brief, listed, shown
from vitas.fields import described
from vitas.plain import DropPath
from vitas.wrapping.slots import DROP_PATHS, name_of

Resize = Callable[[nn.Module, tuple[int, int], Path], None]
"""Gives a loaded network, from the place in the third argument, another image size."""


class Format(NamedTuple):
    """How networks of some classes are described in files.

    Args:
        kinds: For the full name of each class its description, with `of(network)`, `as_json()` and `build()`.
        resize: Gives a loaded network another image size.
    """

    kinds: Mapping[str, Any]
    resize: Resize


NO_NETWORK = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError)
"""What constructors raise for sizes of no network."""


def expressed(kind: Any, module: nn.Module) -> dict[str, Any]:
    """Return what a config says of a network, having made sure that it says all there is.

    Raises:
        FileError: a network that its class has no words for.
    """
    try:
        config: dict[str, Any] = kind.of(module).as_json()
        with torch.device("meta"):
            again = described(kind, config, "config", FileError).build()
    except FileError:
        raise
    except NO_NETWORK as error:
        raise FileError(f"config: it cannot express this network ({brief(error)})") from None
    if different := differences(again, module):
        raise FileError(f"config: this network was changed in a way that its config cannot express: {listed(different)}")
    return config


def differences(again: nn.Module, module: nn.Module) -> list[str]:
    """Return the names of what a network that was built again has otherwise than the network itself.

    Numbers, words and flags that only the network has are passed over: somebody put them there.
    """
    told, own = _facts(again), _facts(module)
    names = {name for name in own if not name.startswith(_SCALAR)} | set(told)
    return sorted(name.removeprefix(_SCALAR) for name in names if not _same(told.get(name), own.get(name)))


def _same(told: Any, own: Any) -> bool:
    """Say whether two values are equal, numbers but for rounding: rates of drop path are computed in more than one way."""
    if isinstance(told, float) and isinstance(own, (int, float)):
        return isclose(told, own, rel_tol=1e-6)
    return bool(told == own)


def built(kind: Any, told: object, where: str) -> nn.Module:
    """Return the network that a config describes, on the meta device; described again, it says the same.

    Raises:
        FileError: a config of no network, with the path of the field.
    """
    description = described(kind, told, where, FileError)
    try:
        with torch.device("meta"):
            model: nn.Module = description.build()
        again = kind.of(model)
    except NO_NETWORK as error:
        raise FileError(f"{where}: describes no network ({brief(error, kind=True)})") from None
    if again != description:
        got, expected = _leaves(description.as_json()), _leaves(again.as_json())
        for path in {**got, **expected}:
            if got.get(path) != expected.get(path):
                wanted = f"{where}: {path}: got {shown(got.get(path))}"
                raise FileError(f"{wanted}, such a network has {shown(expected.get(path))}")
    return model


def _leaves(told: Any, path: str = "") -> dict[str, Any]:
    """Return the values in JSON objects and lists by path."""
    if not isinstance(told, (dict, list)):
        return {path: told}
    items = told.items() if isinstance(told, dict) else enumerate(told)
    return {
        key: leaf for name, item in items for key, leaf in _leaves(item, f"{path}.{name}" if path else f"{name}").items()
    }


_SCALAR = "="
_OF_THE_MOMENT = {"training", "grad_checkpointing", "distilled_training", "fused_attn", "weight_init_mode", "fix_init"}
_OF_THE_MOMENT |= {"mlp_ratio"}  # by which a block was made; only its layers are read
_DROP_PATHS = {name_of(DropPath), *DROP_PATHS}


def _facts(model: nn.Module) -> dict[str, Any]:
    """Return shapes, the class of every part, and each number, word and flag that it holds, what printing may not show."""
    facts: dict[str, Any] = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for path, part in model.named_modules():
        if name_of(type(part)) in _DROP_PATHS and not vars(part)["drop_prob"]:
            facts[path] = nn.Identity  # which constructors put there for a rate of 0
            continue
        facts[path or "class"] = type(part)
        facts |= {
            f"{_SCALAR}{path}.{name}": tuple(value) if isinstance(value, list) else value
            for name, value in vars(part).items()
            if isinstance(value, (bool, int, float, str, tuple, list))
            and not name.startswith("_")
            and name not in _OF_THE_MOMENT
        }
    return facts

"""From what an export was made of to the export: its library builds the model, the records narrow it.

Whoever calls decides where: on the meta device nothing is allocated, with `weightless` only what files do not hold.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from vitas.space import search_space
from vitas.wrapping.arguments import Settled, constructor_arguments
from vitas.wrapping.constructor import sizes
from vitas.wrapping.model import Model
from vitas.wrapping.origin import LEAVE
from vitas.wrapping.plan import Plan, apply
from vitas.wrapping.records import RECORDS
from vitas.wrapping.stages import places_of, planned


def remade(origin: Mapping[str, Any]) -> nn.Module:
    """Return the network that was made so, with weights as its library draws them."""
    return taken(original(origin["source"]), origin["subnets"])


def taken(model: nn.Module, subnets: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Return what is left of a model after taking a subnet of it, of that another, and so on; the model changes."""
    for subnet in subnets:
        model = narrowed(model, subnet).export()
    return model


def original(source: Mapping[str, Any]) -> nn.Module:
    """Return the model that its library builds; `pretrained` is never asked for."""
    if source["library"] == "timm":
        create: Any = importlib.import_module("timm").create_model
        model: nn.Module = create(source["name"], **{key: _as_given(value) for key, value in source["arguments"].items()})
        return model
    home, _, name = source["name"].rpartition(".")
    kind: Any = getattr(importlib.import_module(home), name)
    made: nn.Module = kind(kind.config_class.from_dict(dict(source["arguments"])))
    return made


def _as_given(value: Any) -> Any:
    """Return an argument as people write it: tuples, where JSON has lists."""
    return tuple(map(_as_given, value)) if isinstance(value, (list, tuple)) else value


def narrowed(model: nn.Module, subnet: Mapping[str, Any]) -> Model:
    """Return the model itself, made searchable as far as the subnet needs it, with the subnet active.

    Raises:
        WrapError: a model that no record describes.
        ChoiceError: names or values that it does not have.
    """
    places = places_of(model, Plan(RECORDS))
    prefixes = [f"stages.{number}." if place.parts else "" for number, place in enumerate(places)]
    plan, _ = planned(model, places, [_given(subnet, prefix) for prefix in prefixes], "ordinal", RECORDS)
    apply(plan.steps)
    values = {name: value for name, value in subnet.items() if name.rpartition(".")[2] != LEAVE}
    (space := search_space(model)).activate(space.subnet(values, fill="largest"))
    found: Any = model
    return found  # type: ignore[no-any-return]


def _given(subnet: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return what `wrap` would be given for a stage, so that just the subnet is in its space."""
    settled = Settled(subnet)
    stage = {name: settled if f"{prefix}{name}" in subnet else None for name in ("embed_dim", "depth")}
    return {**stage, "leave": subnet.get(f"{prefix}{LEAVE}"), "num_heads": settled, "mlp_ratio": settled, "blocks": None}


def regular(origin: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield arguments with which timm may build the network alone: those of its source, with the sizes of the network.

    Whether they do has to be tried: a constructor has one size for all blocks of a stage, and some classes count the gates
    of an MLP in `mlp_ratio` and some do not.
    """
    arguments = dict(origin["source"]["arguments"])
    if not origin["subnets"]:
        yield arguments
        return
    *before, last = origin["subnets"]
    model = narrowed(taken(original(origin["source"]), before), last)
    known = _words_of(type(model).shape.narrowed)
    searched = {name.rpartition(".")[2] for subnet in origin["subnets"] for name in subnet}
    unchanged = {word for word, names in _FOLLOWS.items() if not names & searched}
    stages = [sizes(stage) for stage in model._stages]
    for gates in (True, False):
        per_stage = [constructor_arguments(stage, gates) for stage in stages]
        words: dict[str, Any] = {name: value for own in reversed(per_stage) for name, value in own.items()}
        if model._stages[0].prefix:
            lists = {name: [own[name] for own in per_stage] for name in words if all(name in own for own in per_stage)}
            words |= {f"{name}s": values for name, values in lists.items()}
            words |= {name: lists[name] for name in ("depth", "num_heads") if name in lists}
            if "num_heads" in lists:
                words |= {"heads": lists["num_heads"], "head_dim": [stage.head_dim[0] for stage in stages]}
        words = {name: value for name, value in words.items() if {name, name.removesuffix("s")}.isdisjoint(unchanged)}
        yield arguments | {name: value for name, value in words.items() if name in known}


def _words_of(kind: type) -> set[str]:
    """Return the names of what a class of timm can be built with: by its constructor, those of its bases, their configs."""
    words: set[str] = set()
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for name, parameter in inspect.signature(base).parameters.items():
            kinds = (parameter.annotation, *get_args(parameter.annotation))
            words |= {name, *(field.name for config in kinds if is_dataclass(config) for field in fields(config))}
    return words


_FOLLOWS = {
    "embed_dim": {"embed_dim"},
    "depth": {"depth"},
    "num_heads": {"num_heads"},
    "heads": {"num_heads"},
    "head_dim": {"num_heads"},
    "mlp_ratio": {"mlp_dim", "embed_dim"},
}
"""The choices that change a word of constructors."""


@contextmanager
def weightless() -> Iterator[None]:
    """Build modules on the CPU without the memory of their parameters: each is one number, seen at every place.

    Buffers, and whatever else a constructor computes, are there. The random number generator stays as it is.
    """
    thread = threading.get_ident()

    def shrink(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != thread or parameter is None:
            return None
        return nn.Parameter(parameter.detach().new_zeros(()).expand(parameter.shape), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(shrink)  # type: ignore[arg-type]  # typed as if it gave None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), unwritten():
            yield
    finally:
        handle.remove()


_NO_WRITES = ("requires_grad_", "detach_", "set_", "resize_", "squeeze_", "unsqueeze_", "transpose_", "t_", "as_strided_")
"""Methods that end in an underscore and change what a tensor is, not its numbers."""


class unwritten(TorchFunctionMode):
    """Pass over what would be written into a tensor without memory of its own: on the meta device, or one number.

    Either tells torch's own initialisers that it is on the meta device, so that they draw no numbers. Others hear the truth:
    constructors leave out what they compute where weights are on that device.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__") and name not in _NO_WRITES):
            written = next(iter((*args, *given.values())), None)
            if isinstance(written, Tensor) and _is_empty(written):
                return written
        if getattr(func, "__self__", None) is Tensor.is_meta and sys._getframe(1).f_globals is vars(nn.init):
            return _is_empty(args[0])
        return func(*args, **given)


def _is_empty(tensor: Tensor) -> bool:
    """Say whether a tensor has no memory of its own."""
    return tensor.is_meta or 0 in tensor.stride()

"""What an export was made of, in plain data: a model of a library, and the subnets that were taken of it in turn.

An export keeps it as the attribute `made_from`, a dict of texts and numbers, so that copies and pickles hold it and need
nothing of this package. A file of the export says the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

MADE_FROM = "made_from"

LEAVE = "leave"
"""So a subnet lists the blocks that are left out, behind the prefix of their stage, if those are not the last ones."""


def origin_of(model: nn.Module) -> dict[str, Any] | None:
    """Return what a network was made of; None where neither it nor its library says so.

    Args:
        model: An export; or a model straight from timm since 1.0.31, or from transformers.
    """
    if MADE_FROM in vars(model):
        return dict(vars(model)[MADE_FROM])
    source = source_of(model, type(model))
    if source is None or (source["library"] == "timm" and "_model_args" not in vars(model)):
        return None
    return {"source": source, "subnets": []}


def source_of(model: nn.Module, kind: type) -> dict[str, Any] | None:
    """Return how its library builds a model of a class: by a name, and arguments or a config that are plain data."""
    home = kind.__module__.partition(".")[0]
    own = vars(model)
    if home == "timm":
        name = dict(own.get("pretrained_cfg") or {}).get("architecture")
        arguments = {key: value for key, value in dict(own.get("_model_args") or {}).items() if is_plain(value)}
        return None if not name else {"library": home, "name": name, "arguments": arguments}
    if home == "transformers":
        name = f"{kind.__module__}.{kind.__qualname__}"
        return {"library": home, "name": name, "arguments": json.loads(own["config"].to_json_string())}
    return None


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """Return what timm's constructor was given for a model, or for the one that it was taken of, as far as is known."""
    source = dict(vars(model).get(MADE_FROM) or {}).get("source") or {"arguments": vars(model).get("_model_args")}
    return dict(source["arguments"] or {})


def is_plain(value: Any) -> bool:
    """Say whether a value is numbers, words, flags, or lists and dicts of them."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def note_origin(
    model: nn.Module, subnet: Mapping[str, Any], export: nn.Module, constructed: Mapping[str, Any] | None
) -> None:
    """Let an export say what it was made of, and which model of its library it is, if any.

    Where timm's constructor builds the network, timm's own record of name and arguments is that of the subnet, so that
    `timm.models.save_for_hf` writes a folder that timm loads. Any other subnet has a name that is no model's, and arguments
    that timm refuses to write, saying their name.

    Args:
        model: The searchable model, which knows of what its library, or another export before it, was made.
        subnet: What is active, where that is not the largest.
        export: The network of what is active.
        constructed: Its sizes in the words of the constructor; None: that cannot build it.
    """
    before = vars(model).get(MADE_FROM) or {"source": source_of(model, type(export)), "subnets": []}
    subnets = [*before["subnets"], dict(subnet)] if subnet else before["subnets"]
    own = vars(export)
    own[MADE_FROM] = {"source": before["source"], "subnets": subnets}
    if not subnets or "pretrained_cfg" not in own:
        return
    name, told = dict(before["source"] or {}).get("name"), own.pop("_model_args", None)  # timm tells since 1.0.31
    if name and constructed is not None and told is not None and ... not in told.values():
        own["_model_args"] = {**told, **constructed}
    else:
        name = f"subnet of {name}"
        if told is not None:
            own["_model_args"] = {f"{name}, which timm's constructor does not build (save_subnet writes it)": ...}
    own["pretrained_cfg"] = own["default_cfg"] = {**own["pretrained_cfg"], "architecture": name}

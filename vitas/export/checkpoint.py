"""Superformers as files: the weights, with a description of their space."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from vitas.choice import Dim
from vitas.errors import FileError, listed, shown
from vitas.export.files import (
    AnyPath,
    as_path,
    check,
    check_header,
    complete_or_not_at_all,
    dtype_name,
    own_tensors,
    read_json,
    read_metadata,
    refuse_meta,
)
from vitas.export.network import VERSION
from vitas.export.positions import is_size, resampled_positions
from vitas.space import held, holders, search_space, unwrap

SUPERFORMER = "vitas-superformer"


def save_superformer(model: nn.Module, path: AnyPath) -> None:
    """Write the weights of a superformer with a description of its space to one safetensors file.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile, or a module around one; of the latter all
            weights are written, and the file loads into the model inside too.
        path: File; one that exists is replaced when the new one is complete.

    Raises:
        ChoiceError: a model without choices.
        FileError: a disk that is full.
    """
    inner = unwrap(model)
    prefix, part = _searchable_part(inner)
    metadata = {
        "format": SUPERFORMER,
        "version": str(VERSION),
        "part": prefix,
        "space": json.dumps(search_space(inner).description()),
        "fixed": json.dumps(_fixed_values(inner)),
        "derived": json.dumps(_derived_runs(inner)),
        "img_size": json.dumps(_img_size(part)),
    }
    tensors = own_tensors(inner)
    with complete_or_not_at_all(as_path(path)) as draft:
        save_file(tensors, draft, metadata)


def load_superformer(model: nn.Module, path: AnyPath) -> None:
    """Read weights that `save_superformer` wrote into a model of the same space; positions follow its image size.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile. A file of a module around it will do.
        path: File.

    Raises:
        FileError: a file that is missing, cut short or of another version; another space; a tensor's name, shape or type
            that does not fit. The model is then unchanged.
    """
    whole, path = unwrap(model), as_path(path)
    own, inner = _searchable_part(whole)
    refuse_meta(whole, f"{path}")
    metadata = read_metadata(path)
    if metadata.get("format") != SUPERFORMER or metadata.get("version") != str(VERSION):
        raise FileError(
            f"{path}: expected format {shown(SUPERFORMER)} version {VERSION}, got {shown(metadata.get('format'))}"
        )
    if "part" not in metadata:  # an older file, which is read by the very module that was written
        inner = whole
    at = metadata.get("part", own)
    if at != own and own and not at.endswith(f".{own}"):
        raise FileError(
            f"{path}: its choices stand at {shown(at)}, here at {shown(own)}; load it into the part that was written"
        )
    below = at[: len(at) - len(own)] if own or not at else f"{at}."  # where the names of this model begin in the file
    _check_space(inner, metadata, path)
    state = whole.state_dict()
    old, new = read_json(metadata.get("img_size", "null"), path), _img_size(inner)
    check(old == new or (new is not None and is_size(old)), f"{path}: img_size", "two ints", old)
    if old != new and not hasattr(inner, "patch_size"):
        raise FileError(f"{path}: images of {old} pixels; model.set_input_size({old}) before loading")
    start = f"{own}." if own else ""
    tables = {name for name in state if name.removeprefix(start).split(".")[0] == "pos_embed" and old != new}
    wanted = {below + name: (tuple(tensor.shape), dtype_name(tensor)) for name, tensor in state.items()}
    check_header(path, wanted, {below + name for name in tables}, below)
    _check_unsearched(whole, metadata, path, below)
    tensors = {name.removeprefix(below): it for name, it in load_file(path).items() if name.startswith(below)}
    for name in tables:
        patch, width, shape = _patch_of(inner, name.removeprefix(start)), state[name].shape[-1], tuple(tensors[name].shape)
        if len(shape) != 3 or (shape[0], shape[2]) != (1, width):
            raise FileError(f"{path}: {name}: expected shape (1, positions, {width}), got {shown(shape)}")
        tensors[name] = resampled_positions(tensors[name], old, new, patch, inner.num_prefix_tokens, path)
    whole.load_state_dict(tensors)


def _check_space(inner: nn.Module, metadata: Mapping[str, str], path: Path) -> None:
    """Compare the space that a file describes with that of a model.

    Raises:
        FileError: they differ.
    """
    saved, own = read_json(metadata.get("space", ""), path), search_space(inner).description()
    check(isinstance(saved, dict), f"{path}: space", "an object", saved)
    if saved != own:
        differing = [name for name in {**own, **saved} if own.get(name) != saved.get(name)]
        raise FileError(f"{path}: another search space; different in {listed(differing)}")


def _check_unsearched(model: nn.Module, metadata: Mapping[str, str], path: Path, below: str) -> None:
    """Compare values that are not searched and runs that follow others, which neither space nor shapes tell.

    Raises:
        FileError: they differ.
    """
    fixed = read_json(metadata.get("fixed", "{}"), path)
    check(isinstance(fixed, dict), f"{path}: fixed", "an object", fixed)
    for name, value in _fixed_values(model).items():  # equal shapes do not tell how many heads there are
        check(fixed.get(below + name) == value, f"{path}: {below}{name}", str(value), fixed.get(below + name))
    derived, here = read_json(metadata.get("derived", "null"), path), _derived_runs(model)  # null: an older file
    if derived is not None:
        check(isinstance(derived, dict), f"{path}: derived", "an object", derived)
        there = {name.removeprefix(below): runs for name, runs in derived.items() if name.startswith(below)}
        if differing := [name for name in {**here, **there} if here.get(name) != there.get(name)]:
            raise FileError(f"{path}: widths that follow others use other channels in {listed(differing)}")


def _searchable_part(model: nn.Module) -> tuple[str, Any]:
    """Return the innermost module that holds all choices of a model, and its path."""
    names: list[str] = []
    while not any(True for _ in held(model)):
        inside = [name for name, child in model.named_children() if any(holders(child))]
        if len(inside) != 1:
            break
        names += inside
        model = model.get_submodule(inside[0])
    return ".".join(names), model


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

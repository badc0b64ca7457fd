"""Superformers as files: the weights, with a description of their space."""

import json

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
from vitas.space import held, search_space, unwrap

SUPERFORMER = "vitas-superformer"


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
    tensors = own_tensors(inner)
    with complete_or_not_at_all(as_path(path)) as draft:
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
    refuse_meta(inner, f"{path}")
    metadata = read_metadata(path)
    if metadata.get("format") != SUPERFORMER or metadata.get("version") != str(VERSION):
        raise FileError(
            f"{path}: expected format {shown(SUPERFORMER)} version {VERSION}, got {shown(metadata.get('format'))}"
        )
    saved, own = read_json(metadata.get("space", ""), path), search_space(inner).description()
    check(isinstance(saved, dict), f"{path}: space", "an object", saved)
    if saved != own:
        differing = [name for name in {**own, **saved} if own.get(name) != saved.get(name)]
        raise FileError(f"{path}: another search space; different in {listed(differing)}")
    state = inner.state_dict()
    old, new = read_json(metadata.get("img_size", "null"), path), _img_size(inner)
    check(old == new or (new is not None and is_size(old)), f"{path}: img_size", "two ints", old)
    if old != new and not hasattr(inner, "patch_size"):
        raise FileError(f"{path}: images of {old} pixels; model.set_input_size({old}) before loading")
    resampled = [name for name in state if name.split(".")[0] == "pos_embed"] if old != new else []
    check_header(path, {n: (tuple(t.shape), dtype_name(t)) for n, t in state.items()}, ignore_shape=set(resampled))
    fixed = read_json(metadata.get("fixed", "{}"), path)
    check(isinstance(fixed, dict), f"{path}: fixed", "an object", fixed)
    for name, value in _fixed_values(inner).items():  # equal shapes do not tell how many heads there are
        check(fixed.get(name) == value, f"{path}: {name}", str(value), fixed.get(name))
    derived, here = read_json(metadata.get("derived", "null"), path), _derived_runs(inner)  # null: an older file
    if derived is not None and derived != here:
        check(isinstance(derived, dict), f"{path}: derived", "an object", derived)
        differing = [name for name in {**here, **derived} if here.get(name) != derived.get(name)]
        raise FileError(f"{path}: widths that follow others use other channels in {listed(differing)}")
    tensors = load_file(path)
    for name in resampled:
        patch, width, shape = _patch_of(inner, name), state[name].shape[-1], tuple(tensors[name].shape)
        if len(shape) != 3 or (shape[0], shape[2]) != (1, width):
            raise FileError(f"{path}: {name}: expected shape (1, positions, {width}), got {shown(shape)}")
        tensors[name] = resampled_positions(tensors[name], old, new, patch, inner.num_prefix_tokens, path)
    inner.load_state_dict(tensors)


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

"""Superformers as files: the weights, with a description of their space."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitas.checks import LONGEST_NAME, check_flags
from vitas.choice import Dim
from vitas.errors import FileError, listed, shown
from vitas.export.adapt import Adapted, adapt_choices, adapt_products, sizes_apart
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
from vitas.nn.images import SizedImages, largest_size, searched_size
from vitas.space import all_or_nothing, held, holders, search_space, unwrap

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

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.save_superformer(model, "model.safetensors")
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


def load_superformer(model: nn.Module, path: AnyPath, *, adapt: bool = False) -> Adapted:
    """Read weights that `save_superformer` wrote into a model of the same space; positions follow its image size.

    With `adapt=True` the model may have other values than the file's: each value that both have uses what it used in the
    file's model, so that equal subnets compute the same. Names and shapes have to be those of the file: where they are not,
    build the file's model, load it and `vitas.narrow` it.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile. A file of a module around it will do.
        path: File.
        adapt: Whether the model may have other values.

    Returns:
        `new` and `gone`, name -> values: those that only the model has, which the weights were not trained with and whose
        channels are chosen as in `vitas.widen`, and those that only the file has. Both are empty for equal spaces.

    Raises:
        FileError: a file that is missing, cut short or of another version; another space; a tensor's name, shape or type
            that does not fit; with `adapt` what of the space cannot be kept. The model is then unchanged.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.save_superformer(model, "model.safetensors")
        >>> again = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> changes = vitas.load_superformer(again, "model.safetensors")
        >>> changes.new, changes.gone
        ({}, {})
    """
    check_flags(adapt=adapt)
    whole, path = unwrap(model), as_path(path)
    own, inner = _searchable_part(whole)
    refuse_meta(whole, f"{path}")
    metadata = read_metadata(path)
    if metadata.get("format") != SUPERFORMER or metadata.get("version") != str(VERSION):
        raise FileError(f"{path}: expected format {SUPERFORMER!r} version {VERSION}, got {shown(metadata.get('format'))}")
    if "part" not in metadata:  # an older file, which is read by the very module that was written
        inner = whole
    at = metadata.get("part", own)
    check(len(at) <= LONGEST_NAME, f"{path}: part", f"at most {LONGEST_NAME} characters", len(at))
    if at != own and own and not at.endswith(f".{own}"):
        raise FileError(
            f"{path}: written of {shown(at, 40)}, here is {shown(own, 40)}; load it into the part that was written"
        )
    below = at[: len(at) - len(own)] if own or not at else f"{at}."  # where the names of this model begin in the file
    with all_or_nothing(search_space(inner).choices.values()):
        adapted = Adapted({}, {})
        if adapt:
            adapted = _adapted(whole, inner, metadata, path, below)
        else:
            _check_space(inner, metadata, path)
        tensors = _fitting_tensors(whole, inner, own, metadata, path, below)
        _check_fixed(whole, metadata, path, below)
        if not adapt:
            _check_derived(whole, metadata, path, below)
        whole.load_state_dict(tensors)
    return adapted


def _fitting_tensors(
    whole: nn.Module, inner: Any, own: str, metadata: Mapping[str, str], path: Path, below: str
) -> dict[str, Tensor]:
    """Return the tensors of a file for a model, of which `inner` at `own` holds the choices; positions as its images want.

    Raises:
        FileError: names, shapes or types that do not fit.
    """
    state = whole.state_dict()
    old, new = read_json(metadata.get("img_size", "null"), path), _img_size(inner)
    check(old == new or (new is not None and is_size(old)), f"{path}: img_size", "two ints", old)
    if old != new and not hasattr(inner, "patch_size"):
        raise FileError(f"{path}: images of {old} pixels; model.set_input_size({old}) before loading")
    if old != new and isinstance(inner, SizedImages) and searched_size(inner) is not None:
        raise FileError(
            f"{path}: positions for images of {old} pixels, here for {new}; build one whose largest img_size is that"
        )
    start = f"{own}." if own else ""
    tables = {name for name in state if name.removeprefix(start).split(".")[0] == "pos_embed" and old != new}
    wanted = {below + name: (tuple(tensor.shape), dtype_name(tensor)) for name, tensor in state.items()}
    check_header(path, wanted, {below + name for name in tables}, below)
    tensors = {name.removeprefix(below): it for name, it in load_file(path).items() if name.startswith(below)}
    for name in tables:
        patch, width, shape = _patch_of(inner, name.removeprefix(start)), state[name].shape[-1], tuple(tensors[name].shape)
        if len(shape) != 3 or (shape[0], shape[2]) != (1, width):
            raise FileError(f"{path}: {name}: expected shape (1, positions, {width}), got {shown(shape)}")
        tensors[name] = resampled_positions(tensors[name], old, new, patch, inner.num_prefix_tokens, path)
    return tensors


def _check_space(inner: nn.Module, metadata: Mapping[str, str], path: Path) -> None:
    """Compare the space that a file describes with that of a model.

    Raises:
        FileError: they differ.
    """
    saved, own = read_json(metadata.get("space", ""), path), search_space(inner).description()
    check(isinstance(saved, dict), f"{path}: space", "an object", saved)
    if differing := sorted(saved.keys() ^ own.keys()):
        size = read_json(metadata.get("img_size", "null"), path)
        choice = searched_size(inner) if isinstance(inner, SizedImages) else None
        fits = choice is None or size in (None, [max(choice.values)] * 2)  # positions are those of the largest images
        way_out = ""
        if fits and sizes_apart(inner, saved, size).keys() >= set(differing):
            way_out = "; adapt=True keeps what both have"
        raise FileError(f"{path}: another search space; only one of both has the choices {listed(differing, 3)}{way_out}")
    if saved != own:
        differing = [name for name in {**own, **saved} if own.get(name) != saved.get(name)]
        raise FileError(
            f"{path}: another search space, different in {listed(differing, 3)}; adapt=True keeps what both have"
        )


def _adapted(whole: nn.Module, inner: nn.Module, metadata: Mapping[str, str], path: Path, below: str) -> Adapted:
    """Let the values that a model and a file have use what they used in the file's model.

    Raises:
        FileError: what cannot be kept.
    """
    saved = read_json(metadata.get("space", ""), path)
    check(isinstance(saved, dict), f"{path}: space", "an object", saved)
    sizes = sizes_apart(inner, saved, read_json(metadata.get("img_size", "null"), path))
    adapted = adapt_choices(search_space(inner), saved, path, sizes)
    adapt_products(whole, _derived(metadata, path, below), path)
    return adapted


def _check_fixed(model: nn.Module, metadata: Mapping[str, str], path: Path, below: str) -> None:
    """Compare values that are not searched, which neither space nor shapes tell.

    Raises:
        FileError: they differ.
    """
    fixed = read_json(metadata.get("fixed", "{}"), path)
    check(isinstance(fixed, dict), f"{path}: fixed", "an object", fixed)
    for name, value in _fixed_values(model).items():  # equal shapes do not tell how many heads there are
        check(fixed.get(below + name) == value, f"{path}: {below}{name}", str(value), fixed.get(below + name))


def _check_derived(model: nn.Module, metadata: Mapping[str, str], path: Path, below: str) -> None:
    """Compare runs that follow other choices, which neither space nor shapes tell.

    Raises:
        FileError: they differ.
    """
    here, there = _derived_runs(model), _derived(metadata, path, below)
    if there is not None and (differing := [name for name in {**here, **there} if here.get(name) != there.get(name)]):
        raise FileError(f"{path}: widths that follow others use other channels in {listed(differing)}")


def _derived(metadata: Mapping[str, str], path: Path, below: str) -> dict[str, Any] | None:
    """Return the runs of widths that follow others in a file, by the paths of this model; None: an older file."""
    derived = read_json(metadata.get("derived", "null"), path)
    if derived is None:
        return None
    check(isinstance(derived, dict), f"{path}: derived", "an object", derived)
    return {name.removeprefix(below): runs for name, runs in derived.items() if name.startswith(below)}


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
    embed = getattr(model, "patch_embed", None)
    size = largest_size(embed) if isinstance(embed, SizedImages) else getattr(embed, "img_size", None)
    return list(size) if size is not None else None


def _patch_of(model: nn.Module, table: str) -> int:
    _, _, patch = table.partition(".")
    return int(patch) if patch else model.patch_size.largest  # type: ignore[union-attr, return-value]

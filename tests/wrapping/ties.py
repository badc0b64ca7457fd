"""What must follow what in a model, read off one run in which every size is a symbol: for authors of records.

    python -m tests.wrapping.ties vit_tiny_patch16_224 img_size=32 depth=2 [--all]

prints a first record for each class of the model that has none (with --all for each class): the axes of its parameters and
its attributes, in letters that say which sizes are one. It knows sizes only: the order of factors inside an axis, `3 h d` or
`h e`, is a person's to write and `check_records`'s to find; `?` stands where sizes add up. It uses private parts of torch
and takes seconds a model, so no part of the library uses it. What it holds at its size, positions and tuples of sizes,
pins what it meets: heads where a tuple names their number.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import sympy
import torch
from torch import Tensor, nn
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

KEPT = """
window_size window_area ws sr_ratio num_prefix_tokens num_reg_tokens num_classes in_chans patch_size img_size grid_size
num_patches stride kernel_size padding dilation groups shift_size p input_resolution num_tokens depth num_stages num_layers
num_relative_distance pos_embed_grid_size merge_size
"""
"""Attributes of positions, strides, classes and blocks, which do not follow widths, heads or hidden sizes."""

LETTERS = {"num_heads": "h", "heads": "h", "head_dim": "d", "dim_head": "d", "fc1": "m"}
"""The usual letters of attributes, and of the first axis of layers."""


class Place(NamedTuple):
    """An axis of a parameter, or an attribute (axis None), of the module at a path, and its size."""

    path: str
    name: str
    axis: int | None
    size: int

    def __str__(self) -> str:
        axis = "" if self.axis is None else f" axis {self.axis}"
        return f"{self.path}.{self.name}{axis}".lstrip(".")

    def size_in(self, model: nn.Module) -> int:
        """Return the size of the same place in another model."""
        found = getattr(model.get_submodule(self.path), self.name)
        if isinstance(found, tuple):
            return int(found[0])
        return int(found if self.axis is None else found.shape[self.axis])


class Ties(NamedTuple):
    """The place of each symbol, what each is in terms of free ones, and the equations (both sides) that remain."""

    places: dict[sympy.Symbol, Place]
    values: dict[sympy.Symbol, sympy.Expr]
    equations: list[tuple[sympy.Expr, sympy.Expr]]

    def broken_in(self, model: nn.Module) -> Iterator[str]:
        """Yield what does not hold for the sizes of another model, such as a subnet's export.

        Parts of another class than the places' own have ties of their own: they are passed over.
        """
        sizes = {}
        for symbol, place in self.places.items():
            try:
                sizes[symbol] = place.size_in(model)
            except AttributeError:
                continue
        for left, right in (*self.values.items(), *self.equations):
            symbols = left.free_symbols | right.free_symbols
            if symbols <= sizes.keys() and left.subs(sizes) != right.subs(sizes):
                where = {str(symbol): f"{self.places[symbol]} ({sizes[symbol]})" for symbol in symbols}
                yield f"{left} = {right} with {where}"


def ties_of(model: nn.Module, image: Tensor) -> Ties:
    """Run a model once on tensors without memory, a symbol for each size that may follow a choice.

    Args:
        model: The model; left as it is.
        image: Its input.
    """
    env = ShapeEnv(duck_shape=False, specialize_zero_one=True)
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True, static_shapes=False)
    places: dict[sympy.Symbol, Place] = {}
    fake, before = _faked(model, mode, places), []
    for path, module in model.named_modules():
        own = vars(module)
        for name, value in list(own.items()):
            if name.startswith("_") or name in KEPT.split() or isinstance(value, bool):
                continue
            if (isinstance(value, int) and value > 1) or name == "normalized_shape":
                before.append((own, name, value))
                sizes = value if isinstance(value, tuple) else (value,)
                new = tuple(_symbol(env, places, Place(path, name, None, size)) for size in sizes)
                own[name] = new if isinstance(value, tuple) else new[0]
    try:
        with mode, torch.no_grad():
            torch.func.functional_call(model, fake, (mode.from_tensor(image, static_shapes=True),))
    finally:
        for own, name, value in before:
            own[name] = value
    equal = [env.replace(guard.expr) for guard in env.guards if isinstance(guard.expr, sympy.Eq)]
    remaining = [(one.lhs, one.rhs) for one in equal if isinstance(one, sympy.Eq)]
    return Ties(places, {symbol: env.replace(symbol) for symbol in places}, remaining)


def _faked(model: nn.Module, mode: FakeTensorMode, places: dict[sympy.Symbol, Place]) -> dict[str, Tensor]:
    """Return the parameters and buffers without memory, the widths of parameters as symbols."""
    fake = {}
    parameters = dict(model.named_parameters())
    for key, tensor in [*parameters.items(), *model.named_buffers()]:
        follows = key in parameters or tensor.ndim == 1  # of buffers biases and statistics
        free = [follows and _may_follow(tensor, axis) for axis in range(tensor.ndim)]
        context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC if one else DimDynamic.STATIC for one in free])
        fake[key] = mode.from_tensor(tensor.detach(), symbolic_context=context, source=LocalSource(key))
        path, _, name = key.rpartition(".")
        for axis, length in enumerate(fake[key].shape):
            if isinstance(length, torch.SymInt):
                places[length.node.expr] = Place(path, name, axis, tensor.shape[axis])
    return fake


def _may_follow(tensor: Tensor, axis: int) -> bool:
    """Say whether an axis of a parameter may be a width: those of kernels and of positions are not."""
    if tensor.shape[axis] < 2 or not tensor.is_floating_point():
        return False
    return tensor.ndim < 3 or (axis < 2 if tensor.ndim >= 4 else axis == 2 or tensor.shape[0] > 1)


def _symbol(env: ShapeEnv, places: dict[sympy.Symbol, Place], place: Place) -> Any:
    source = LocalSource(f"{place.path}.{place.name}")
    symbol = env.create_symbol(place.size, source=source, dynamic_dim=DimDynamic.DYNAMIC)
    places[symbol] = place
    return env.create_symintnode(symbol, hint=place.size, source=source)


# -- a first record ----------------------------------------------------------------------------------------------------


def drafts(model: nn.Module, ties: Ties) -> dict[type[nn.Module], str]:
    """Return a first record for each class that holds parameters or layers, from its first instance."""
    letters = _letters(ties)
    owners = {name: _owner(model, name) for name, _ in model.named_modules()}
    entries: dict[str, dict[str, list[str]]] = {}
    for symbol, place in ties.places.items():
        owner = owners[place.path]
        word, own = _word(ties.values[symbol], letters), entries.setdefault(owner, {})
        layer = place.path.removeprefix(owner).lstrip(".")
        if place.axis is None and not layer:
            own[f"{place.name} ="] = [word]
        elif place.axis is not None and place.name != "bias":
            whole = getattr(model.get_submodule(place.path), place.name).ndim
            own.setdefault(f"{layer or place.name}:", ["_"] * whole)[place.axis] = word
    found: dict[type[nn.Module], str] = {}
    for path, own in entries.items():
        found.setdefault(
            type(model.get_submodule(path)), "; ".join(f"{name} {', '.join(axes)}" for name, axes in own.items())
        )
    return {kind: record for kind, record in found.items() if record}


def _owner(model: nn.Module, path: str) -> str:
    """Return the path of the module whose record names what a module holds: layers and lists have none of their own."""
    while path:
        part = model.get_submodule(path)
        layer = not any(part.children()) and set(part._parameters) <= {"weight", "bias", "gamma"}
        if not layer and not type(part).__module__.startswith("torch."):
            return path
        path = path.rpartition(".")[0]
    return path


def _letters(ties: Ties) -> dict[sympy.Symbol, str]:
    """Return a letter for each free symbol: w for the one that stands in most places, usual ones, then others."""
    often = Counter(symbol for value in ties.values.values() for symbol in value.free_symbols)
    letters = {symbol: "w" for symbol, _ in often.most_common(1)}
    for symbol, place in ties.places.items():
        usual = LETTERS.get(place.name) or (LETTERS.get(place.path.rpartition(".")[2]) if place.axis == 0 else None)
        value = ties.values[symbol]
        if usual and isinstance(value, sympy.Symbol):
            letters.setdefault(value, usual)
    spare = (f"e{number}" for number in range(len(often)))
    return {**{symbol: next(spare) for symbol in often if symbol not in letters}, **letters}


def _word(value: sympy.Expr, letters: dict[sympy.Symbol, str]) -> str:
    if not value.free_symbols:
        return "_"
    factors = value.as_ordered_factors()
    if not all(factor.is_Integer or factor.is_Symbol for factor in factors):
        return "?"
    return " ".join(str(factor) if factor.is_Integer else letters[factor] for factor in factors)


def main(arguments: list[str]) -> None:
    """Print first records for a model of timm."""
    import timm

    from vitas.wrapping.counted import image_of
    from vitas.wrapping.records import RECORDS
    from vitas.wrapping.slots import name_of

    name, *options = (word for word in arguments if not word.startswith("--"))
    given = {key: ast.literal_eval(value) for key, _, value in (option.partition("=") for option in options)}
    model = timm.create_model(name, **given).eval()
    for kind, record in drafts(model, ties_of(model, torch.zeros(1, *image_of(model)))).items():
        if "--all" in arguments or name_of(kind) not in RECORDS:
            print(f'    "{name_of(kind)}": "{record}",')


if __name__ == "__main__":
    main(sys.argv[1:])

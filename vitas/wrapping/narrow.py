"""Any class narrowed by its record: what its forward pass reads follows the choices.

Only the class of a module changes (`become`, in nn/follow.py): parameters, checkpoint keys, hooks and flags stay, and the
library's own forward code runs. What that code reads as an attribute, `num_heads`, `cls_token`, the gain of a norm, is a
property over a Choice or Dim in a class made for each (class, record). Linear layers and convolutions become those of
`vitas.nn`. An export takes every step back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from vitas.choice import Choice, Dim, compiling, take
from vitas.cost import Cost, cost_of
from vitas.errors import VitasError, shown
from vitas.nn import Elastic
from vitas.nn.kept import TORCHS_OWN, is_data, refuse_hooked, refuse_patches, without_computed
from vitas.nn.layer import Axes, Stack, is_layer, like
from vitas.nn.parts import part_of
from vitas.space import unwrap
from vitas.wrapping.record import Attribute, Axis
from vitas.wrapping.rows import of_transformers, running

M = TypeVar("M", bound=nn.Module)


class Shape(NamedTuple):
    """What a class made here narrows, and how: with these two a pickle finds it again."""

    narrowed: type[nn.Module]
    mixin: type[Narrowed]
    axes: tuple[tuple[str, tuple[Axis, ...]], ...] = ()
    attributes: tuple[tuple[str, Attribute], ...] = ()
    row: str | None = None  # the attribute that holds rows of blocks


class Narrowed(Elastic):
    """What stands first among the bases of every class made here; the class that it narrows stands last.

    `_dims` holds the Dim, Choice or int of each word of the record: "w", "h d"; of stages "w0", "w1" too, and by "w*" and
    "n*" the widths and depths of all stages.
    """

    shape: Shape
    holds: ClassVar[tuple[str, ...]] = ("_dims",)
    """Attributes that the narrowed class does not have."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Attributes that the narrowed class holds as values and that are properties here, in front of the values."""

    words: ClassVar[tuple[str, ...]] = ()
    """Words that its code asks for, beside those of the record."""

    forgets: ClassVar[tuple[str, ...]] = ()
    """Dicts in which the narrowed class keeps what it computed for the next call: they stay empty here."""

    each_head: ClassVar[tuple[str, ...]] = ()
    """Layers that see the heads one by one, so that they cost as much as there are heads."""

    _axes: Mapping[str, tuple[Axis, ...]]
    _dims: dict[str, Any]

    def axes(self) -> Axes:
        """Return the Dim of each axis of the parameters and buffers that the module itself holds; stacks stand apart."""
        own: Axes = dict.fromkeys((*self._parameters, *self._buffers), ())
        dims = self._dims
        for name, axes in self._axes.items():
            own[name] = tuple(
                None if not axis.letters else dims[axis.word] if axis.stacks == 1 else Stack(axis.stacks, dims[axis.word])
                for axis in axes
            )
        return own

    def stored(self, name: str) -> Tensor | None:
        """Return a parameter or buffer as it is stored, of full size."""
        parameter = self._parameters.get(name)
        return self._buffers.get(name) if parameter is None else parameter

    def cut(self, *names: str) -> dict[str, Tensor]:
        """Return the parts in use of parameters and buffers; nothing else slices."""
        dims, weights, stacked = self._dims, {}, {}
        for name in names:
            tensor = self.stored(name)
            if tensor is None:
                continue
            axes = self._axes[name]
            if any(axis.stacks > 1 for axis in axes):
                stacked[name] = axes
                split = [
                    (n,) if a.stacks == 1 else (a.stacks, n // a.stacks) for a, n in zip(axes, tensor.shape, strict=True)
                ]
                of = [(_dim(dims, axis),) if axis.stacks == 1 else (None, _dim(dims, axis)) for axis in axes]
                weights[name] = (tensor.view([n for part in split for n in part]), *(dim for part in of for dim in part))
            else:
                weights[name] = (tensor, *(_dim(dims, axis) for axis in axes))
        parts = take(**weights)
        for name, axes in stacked.items():
            for number, axis in enumerate(axes):
                if axis.stacks > 1:
                    parts[name] = parts[name].flatten(number, number + 1)
        return parts

    def active_weights(self) -> dict[str, Tensor]:
        """Return the part in use of each weight of which an axis is cut."""
        return self.cut(*self._axes)

    @classmethod
    def additions(cls, narrowed: type[nn.Module]) -> dict[str, Any]:
        """Return what else the class that narrows `narrowed` has."""
        return {}

    def cost(self, tokens: Cost) -> Cost:
        """Return what the children cost; norms and scaling are listed as not counted."""
        return sum((cost_of(child, tokens).under(name) for name, child in self.named_children()), Cost())

    def export(self) -> nn.Module:
        """Return a module of the narrowed class with the values, and its own copy of the weights, of the active subnet."""
        return rebuilt(self, type(self).shape.narrowed)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but none that follows the choices.

        Raises:
            VitasError: another value for an attribute that follows, or other blocks.
        """
        if name == type(self).shape.row and isinstance(value, nn.Module):
            raise VitasError(f"{name}: which blocks run is the choice of a subnet; export one and change that")
        stored = self.stored(name) if name in self._axes and isinstance(value, Tensor) else None
        if stored is not None:
            fits = value.ndim == stored.ndim and all(
                not axis.letters or own == new
                for axis, own, new in zip(self._axes[name], stored.shape, value.shape, strict=True)
            )
            if not fits:
                wanted = tuple("any" if not a.letters else n for a, n in zip(self._axes[name], stored.shape, strict=True))
                raise VitasError(f"{name}: expected the shape {wanted} of the whole model, got {tuple(value.shape)}")
        if name in self.reads:
            at = next((own.at for own_name, own in type(self).shape.attributes if own_name == name), None)
            if at is not None and value[at] == getattr(self, name)[at]:
                vars(self)[name] = value
            elif value != getattr(self, name):
                raise VitasError(f"{name} follows the choices of the model and cannot be set, got {shown(value)}")
            return
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """Return the choices, by the words of the record."""
        return ", ".join(f"{word}={dim.brief()}" for word, dim in self._dims.items() if _searched(dim))

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise VitasError(
            "use DistributedDataParallel: nn.DataParallel sets tensors in place of parameters, which here follow"
        )

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Let copies and pickles find the class by what it narrows and how."""
        return _blank, tuple(type(self).shape), self.__getstate__()  # type: ignore[no-untyped-call]


def _searched(dim: Any) -> bool:
    return isinstance(dim, Choice) and not dim.fixed


def _dim(dims: Mapping[str, Any], axis: Axis) -> Dim | None:
    return dims[axis.word] if axis.letters else None


def weight_cost(layer: Any, positions: int) -> Cost:
    """Return what `positions` products with the weight of a layer cost."""
    if not isinstance(layer, Narrowed):
        return cast(Cost, layer.cost(Cost(positions)))
    weights = [name for name, own in layer._parameters.items() if own is not None and own.ndim > 1]
    return sum((layer.count_of(name) for name in weights), Cost()) * positions


def _blank(*shape: Any) -> nn.Module:
    kind = made(Shape(*shape))
    return kind.__new__(kind)


@functools.cache
def made(shape: Shape) -> type[nn.Module]:
    """Return the class that narrows one class by one record."""
    kept = shape.mixin.reads
    body: dict[str, Any] = {"shape": shape, "_axes": dict(shape.axes), "__module__": __name__}
    body |= {name: _part(name) for name, _ in shape.axes}
    body |= {name: _value(name, attribute) for name, attribute in shape.attributes}
    body["reads"] = (*kept, *(name for name, _ in shape.attributes))
    if shape.row is not None:
        body[shape.row] = _row(shape.row)
    body |= shape.mixin.additions(shape.narrowed)
    name = f"Elastic{shape.narrowed.__name__}"
    if shape.narrowed.__module__.startswith("transformers."):
        name, body = shape.narrowed.__name__, {**body, **of_transformers(shape.narrowed), "export": shape.mixin.export}
    return type(name, (shape.mixin, shape.narrowed), body)


def _part(name: str) -> property:
    """Return a property: the part in use of a parameter or buffer that the module holds; None where it has none.

    It is the parameter itself while all of it is in use, else a part that refuses to be written to.
    """

    def read(self: Narrowed) -> Tensor | None:
        part, stored = self.cut(name).get(name), self.stored(name)
        if part is None or stored is None or compiling():
            return part
        return stored if part.shape == stored.shape else part_of(part, name)  # not `is`: a whole stack is joined anew

    return property(read)


def _value(name: str, attribute: Attribute) -> property:
    """Return a property: the number that an attribute is in the active subnet, or in a norm the shape."""
    (stacks, letters), per, each, at = attribute
    word = " ".join(letters)
    if name == "normalized_shape":
        return property(lambda self: (stacks * self._dims[word].active,))
    if at is not None:
        return property(lambda self: (*vars(self)[name][:at], stacks * self._dims[word].active, *vars(self)[name][at + 1 :]))
    if each:
        return property(lambda self: [stacks * dim.active for dim in self._dims[f"{word}*"]])
    if per is not None:
        return property(lambda self: stacks * self._dims[word].active // getattr(self, per))
    if stacks == 1:
        return property(lambda self: self._dims[word].active)
    return property(lambda self: stacks * self._dims[word].active)


def _row(name: str) -> property:
    """Return a property: the blocks that run."""
    return property(lambda self: running(self, cast(nn.Module, self._modules[name])))


# -- exports -----------------------------------------------------------------------------------------------------------


def plain(module: nn.Module | None) -> nn.Module | None:
    """Return the plain copy of any part: of searchable ones what their subnet is, of others what their class knows.

    Raises:
        ExportError: what was put on a part would change what it computes.
    """
    if module is None:
        return None
    inner = unwrap(module)
    refuse_patches(inner)
    if is_layer(inner):
        return inner.export()
    return rebuilt(inner, type(inner))


def rebuilt(module: nn.Module, kind: type[M]) -> M:
    """Return `module` as one of `kind`, built from what its record and its class know.

    Weights and plain values are copied, parts are exported. What else lies on a module, functions and objects that somebody
    put there, stays behind.

    Raises:
        ExportError: what was put there would change what the module computes.
    """
    refuse_patches(module)
    refuse_hooked(module)
    made: Any = kind.__new__(kind)
    nn.Module.__init__(made)
    own = module if isinstance(module, Narrowed) else None
    reads, holds = ((), ()) if own is None else (own.reads, own.holds)
    for name, value in vars(module).items():
        if name in reads:
            vars(made)[name] = getattr(module, name)
        elif name not in TORCHS_OWN and name not in holds and is_data(data := without_computed(value), kind):
            vars(made)[name] = deepcopy(data)
    cut = {} if own is None else own.active_weights()
    for name, parameter in module._parameters.items():
        weight = None if parameter is None else nn.Parameter(_own(cut.get(name, parameter)), parameter.requires_grad)
        made.register_parameter(name, weight)
    for name, buffer in module._buffers.items():
        own_buffer = None if buffer is None else _own(cut.get(name, buffer))
        made.register_buffer(name, own_buffer, persistent=name not in module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        made.add_module(name, plain(child))
    return like(module, cast(M, made))


def _own(weight: Tensor) -> Tensor:
    return weight.detach().clone(memory_format=torch.contiguous_format)


def narrowed_parts(model: nn.Module) -> Iterator[tuple[str, Narrowed]]:
    """Yield the parts that a record narrowed, with their paths."""
    for path, part in model.named_modules():
        if isinstance(part, Narrowed):
            yield path, part

"""The contract of an elastic layer: what a layer states, and what follows from it.

A layer stands before the plain class that it narrows, `class CyclicLinear(Elastic, nn.Linear)`, and states three things:
    axes()        which Dim counts which axis of the weights that it holds itself;
    forward       what it computes;
    cost(tokens)  its multiply-adds as a Cost.
The weights in use, their number, the order of channels, the printed form and the plain layer of the active subnet follow.
Containers need none of this: `vitas.cost.cost_of`, `vitas.cost.params_of` and `exported` walk through them.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from vitas import plain
from vitas.choice import Choice, Depth, Dim, take
from vitas.cost import Cost, cost_of, params_of, product_of
from vitas.cost.stated import StatesWeights
from vitas.errors import ChoiceError, ExportError, ShapeError, VitasError, listed, shown
from vitas.nn.hooks import made_by_hook
from vitas.nn.kept import TORCHS_OWN, copied, is_data, refuse_patches, without_computed
from vitas.nn.same import ADVICE, differing, note_uses
from vitas.space import held, holders, unwrap

M = TypeVar("M", bound=nn.Module)


class Stack(NamedTuple):
    """An axis of several parts, each as long as `dim` and cut by itself: q, k and v in one weight."""

    parts: int
    dim: Dim

    @property
    def largest(self) -> int:
        """The length of the axis."""
        return self.parts * self.dim.largest

    @property
    def label(self) -> str:
        """What errors call it."""
        return f"{self.parts} x {self.dim.label}"


Axes = dict[str, tuple[Dim | Stack | None, ...]]
"""For each weight that a layer holds, what counts each of its axes; None, and axes left out at the end, stay whole."""


class Elastic(nn.Module):
    """What an elastic layer derives from, in front of the plain class that it narrows by one step.

    A layer states `axes()`, its `forward` and its `cost(tokens)`; all else follows. Where something else is true of a layer,
    it says so by a method of its own.

    Shapes: those of the layer.
    Cost: that of the layer, in MACs.
    Source: ours.

    Attributes:
        needs_tokens: Whether `cost` has to be told the tokens; False for what is given images.
        holds: Attributes, beyond Choices and Dims, that the narrowed class does not have.
    """

    needs_tokens: ClassVar[bool] = True
    holds: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute.

        Raises:
            ChoiceError: a value in the place of a choice, which would leave the search space without it.
        """
        old = vars(self).get(name)
        if isinstance(old, Choice) and not old.fixed and not isinstance(value, Choice):
            raise ChoiceError(f"{name} is searched: activate_subnet runs a value, vitas.narrow(model, fixed=...) leaves one")
        super().__setattr__(name, value)

    def axes(self) -> Axes:
        """Return the Dim of each axis of the parameters and buffers that the layer itself holds, in their order.

        None, and axes left out at the end, stay whole.
        """
        return {}

    def stored(self, name: str) -> Tensor | None:
        """Return a weight as it is stored, of full size: a parameter, or what pruning or a parametrisation makes of one."""
        if (parameter := self._parameters.get(name)) is not None:
            return parameter
        made = made_by_hook(self, name) if self._forward_pre_hooks else None
        return getattr(self, name) if made is None else made

    def active_weights(self) -> dict[str, Tensor]:
        """Return the part in use of each weight, all cut in one step; nothing else slices.

        Raises:
            VitasError: axes that are not those of the weights.
        """
        try:
            return take(**{name: (self.stored(name), *dims) for name, dims in self.axes().items()})
        except (AttributeError, IndexError, ShapeError, TypeError):
            checked_axes(self)  # says which axis it is
            raise

    def _using(self) -> dict[str, Choice[Any]]:
        """Return the choices, by attribute, whose values use some channels of the weights or some blocks."""
        dims = [dim.dim if isinstance(dim, Stack) else dim for axes in self.axes().values() for dim in axes]
        choices = {name: choice for name, choice in held(self) if not choice.fixed}
        return {name: choice for name, choice in choices.items() if isinstance(choice, Depth) or choice in dims}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (metadata := getattr(destination, "_metadata", None)) is not None:
            note_uses(self._using(), metadata.setdefault(prefix[:-1], {}))

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing: Any, extra: Any, errors: list[str]
    ) -> None:
        if new := [error for error in differing(self._using(), local_metadata, prefix) if error not in errors]:
            errors += new if ADVICE in errors else [*new, ADVICE]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, extra, errors)

    def cost(self, tokens: Cost) -> Cost:
        """Return what the children cost; a layer that holds weights itself has to state more.

        Raises:
            VitasError: a layer that does not.
        """
        if self.axes():
            raise VitasError(f"{type(self).__name__} states no cost: give it a method cost(tokens) -> vitas.cost.Cost")
        return sum((cost_of(child, tokens).under(name) for name, child in self.named_children()), Cost())

    def param_count(self) -> Cost:
        """Return the active parameters of the layer and its children."""
        own = (self.count_of(name) for name in checked_axes(self) if name not in self._buffers)
        parts = (params_of(child) for _, child in self._parts() if child is not None)
        return sum((*own, *parts), Cost())

    def count_of(self, name: str) -> Cost:
        """Return how many parameters of a weight are in use; nothing where it is None, as a bias that was not asked for."""
        return math.prod(self._shape(name), start=Cost(0 if self.stored(name) is None else 1))

    def plain_sizes(self) -> dict[str, Any]:
        """Return the attributes by which the narrowed class knows how large it is, in the active subnet.

        Those of torch's Linear, Embedding, LayerNorm and RMSNorm are known; layers that narrow another class state them.

        Raises:
            ExportError: a layer of another class that holds weights and does not state them.
        """
        for kind, sizes in _SIZES.items():
            if isinstance(self, kind):
                return sizes(*(length.active() for length in self._shape("weight")))
        if self.axes():
            raise ExportError(
                f"{type(self).__name__}: give it plain_sizes(), the attributes that say how large its class is"
            )
        return {}

    def export(self) -> nn.Module:
        """Return a layer of the narrowed class, with the settings of this one and its own copy of the active weights.

        No constructor runs, so no random number is drawn.

        Raises:
            ExportError: a layer that narrows no class, or on which a method of its own was put.
            VitasError: axes that are not those of the weights.
        """
        refuse_patches(self)
        made, axes = _empty(type(self)), checked_axes(self)
        left_out = {*TORCHS_OWN, *axes, *self.holds, *(name.partition(".")[0] for name, _ in held(self))}
        for name in vars(self):
            value = None if name in left_out else getattr(self, name)  # where a property stands in front, what that says
            if name not in left_out and is_data(data := without_computed(value), type(made)):
                vars(made)[name] = copy.deepcopy(data)
        vars(made).update(self.plain_sizes())
        weights = self.active_weights()
        for name in axes:
            own = _own(weights[name]) if name in weights else None
            if name in self._buffers:
                made.register_buffer(name, own, name not in self._non_persistent_buffers_set)
            else:
                made.register_parameter(name, None if own is None else nn.Parameter(own, trains(self, name)))
        for name, child in self._parts():
            made.add_module(name, None if child is None else exported(child))
        return like(self, made)

    def extra_repr(self) -> str:
        dims = [dim.dim if isinstance(dim, Stack) else dim for axes in self.axes().values() for dim in axes]
        return ", ".join(dict.fromkeys(dim.brief() for dim in dims if dim is not None)) or super().extra_repr()

    def _parts(self) -> Iterator[tuple[str, nn.Module | None]]:
        """Yield the children but for those that make or hold the weights that `axes` names."""
        weights = {"parametrizations", *self.axes()}
        return ((name, child) for name, child in self._modules.items() if name not in weights)

    def _shape(self, name: str) -> list[Cost]:
        """Return the length in use of each axis of a weight; where there is none, as far as Dims say."""
        weight, dims = self.stored(name), self.axes()[name]
        whole = () if weight is None else weight.shape
        lengths = [*dims, *whole[len(dims) :]]
        return [_length(whole[axis] if length is None else length) for axis, length in enumerate(lengths)]


def _length(length: int | Dim | Stack) -> Cost:
    return product_of(*length) if isinstance(length, Stack) else Cost(length)


_SIZES: dict[type[nn.Module], Callable[..., dict[str, Any]]] = {
    nn.Linear: lambda rows, columns: {"in_features": columns, "out_features": rows},
    nn.Embedding: lambda rows, columns: {"num_embeddings": rows, "embedding_dim": columns},
    nn.LayerNorm: lambda *shape: {"normalized_shape": shape},
    nn.RMSNorm: lambda *shape: {"normalized_shape": shape},
}


@runtime_checkable
class Layer(Protocol):
    """What the library asks of a layer: `Elastic` derives it, a layer without that base states all of it."""

    def active_weights(self) -> dict[str, Tensor]: ...

    def param_count(self) -> Cost: ...

    def export(self) -> nn.Module: ...


def is_layer(module: nn.Module) -> TypeGuard[Layer]:
    """Say whether the class of a module is a layer's; a wrapper that passes on what it is asked for is none itself."""
    return issubclass(type(module), Layer)


def checked_axes(layer: Elastic) -> Axes:
    """Return the axes of a layer after comparing them with the weights that it holds.

    Raises:
        VitasError: a weight that it does not hold, or a parameter that is left out; an axis that is neither a Dim nor None.
        ShapeError: an axis of another length than its Dim.
    """
    axes, said = layer.axes(), f"{type(layer).__name__}.axes()"
    own = [*layer._parameters, *layer._buffers]
    if not isinstance(axes, Mapping):
        raise VitasError(f"{said}: expected a dict such as {{'weight': (out_dim, in_dim)}}, got {shown(axes)}")
    for name, dims in axes.items():
        weight = _stored(layer, name, f"{said}: there is no weight {shown(name)}; the layer holds {listed(own) or 'none'}")
        if not isinstance(dims, tuple):
            raise VitasError(f"{said}: expected for {name} a tuple with an entry for each axis, got {shown(dims)}")
        for axis, dim in enumerate(dims):
            _check_axis(f"{said}: axis {axis} of {name}", weight, axis, dim)
    made_of = {f"{name}_{of}" for name in axes for of in ("orig", "mask", "u", "v", "g")}  # by pruning and weight norms
    for name in layer._parameters:
        if name not in axes and name not in made_of:
            raise VitasError(f"{said} leaves out {name}: name every parameter; None stands for an axis that stays whole")
    return axes


def _stored(layer: Elastic, name: str, otherwise: str) -> Tensor | None:
    try:
        weight = layer.stored(name)
    except AttributeError:
        raise VitasError(otherwise) from None
    if weight is not None and not isinstance(weight, Tensor):
        raise VitasError(otherwise)
    return weight


def _check_axis(what: str, weight: Tensor | None, axis: int, dim: object) -> None:
    if dim is not None and not isinstance(dim, (Dim, Stack)):
        raise VitasError(f"{what}: expected a Dim, or None to leave it whole, got {shown(dim)}")
    if weight is None:
        return
    if axis >= weight.ndim:
        raise ShapeError(f"{what}: expected at most {weight.ndim} axes, for shape {tuple(weight.shape)}")
    if dim is not None and weight.shape[axis] != dim.largest:
        raise ShapeError(f"{what}: expected {dim.largest} channels, as {dim.label} has, got shape {tuple(weight.shape)}")


def _empty(kind: type[Elastic]) -> nn.Module:
    """Return a module without contents of the class that a layer narrows: the one that `Elastic` stands in front of."""
    narrowed: Any = kind.__mro__[kind.__mro__.index(Elastic) + 1]
    if narrowed is nn.Module:
        raise ExportError(f"{kind.__name__} narrows no class: put a plain one behind Elastic, or give it an export()")
    made: nn.Module = narrowed.__new__(narrowed)
    nn.Module.__init__(made)
    return made


def exported(module: M) -> nn.Module:
    """Return a copy of `module` in which every elastic layer is its plain export and every Choice its active value.

    Raises:
        ExportError: a choice that cannot be reached through attributes, lists, tuples or dicts of modules; a class of
            one's own that changes the forward pass of an elastic layer and inherits its `export`.
    """
    replaced: dict[int, Any] = {}
    own_weights: list[Any] = []
    _replace(module, replaced, own_weights)
    result = copied(module, replaced)
    if any(isinstance(made, Choice) for made in replaced.values()):
        raise ExportError(
            "still searchable: a choice is held elsewhere than in attributes of modules or in lists, tuples, dicts there"
        )
    for source in own_weights:
        target = replaced[id(source)]
        for name, weight in source.active_weights().items():
            setattr(target, name, nn.Parameter(_own(weight), getattr(source, name).requires_grad))
    for path, part in result.named_modules():
        if type(part).__module__.startswith("vitas.nn") or any(True for _ in held(part)):
            raise ExportError(f"{path or type(part).__name__} is still searchable: put vitas.nn.Elastic before its class")
    return result


def _replace(module: nn.Module, replaced: dict[int, Any], own_weights: list[Any]) -> None:
    """Note for each elastic layer and each Choice what stands in its place; deepcopy does the rest."""
    inner = unwrap(module)
    refuse_patches(inner)
    if is_layer(inner):
        _refuse_overrides(type(inner))
        replaced[id(module)] = replaced[id(inner)] = inner.export()
        return
    if inner is not module:
        replaced[id(module)] = exported(inner)
        return
    if _exports_alone(type(inner)) and any(holders(inner)):
        name = type(inner).__name__
        raise ExportError(f"{name} has an export() but is not an elastic layer: put vitas.nn.Elastic before its class")
    for _, choice in held(inner):
        replaced[id(choice)] = _fixed(choice)
    if issubclass(type(inner), StatesWeights):
        own_weights.append(inner)
    for child in inner.children():
        _replace(child, replaced, own_weights)


def _exports_alone(kind: type) -> bool:
    """Say whether a class of one's own has an `export()` that wants nothing: as meant for elastic layers."""
    export = vars(kind).get("export")
    return isinstance(export, FunctionType) and export.__code__.co_argcount - len(export.__defaults__ or ()) == 1


def _refuse_overrides(kind: type) -> None:
    """Refuse a user's class that overrides what the narrowed class computes by, which the export that it inherits lacks."""
    order = kind.__mro__
    narrowed = order[order.index(Elastic) + 1 : order.index(nn.Module) + 1] if Elastic in order else (nn.Module,)
    functions = {name for base in narrowed for name, it in vars(base).items() if isinstance(it, (FunctionType, property))}
    functions = functions - vars(nn.Module).keys() - {"reset_parameters"} | {"forward"}
    for base in order:
        if "export" in vars(base) or base.__module__.startswith("vitas.") or _narrows(base, narrowed[0]):
            return
        for name in sorted(functions & vars(base).keys()):
            raise ExportError(f"{base.__name__} overrides {name}() of an elastic layer: give it an export() of its own too")


def _narrows(kind: type, narrowed: type) -> bool:
    """Say whether a class itself puts `Elastic` before the class that is narrowed, and so states what the layer computes."""
    layers = (base for base in kind.__bases__ if issubclass(base, Elastic) and issubclass(base, narrowed))
    return issubclass(kind, Elastic) and all(base is Elastic for base in layers)


def _fixed(choice: Choice[Any]) -> plain.Fixed:
    if isinstance(choice, Dim):
        start, length = choice.run
        return plain.Fixed(length, start, choice.largest)
    return plain.Fixed(choice.active)


def _own(weight: Tensor) -> Tensor:
    return weight.detach().clone(memory_format=torch.contiguous_format)


def trains(layer: nn.Module, name: str) -> bool:
    """Say whether a weight of a layer is trained.

    Under a parametrisation the parameter is found inside; pruning and old ones leave others, of other names.
    """
    if (parameter := layer._parameters.get(name)) is not None:
        return parameter.requires_grad
    flags = {key: parameter.requires_grad for key, parameter in layer.named_parameters()}
    return any([flag for key, flag in flags.items() if name in key.split(".")] or flags.values())


def filled(layer: nn.Module, empty: M, weights: Mapping[str, Tensor]) -> M:
    """Return `empty`, a plain layer made on the meta device, with copies of `weights` and the training flags of `layer`.

    The meta device keeps an export from touching the random number generator.
    """
    empty.load_state_dict({name: _own(weight) for name, weight in weights.items()}, assign=True)
    for name, parameter in empty.named_parameters():
        parameter.requires_grad_(trains(layer, name))
    return like(layer, empty)


def rebuilt(layer: nn.Module, plain_class: type[M], **held: Any) -> M:
    """Return `layer` as the plain class that it narrows: `held` are its attributes, its children are exported."""
    made = plain_class.__new__(plain_class)
    nn.Module.__init__(made)
    for name, child in layer._modules.items():
        made.register_module(name, None if child is None else exported(child))
    for name, value in held.items():
        setattr(made, name, value)
    return like(layer, made)


def like(source: nn.Module, target: M) -> M:
    """Return `target` in the training mode of `source`, its children as they are."""
    target.training = source.training
    return target

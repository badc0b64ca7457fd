"""From records to what each part of a model becomes; nothing is changed before all of it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitas.choice import Choice, Dim, as_dim
from vitas.errors import VitasError, WrapError, brief
from vitas.nn import CyclicLinear, ElasticConv2d
from vitas.nn.follow import become
from vitas.nn.kept import on_meta
from vitas.nn.norm import ElasticLayerNorm
from vitas.nn.stacked import StackedLinear
from vitas.space import BASE_LAYER, holders, search_space
from vitas.wrapping.attention import FORWARDS
from vitas.wrapping.counted import image_of
from vitas.wrapping.layers import BATCH_NORMS, LAYERS, ElasticBatchNorm
from vitas.wrapping.narrow import Narrowed, Shape, made
from vitas.wrapping.record import Attribute, Axis, Record, part_at, record_of, sizes_of, weight_of
from vitas.wrapping.slots import name_of

Letters = dict[str, Any]
"""What each letter, or product of letters, is: a Dim, a Choice, or the int of a size that stays."""

Settle = Callable[[str, str, int, int, int], Dim]
"""(letter, path of the module, size, stacks, channels of a head) -> the Dim of heads or of a hidden width."""

_WHOLE = Axis(1, ())
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Step(NamedTuple):
    """A module, the class that it becomes, and what it then holds beside what it has."""

    module: nn.Module
    kind: type[nn.Module]
    held: dict[str, Any]


class Plan:
    """What each part of a model becomes.

    Args:
        records: The line of each class, by its full name.
    """

    def __init__(self, records: Mapping[str, str]) -> None:
        self.records = records
        self.steps: list[Step] = []
        self.done: set[int] = set()  # modules, by identity
        self.named: set[int] = set()  # parameters, by identity

    def record_of(self, module: nn.Module) -> Record | None:
        """Return the record of a module's class."""
        text = self.records.get(name_of(type(module)))
        return None if text is None else record_of(text, module)

    def visit(
        self,
        module: nn.Module,
        path: str,
        letters: Letters,
        settle: Settle,
        mixin: type[Narrowed] = Narrowed,
        **held: Any,
    ) -> None:
        """Plan what a module and all inside it become.

        Args:
            module: The module.
            path: Where it stands.
            letters: What the letters of the stage are.
            settle: Makes the Dims of heads and hidden widths.
            mixin: What stands first among the bases of its class.
            held: What it holds beyond what its record says.
        """
        if id(module) in self.done:
            return
        self.done.add(id(module))
        record = self.record_of(module)
        row = held.pop("row", None)
        mixin = (FORWARDS | LAYERS).get(name_of(type(module)), mixin)
        if record is not None or mixin is not Narrowed or row is not None:
            own = dict(letters)
            self._narrow(module, path, own, settle, record or Record({}, {}, None, (), ()), mixin, row, held)
            letters = {**letters, **({"h": own["h"]} if "h" in own else {})}
        for name, child in module._modules.items():
            if child is not None:
                self.visit(child, f"{path}.{name}" if path else name, letters, settle)

    def _narrow(
        self,
        module: nn.Module,
        path: str,
        letters: Letters,
        settle: Settle,
        record: Record,
        mixin: type[Narrowed],
        row: str | None,
        held: dict[str, Any],
    ) -> None:
        known = {letter: size.largest if isinstance(size, Choice) else size for letter, size in letters.items()}
        sizes = sizes_of(module, record, known)

        def dim(axis: Axis, stacks: int = 1) -> Any:
            """Return what a product of letters is, made when first asked for."""
            if axis.word not in letters:
                parts: list[Any] = [letters.get(letter) for letter in axis.letters]
                for number, letter in enumerate(axis.letters):
                    if parts[number] is None:
                        size = sizes.get(letter, 1)
                        new = settle(letter, path, size, stacks, sizes.get("d", 0)) if letter in ("h", "m") else size
                        parts[number] = letters[letter] = new
                product = parts[0]
                for part in parts[1:]:
                    product = product * part
                letters[axis.word] = product
            return letters[axis.word]

        own: dict[str, tuple[Axis, ...]] = {}
        attributes: dict[str, Attribute] = {}
        others: dict[int, tuple[nn.Module, dict[str, tuple[Axis, ...]], dict[str, Attribute]]] = {}
        for name, what in record.attributes.items():
            owner, _, last = name.rpartition(".")
            at = part_at(module, owner) if owner else module
            if isinstance(at, nn.Module) and last in vars(at):
                (others.setdefault(id(at), (at, {}, {}))[2] if owner else attributes)[last] = what
        for name, axes in record.axes.items():
            found = part_at(module, name)
            if isinstance(found, nn.Module) and id(found) not in self.done:
                self.done.add(id(found))
                self.leaf(found, axes, dim)
            elif isinstance(found, Tensor):
                self.named.add(id(found))
                owner, _, last = name.rpartition(".")
                at = part_at(module, owner) if owner else None
                if isinstance(at, nn.Module):
                    others.setdefault(id(at), (at, {}, {}))[1][last] = axes
                else:
                    own[name] = axes
        for owner_module, its, follow in others.values():
            self.done.add(id(owner_module))
            self._step(owner_module, Narrowed, its, follow, None, dim, {})
        self._step(module, mixin, own, attributes, row, dim, held)
        for name in record.whole:
            if isinstance(part := module if name == "." else part_at(module, name), nn.Module):
                self.named |= {id(parameter) for parameter in part.parameters()}
                self.done |= {id(inner) for inner in part.modules()}

    def _step(
        self,
        module: nn.Module,
        mixin: type[Narrowed],
        axes: Mapping[str, tuple[Axis, ...]],
        attributes: Mapping[str, Any],
        row: str | None,
        dim: Callable[..., Any],
        held: dict[str, Any],
    ) -> None:
        dims: Letters = dict(held.pop("_dims", {}))
        kept = []
        for name, several in axes.items():
            fitted = tuple(_fitted(axis, dim, dims) for axis in several)
            if any(axis.letters for axis in fitted):
                kept.append((name, fitted))
        for what in attributes.values():
            if not what.each:
                dims[what.axis.word] = dim(what.axis)
                if isinstance(dims[what.axis.word], int):
                    dims[what.axis.word] = as_dim(dims[what.axis.word], what.axis.word)
        for word in mixin.words:
            dims[word] = dim(Axis(1, (word,)))
        heads = next((dims[w.axis.word] for w in attributes.values() if w.axis.letters == ("h",)), None)
        if heads is not None:
            taken = "heads" in attributes or hasattr(type(module), "heads")
            held["num_heads" if taken else "heads"] = heads
            dims.setdefault("h d", dim(Axis(1, ("h", "d"))))
        held |= {name: {} for name in mixin.forgets}
        shape = Shape(type(module), mixin, tuple(kept), tuple(attributes.items()), row)
        self.steps.append(Step(module, made(shape), {**held, "_dims": dims}))

    def leaf(self, layer: nn.Module, axes: tuple[Axis, ...], dim: Callable[..., Any]) -> None:
        """Plan what a layer becomes of whose weight a record says the axes."""
        if type(layer).__module__.partition(".")[0] not in ("torch", "timm", "transformers") or any(layer.children()):
            self.done.discard(id(layer))
            return  # somebody's own class: nothing is known of it
        tensors = {**layer._parameters, **{name: b for name, b in layer._buffers.items() if b is not None and b.ndim}}
        own = {name: axes[: t.ndim] for name, t in tensors.items() if t is not None}
        if any(name not in ("weight", "bias", "gamma", "lambda1") for name in layer._parameters):
            self.done.discard(id(layer))
            return
        if not tensors and "normalized_shape" not in vars(layer):
            return
        self.named |= {id(parameter) for parameter in layer._parameters.values()}
        weight = weight_of(layer)
        axes = axes if weight is None else axes[: weight.ndim]
        dims: Letters = {}
        fitted = tuple(_fitted(axis, lambda axis, stacks=axis.stacks: dim(axis, stacks), dims) for axis in axes)
        if not any(axis.letters for axis in fitted):
            return
        one = all(axis.stacks == 1 for axis in fitted)
        if type(layer) is nn.Linear and fitted[1].stacks == 1:
            out_dim, in_dim = (_as_dim(axis, dims, n) for axis, n in zip(fitted, layer.weight.shape, strict=True))
            if fitted[0].stacks == 1:
                self.steps.append(Step(layer, CyclicLinear, {"in_dim": in_dim, "out_dim": out_dim}))
            else:
                self.steps.append(
                    Step(layer, StackedLinear, {"in_dim": in_dim, "out_dim": out_dim, "stacks": fitted[0].stacks})
                )
        elif type(layer) is nn.Conv2d and one and (layer.groups == 1 or layer.weight.shape[1] == 1):
            out_dim = _as_dim(fitted[0], dims, layer.out_channels)
            in_dim = out_dim if layer.groups > 1 else _as_dim(fitted[1], dims, layer.in_channels)
            held = {"in_dim": in_dim, "out_dim": out_dim, "depthwise": layer.groups > 1}
            self.steps.append(Step(layer, ElasticConv2d, held))
        elif type(layer) is nn.LayerNorm and one and weight is not None:
            self.steps.append(Step(layer, ElasticLayerNorm, {"dim": dims[fitted[0].word]}))
        else:
            kept = tuple((name, tuple(_fitted(axis, dim, {}) for axis in several)) for name, several in own.items())
            mixin = ElasticBatchNorm if isinstance(layer, BATCH_NORMS) else LAYERS.get(name_of(type(layer)), Narrowed)
            shape = Shape(type(layer), mixin, kept, _attributes_of(layer, fitted))
            self.steps.append(Step(layer, made(shape), {"_dims": dims}))

    def remake(self, module: nn.Module, axes: Mapping[str, tuple[Axis, ...]], letters: Letters) -> None:
        """Plan what layers of torch become that stand where a record names one, and that are not narrowed yet."""
        for name, several in axes.items():
            found = part_at(module, name)
            if isinstance(found, nn.Module) and type(found) in (nn.Linear, nn.Conv2d, nn.LayerNorm):
                self.leaf(found, several, lambda axis, stacks=1: letters.get(axis.word, 1))


def apply(steps: Iterable[Step]) -> None:
    """Let each part become what was planned."""
    for module, kind, held in steps:
        become(module, kind, **held)


def _fitted(axis: Axis, dim: Callable[..., Any], dims: Letters) -> Axis:
    """Return an axis as it is cut: one of which all letters are sizes that stay is left whole; note what its word is."""
    if not axis.letters or isinstance(dim(axis), int):
        return _WHOLE
    dims[axis.word] = dim(axis)
    return axis


def _as_dim(axis: Axis, dims: Letters, size: int) -> Dim:
    return dims[axis.word] if axis.letters else as_dim(size)


def _attributes_of(layer: nn.Module, axes: tuple[Axis, ...]) -> tuple[tuple[str, Any], ...]:
    """Return the attributes in which a layer keeps its own sizes."""
    words = {
        nn.Linear: ("out_features", "in_features"),
        nn.Conv2d: ("out_channels", "in_channels"),
        nn.Embedding: ("num_embeddings", "embedding_dim"),
    }.get(type(layer), ())
    names = {name: axis for name, axis in zip(words, axes, strict=False) if axis.letters}
    names |= {name: axes[0] for name in ("normalized_shape", "num_features") if name in vars(layer) and axes[0].letters}
    return tuple((name, Attribute(axis, None, False)) for name, axis in names.items())


# -- coverage ----------------------------------------------------------------------------------------------------------


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model with adapters such as peft's: they are as wide as the whole layer beside which they run.

    Raises:
        WrapError: with the path of the first.
    """
    for path, part in model.named_modules():
        if BASE_LAYER in part._modules:
            home = type(part).__module__.partition(".")[0]
            raise WrapError(
                f"{type(model).__name__} cannot be wrapped: {path} is an adapter ({home});"
                " merge it first (merge_and_unload), or adapt what export_subnet returns"
            )


def refuse_unnamed(model: nn.Module, plan: Plan) -> None:
    """Refuse a model with a parameter that no record names, or that stands twice.

    Raises:
        WrapError: with the path of the part, and its class.
    """
    of = type(model).__name__
    for path, part in model.named_modules():
        if "forward" in vars(part):
            raise WrapError(f"{of} cannot be wrapped: {path or 'the model'} has a forward of its own")
    first: dict[nn.Parameter, str] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, path) != path:
            raise WrapError(f"{of} cannot be wrapped: {path} and {first[parameter]} are one parameter")
    for path, parameter in model.named_parameters():
        if id(parameter) not in plan.named:
            raise WrapError(f"{of} cannot be wrapped: {_unknown(model, path, plan)}; supported are {supported_parts(plan)}")


def _unknown(model: nn.Module, path: str, plan: Plan) -> str:
    *names, last = path.split(".")
    part, where = model, ""
    for name in names:
        part = part._modules[name]  # type: ignore[assignment]
        where = f"{where}.{name}".lstrip(".")
        own = type(part).__module__.partition(".")[0] not in ("torch", "timm", "transformers", "vitas")
        if own or (plan.record_of(part) is None and any(part.children()) and not isinstance(part, _LISTS)):
            return f"{where} is a {type(part).__name__}"
    if plan.record_of(part) is None and type(part) not in (nn.Linear, nn.Conv2d):
        return f"{where} is a {type(part).__name__}"
    unnamed = [name for name, own in part._parameters.items() if own is not None and id(own) not in plan.named]
    last = next((name for name in unnamed if name not in ("weight", "bias")), last)
    return f"{where or 'the model'} holds {last}"


def supported_parts(plan: Plan) -> str:
    """Return the kinds of parts that records describe, for error messages."""
    names = dict.fromkeys(name.rpartition(".")[2] for name, text in plan.records.items() if "rows " not in text)
    return ", ".join(names)


def refuse_unfit(model: nn.Module, plan: Plan) -> None:
    """Run a subnet of odd sizes, none of them the largest, without memory, and refuse records by which it does not run.

    Raises:
        WrapError: with what the library's code says.
    """
    twin, steps = on_meta((model, plan.steps), model)
    apply(steps)
    try:
        image = torch.empty(1, *image_of(twin), device="meta", dtype=next(twin.parameters()).dtype)
    except VitasError:
        return  # a model that does not know the size of its images
    if any(holders(twin)):
        space = search_space(twin)
        narrower = space.restrict(only={name: choice.values[:-1] for name, choice in space.choices.items()})
        space.activate(narrower.sample(torch.Generator().manual_seed(0)))
    try:
        with torch.no_grad():
            twin.eval()(image)
    except NotImplementedError:
        return  # an operator that torch has no meta kernel for
    except Exception as error:  # whatever the model's own code raises
        if not _runs(model, image):
            size = " x ".join(map(str, image.shape[1:]))
            raise WrapError(
                f"{type(model).__name__} cannot be wrapped: it does not run on {size}, its"
                f' pretrained_cfg["input_size"]; correct that ({brief(error, 40)})'
            ) from error
        raise WrapError(f"{type(model).__name__} cannot be wrapped: a subnet does not run ({brief(error)})") from error


def _runs(model: nn.Module, image: Tensor) -> bool:
    """Say whether a model as it is runs on an image, without memory."""
    try:
        with torch.no_grad():
            on_meta(model, model).eval()(image)
    except Exception:  # whatever the model's own code raises
        return False
    return True

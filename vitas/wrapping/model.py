"""Whole models: their methods that read or write whole parameters or make layers, what they cost, their exports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn

from vitas.choice import Choice, Depth, Dim
from vitas.cost import Cost
from vitas.errors import VitasError
from vitas.nn.follow import refuse_stiff
from vitas.nn.kept import TORCHS_OWN
from vitas.space import State
from vitas.superformer.base import OfImages
from vitas.wrapping.constructor import constructed
from vitas.wrapping.counted import counted_cost, image_of
from vitas.wrapping.narrow import Narrowed
from vitas.wrapping.origin import LEAVE, note_origin
from vitas.wrapping.plan import Plan, apply


class Block(NamedTuple):
    """The choices of a block: (heads, channels of each) and (hidden width, parts of the layer before it), of each layer."""

    heads: tuple[tuple[Dim, int], ...]
    hidden: tuple[tuple[Dim, int], ...]


class Stage(NamedTuple):
    """The choices of a row of blocks; `unit` has to divide its width."""

    prefix: str  # of the names of its choices
    width: Dim
    depth: Depth
    unit: int
    blocks: tuple[Block, ...]


def largest(module: nn.Module) -> AbstractContextManager[None]:
    """Activate the largest value of every choice for the length of a with block."""
    return State.of_module(module).largest().restored()


class Model(Narrowed, OfImages):
    """A model whose width, and of whose blocks heads, MLP width and number, can be searched.

    Attributes and methods of its own class follow the active subnet; checkpoint keys and shapes are the whole model's.

    Shapes: those of the narrowed class.
    Cost: linear layers, convolutions and products of the active subnet in MACs, for an image of the model's size.
    """

    needs_tokens = False  # as of OfImages, behind Narrowed among the bases
    holds = (*Narrowed.holds, "_stages", "_counts", "_remade", "_kept")
    whole = ("reset_classifier", "init_weights", "load_pretrained", "set_input_size", "get_submodule", "get_parameter")
    """Methods that read or write whole parameters, or make layers: they run while the largest subnet is active."""

    _stages: tuple[Stage, ...]
    _counts: dict[Any, Any]
    _remade: dict[str, Any]  # the axes of what the record of the model names
    _kept: frozenset[str]  # attributes that the model had when it was wrapped: of those that came later none is exported

    def image_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of an image.

        Raises:
            VitasError: a model that does not know the size of its images.
        """
        return image_of(self)

    def cost(self, tokens: Cost | None = None) -> Cost:
        """Return the multiply-adds for one image of the model's size; `tokens` is not used.

        Raises:
            VitasError: a model that does not know the size of its images.
        """
        return counted_cost(self, self._counts)

    def export(self) -> nn.Module:
        """Return the library's model of the active subnet, its blocks of different sizes, with weights of its own."""
        plain = super().export()
        for name in vars(plain).keys() - self._kept - TORCHS_OWN:
            del vars(plain)[name]
        note_origin(self, self.taken(), plain, constructed(self)[0])
        return plain

    def taken(self) -> dict[str, Any]:
        """Return the names and active values of the choices that are not at their largest, and which blocks are left out."""
        subnet: dict[str, Any] = {}
        for stage in self._stages:
            depth = stage.depth
            run = [block for slot, block in enumerate(stage.blocks) if depth.runs(slot)]
            inner = (dim for block in run for dim, _ in (*block.heads, *block.hidden))
            choices = (choice for choice in (stage.width, depth, *inner) if choice.active != choice.largest)
            subnet |= {str(choice.name): choice.active for choice in choices}
            if not depth.from_the_end and depth.active < depth.largest:
                left = (slot for slot in range(depth.largest) if not depth.runs(slot))
                subnet[f"{stage.prefix}{LEAVE}"] = sorted(left, key=lambda slot: -depth.turns[slot])
        return subnet

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that a number is not positive, or a width not whole heads of attention pooling."""
        if value < 1:
            return "needs at least 1"
        unit = next((stage.unit for stage in self._stages if stage.width is choice), 1)
        return f"has attention pooling with heads of {unit} channels, which do not divide it" if value % unit else None

    @classmethod
    def additions(cls, narrowed: type[nn.Module]) -> dict[str, Any]:
        """Return the methods that run on the whole model, of those that the narrowed class has."""
        return {name: whole(name, narrowed) for name in cls.whole if callable(getattr(narrowed, name, None))}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a new classifier is searchable like the old one.

        Raises:
            VitasError: another value for an attribute that follows, other blocks, a layer that could not follow.
        """
        axes = vars(self)["_remade"].get(name)
        if axes and isinstance(value, nn.Module) and not isinstance(value, nn.Conv2d):
            width = self._dims.get(axes[-1].word)
            if isinstance(width, Dim) and axes[-1].stacks == 1:
                refuse_stiff(value, width, name)
        super().__setattr__(name, value)
        if isinstance(value, nn.Module):
            remake(self)

    def prune_intermediate_layers(self, *arguments: Any, **named: Any) -> list[int]:
        """Refuse: which blocks run is the choice of a subnet.

        Raises:
            VitasError: always.
        """
        raise VitasError("prune_intermediate_layers: not while the depth can be searched; export a subnet and prune that")


class Features(Narrowed):
    """A part of timm that says what its intermediate features are."""

    reads = ("feature_info",)
    holds = (*Narrowed.holds, "_stages")
    _stages: tuple[Stage, ...]

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels and strides of features in the active subnet, for each stage or for each block that runs."""
        info, stages = vars(self)["feature_info"], self._stages
        if stages[0].prefix:
            stem = len(info) - len(stages)  # entries before the stages
            widths = [*(one["num_chs"] for one in info[:stem]), *(stage.width.active for stage in stages)]
            fixed = [*[True] * stem, *(stage.width.fixed for stage in stages)]
            return [
                dict(one) if same else {**one, "num_chs": width}
                for one, width, same in zip(info, widths, fixed, strict=True)
            ]
        widths = [stage.width.active for stage in stages for _ in range(stage.depth.active)]
        return [{**one, "num_chs": width} for one, width in zip(info, widths, strict=False)]


class TimmModel(Features, Model):
    """A model of timm that says what its intermediate features are."""

    holds = Model.holds


def whole(name: str, narrowed: type[nn.Module]) -> Callable[..., Any]:
    """Return a method of the narrowed class, run while the largest subnet is active."""
    method = getattr(narrowed, name)

    def run(self: Model, *arguments: Any, **named: Any) -> Any:
        with largest(self), torch.no_grad():
            result = method(self, *arguments, **named)
        remake(self)
        return result

    run.__name__, run.__doc__ = name, method.__doc__
    return run


def remake(model: Model) -> None:
    """Make layers searchable that a method of the model, or a user, has put in place of those that the record names."""
    vars(model)["_counts"].clear()  # they were those of other layers
    plan = Plan({})
    plan.remake(model, vars(model)["_remade"], model._dims)
    apply(plan.steps)

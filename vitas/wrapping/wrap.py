"""A model that you already have, made searchable: weights, checkpoint keys and outputs of the largest subnet kept."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from math import ceil, lcm
from typing import Any, NamedTuple

from torch import nn

from vitas.checks import check_flags
from vitas.choice import Choice, Dim
from vitas.errors import ChoiceError, WrapError, is_one_of, one_of, shown
from vitas.sharing import Sharing
from vitas.space import holders, unwrap
from vitas.wrapping.arguments import Values, block_numbers, counts_of, for_each_stage, hidden_of, widths_of
from vitas.wrapping.model import Block, Model, Stage, TimmModel
from vitas.wrapping.narrow import Narrowed, made
from vitas.wrapping.narrow import Shape as _Shape
from vitas.wrapping.order import order_by_magnitude
from vitas.wrapping.plan import Letters, Plan, Step, apply, refuse_unfit, refuse_unnamed, supported_parts
from vitas.wrapping.record import Record, part_at, shape_at
from vitas.wrapping.records import RECORDS
from vitas.wrapping.rows import ElasticDropPath, Row, Rows, Slot, drop_paths, name_of


def wrap(
    timm_model: nn.Module,
    *,
    embed_dim: Values = None,
    num_heads: Values = "auto",
    mlp_ratio: Values = "auto",
    depth: Values = None,
    blocks: Iterable[Any] | None = None,
    sharing: Sharing = "cyclic",
    order: str | None = None,
    inplace: bool = False,
    records: Mapping[type[nn.Module], str] | None = None,
) -> nn.Module:
    """Return a timm Vision Transformer (ViT, DeiT, DeiT-III, distilled or not) or Twins made searchable.

    The weights, the `state_dict` keys and shapes, timm's methods and the outputs of the largest subnet stay what they were.
    Choices are called `embed_dim`, `depth`, `blocks.3.num_heads`, `blocks.3.mlp_dim`; of a Twins `stages.2.embed_dim`,
    `stages.2.depth`, `stages.2.blocks.5.num_heads`... Heads keep their width, so that the width of q, k and v follows their
    number.

    Each choice takes None (fixed), "auto", or several values: numbers, or percentages of the model's own such as "50%"; the
    largest has to be the model's own. "auto" goes in quarters (or thirds, or halves, where four does not divide), for
    `embed_dim` from a half; for `depth` it is every number from a half.

    The stages of a Twins are alike in what they are given, ["50%", "100%"] say, or get an entry each: a list of which some
    entry is None, "auto" or several values, such as [None, "auto", [128, 192, 256], ["50%", "100%"]].

    Source: timm's models, 1.0.23 to 1.0.31; making them searchable is ours.

    Args:
        timm_model: Of exactly timm's `VisionTransformer`, `VisionTransformerDistilled` or `Twins`.
        embed_dim: Widths of the residual stream; of a Twins, of each stage.
        num_heads: Heads of each block.
        mlp_ratio: Hidden widths of each block's MLP, as multiples of the model's (of a Twins, the stage's) own `embed_dim`.
        depth: Numbers of blocks that run; of a Twins, of each stage.
        blocks: Numbers of the blocks whose heads and MLP can be searched; None: all. Of a Twins the numbers in every stage,
            or an entry for each stage.
        sharing: Which channels a width uses, see vitas.sharing.
        order: "magnitude": first permute heads, MLP units and channels so that those with the largest weights serve the most
            widths; the function stays (features before the classifier come in the new order). None: leave them.
        records: For classes of your own the line that says what follows what, see vitas/wrapping/record.py:
            {MyBlock: "qkv: 3 h d, w; proj: w, h d; num_heads = h"}.
        inplace: Whether to make `timm_model` itself searchable, and not a copy.

    Raises:
        WrapError: another model, one on the meta device, one that is searchable already, or one with parts of another kind.
        ChoiceError: values that the model has no weights for, or that leave out its own; percentages outside (0, 100] or of
            which no whole heads or blocks come out; more or fewer entries than there are stages; another word for `sharing`
            or `order`; an `inplace` that is neither True nor False.
        VitasError: timm is not installed.
    """
    check_flags(inplace=inplace)
    if isinstance(timm_model, str):
        raise WrapError(f"expected a model, got the name {shown(timm_model)}; pass timm.create_model({shown(timm_model)})")
    model: Any = unwrap(timm_model)
    if any(holders(model)) or any(isinstance(part, Narrowed) for part in model.modules()):
        raise WrapError(f"{type(model).__name__} is searchable already")
    if not is_one_of(["magnitude", None], order):
        raise ChoiceError(f"order: {one_of(['magnitude', None], order)}")
    known = all_records(records)
    places = places_of(model, Plan(known))
    if any(parameter.is_meta for parameter in model.parameters()):
        raise WrapError("the model is on the meta device and has no weights; build it on a real one")
    arguments = {"embed_dim": embed_dim, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "depth": depth, "blocks": blocks}
    given = [for_each_stage(what, values, len(places)) for what, values in arguments.items()]
    per_stage = [dict(zip(arguments, values, strict=True)) for values in zip(*given, strict=True)]
    plan, stages = planned(model, places, per_stage, sharing, known)
    if order is not None:
        _refuse_order(model, stages, plan)
    refuse_unnamed(model, plan)
    refuse_unfit(model, plan)
    model, steps = (model, plan.steps) if inplace else copy.deepcopy((model, plan.steps))
    apply(steps)
    if order == "magnitude":
        order_by_magnitude(model)
    return model  # type: ignore[no-any-return]


def all_records(own: Mapping[type[nn.Module], str] | None) -> dict[str, str]:
    """Return the records of libraries and those that a user gives, by the full names of classes."""
    return {**RECORDS, **{name_of(kind): line for kind, line in (own or {}).items()}}


class Place(NamedTuple):
    """Where the blocks of a stage stand."""

    owner: nn.Module  # holds the attribute by which the model reads the row
    attribute: str
    parent: nn.Module  # holds the row itself
    name: str
    row: nn.Module
    parts: tuple[nn.Module, ...]  # that belong to the stage


def places_of(model: nn.Module, plan: Plan) -> list[Place]:
    """Return where the blocks of each stage of a model stand.

    Raises:
        WrapError: a class that no record describes, or whose blocks stand in no list.
    """
    record = plan.record_of(model)
    if record is None or record.rows is None:
        supported = ", ".join(name for name, text in plan.records.items() if "rows " in text)
        raise WrapError(f"{type(model).__name__} cannot be wrapped; supported are {supported}, and what records= describes")
    first = part_at(model, record.stages[0]) if record.stages else None
    n = len(first._modules) if isinstance(first, nn.Module) else 1
    return [_place(model, record, stage) for stage in range(n)]


def _place(model: nn.Module, record: Record, stage: int) -> Place:
    assert record.rows is not None
    path = record.rows.replace("*", str(stage))
    owner = parent = row = model
    attribute = ""
    for name in path.split("."):
        parent, row = row, row._modules.get(name)  # type: ignore[assignment]
        if not isinstance(parent, (nn.ModuleList, nn.Sequential)) or not name.isdigit():
            owner, attribute = parent, name
    if type(row) not in (nn.Sequential, nn.ModuleList) or not len(row._modules):
        raise WrapError(f"{type(model).__name__} cannot be wrapped: {path} is a {type(row).__name__}, not a row of blocks")
    lists = [part_at(model, name) for name in record.stages]
    parts = [part_at(one, str(stage)) for one in lists if isinstance(one, nn.Module)]
    return Place(owner, attribute, parent, name, row, tuple(part for part in parts if isinstance(part, nn.Module)))


def planned(
    model: Any,
    places: Sequence[Place],
    given: Sequence[Mapping[str, Any]],
    sharing: Sharing,
    records: Mapping[str, str],
) -> tuple[Plan, tuple[Stage, ...]]:
    """Return what each part of a model becomes, and the choices of each stage.

    Args:
        model: The model.
        places: Where the blocks of each stage stand.
        given: The arguments of `wrap` for each stage.
        sharing: Which channels a width uses.
        records: The record of each class.

    Raises:
        ChoiceError: values that the model has no weights for.
        WrapError: a record that does not fit.
    """
    plan = Plan(records)
    stages = tuple(_stage(plan, place, i if place.parts else None, own, sharing) for i, (place, own) in enumerate(zip(places, given, strict=True)))
    widths = [stage.width for stage in stages]
    letters: Letters = {"w": widths[-1], **{f"w{i}": width for i, width in enumerate(widths)}}
    for i, (place, stage, own) in enumerate(zip(places, stages, given, strict=True)):
        inside: Letters = {"w": widths[i], **({"u": widths[i - 1]} if i else {})}
        blocks = _blocks(plan, place, stage, inside, own, sharing)
        stages = (*stages[:i], stage._replace(blocks=blocks), *stages[i + 1 :])
        plan.done.add(id(place.row))
        plan.steps.append(Step(place.row, Row, {"shift": True, "depth": stage.depth, "container": type(place.row)}))
        for part in place.parts:
            if part is not place.row:
                holds_it = {"row": place.attribute} if part is place.owner else {}
                plan.visit(part, "", inside, _stays, **holds_it)
        if place.parent is not place.owner and id(place.parent) not in plan.done:
            plan.done.add(id(place.parent))
            plan.steps.append(Step(place.parent, Rows, {}))
        if place.owner is not model and id(place.owner) not in plan.done:
            plan.visit(place.owner, "", letters, _stays, row=place.attribute)
    for drop, held in drop_paths([list(place.row.children()) for place in places], [stage.depth for stage in stages]):
        plan.done.add(id(drop))
        plan.steps.append(Step(drop, made(_Shape(type(drop), ElasticDropPath)), held))
    record = plan.record_of(model)
    assert record is not None
    dims: Letters = {**{f"w{i}": width for i, width in enumerate(widths)}, "stages": len(widths)}
    dims |= {f"n{i}": stage.depth for i, stage in enumerate(stages)}
    row = {"row": places[0].attribute} if places[0].owner is model else {}
    held = {"_stages": stages, "_counts": {}, "_remade": dict(record.axes), "_dims": {**dims, "w": widths[-1]}}
    plan.visit(model, "", letters, _stays, TimmModel if "feature_info" in vars(model) else Model, **row, **held)
    return plan, stages


def _stays(letter: str, path: str, size: int, runs: int, head_dim: int) -> Dim:
    """Make the Dim of a size outside the rows of blocks, which is not searched."""
    return Dim([size], name=f"{path}.{letter}")


def _stage(plan: Plan, place: Place, number: int | None, given: Mapping[str, Any], sharing: Sharing) -> Stage:
    prefix = "" if number is None else f"stages.{number}."
    own, unit = _width_of(plan, place), _unit_of(plan, place)
    name, n = f"{prefix}embed_dim", len(place.row._modules)
    width = Dim(widths_of(name, given["embed_dim"], own, unit), sharing=sharing, name=name)
    name = f"{prefix}depth"
    depth = Choice(counts_of(name, given["depth"], n, least=ceil(n / 2)), name=name)
    return Stage(prefix, width, depth, unit, ())


def _width_of(plan: Plan, place: Place) -> int:
    """Return the width of a stage: the size of the first axis that is called w in its blocks."""
    for part in place.row.modules():
        record = plan.record_of(part)
        for name, axes in record.axes.items() if record else ():
            for axis, size in zip(axes, shape_at(part, name), strict=False):
                if axis.letters == ("w",):
                    return size // axis.runs
    first = next(iter(place.row._modules.values()))
    raise WrapError(f"no record says what is w in a {type(first).__name__}; supported are {supported_parts(plan)}")


def _unit_of(plan: Plan, place: Place) -> int:
    """Return what has to divide the width: the channels of heads that are as many as fit into it."""
    unit = 1
    for part in (place.owner, *place.owner.modules()):
        record = plan.record_of(part)
        for what in record.attributes.values() if record else ():
            if what.per is not None and what.axis.letters == ("w",):
                unit = lcm(unit, vars(part)[what.per])
    return unit


def _blocks(
    plan: Plan, place: Place, stage: Stage, letters: Letters, given: Mapping[str, Any], sharing: Sharing
) -> tuple[Block, ...]:
    """Plan what the blocks of a stage become; return their choices."""
    searched = block_numbers(f"{stage.prefix}blocks", given["blocks"], len(place.row._modules))
    blocks, names = [], set()
    for number, block in enumerate(place.row._modules.values()):
        heads: list[tuple[Dim, int]] = []
        hidden: list[tuple[Dim, int]] = []

        def settle(letter: str, path: str, size: int, runs: int, head_dim: int) -> Dim:
            before, word = f"{stage.prefix}blocks.{number}", "num_heads" if letter == "h" else "mlp_dim"
            name = next(n for n in (f"{before}.{word}", f"{before}.{path}.{word}") if n not in names)
            names.add(name)
            values = given["num_heads" if letter == "h" else "mlp_ratio"] if number in searched else None
            own = stage.width.largest / runs
            found = counts_of(name, values, size) if letter == "h" else hidden_of(name, values, size, own)
            dim = Dim(found, sharing=sharing, name=name)
            (heads if letter == "h" else hidden).append((dim, head_dim if letter == "h" else runs))
            return dim

        assert block is not None
        plan.visit(block, "", letters, settle, Slot, _depth=stage.depth)
        blocks.append(Block(tuple(heads), tuple(hidden)))
    return tuple(blocks)


def _refuse_order(model: Any, stages: Sequence[Stage], plan: Plan) -> None:
    if any(stage.unit > 1 and not stage.width.fixed for stage in stages):
        raise ChoiceError("order: attention pooling groups channels into heads, so a searched embed_dim cannot be permuted")
    record = plan.record_of(model)
    classified = any(
        not axes[0].letters and axes[-1].letters == ("w",) and isinstance(part_at(model, name), nn.Linear)
        for name, axes in (record.axes.items() if record else ())
        if len(axes) == 2
    )
    if not stages[-1].width.fixed and not classified:
        raise ChoiceError(
            "order: without a classifier the channels of a searched embed_dim are the outputs; give embed_dim=None"
        )


def sized(value: Any) -> str:
    """Return sizes as a person writes them: "[2, 4]", "3.5"."""
    return f"[{', '.join(map(sized, value))}]" if isinstance(value, list) else f"{value:g}"

"""Where the blocks of a model stand, and what its parts become when its sizes are choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, lcm
from typing import Any, NamedTuple

from torch import nn

from vitas.choice import Depth, Dim
from vitas.errors import ChoiceError, WrapError, shown
from vitas.sharing import Sharing
from vitas.wrapping.arguments import EachBlock, Settled, block_numbers, counts_of, hidden_of, widths_of
from vitas.wrapping.model import Block, Features, Model, Stage, TimmModel
from vitas.wrapping.narrow import Narrowed, Shape, made
from vitas.wrapping.plan import Letters, Plan, Step, supported_parts
from vitas.wrapping.pretrained import Pretrained
from vitas.wrapping.record import Record, part_at, shape_at
from vitas.wrapping.rows import Row, Rows
from vitas.wrapping.slots import ElasticDropPath, Slot, drop_paths


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
        said = f"{type(model).__module__}.{type(model).__name__} cannot be wrapped"
        if type(model).__module__ == "vitas.plain":
            raise WrapError(f"{said}: it is an export; build the superformer that it came from, or a smaller one")
        supported = sum("rows " in text for text in plan.records.values())
        raise WrapError(f"{said}; supported are {supported} classes, listed on vitas.wrap's page, and what records= says")
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


def block_names(places: Sequence[Place]) -> list[list[str]]:
    """Return the names of the blocks of each stage."""
    return [
        [f"{_prefix(place, stage)}blocks.{number}" for number in range(len(place.row._modules))]
        for stage, place in enumerate(places)
    ]


def _prefix(place: Place, stage: int) -> str:
    return f"stages.{stage}." if place.parts else ""


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
    record = plan.record_of(model)
    assert record is not None
    stages = tuple(
        _stage(plan, model, place, i, own, sharing, record.fixed)
        for i, (place, own) in enumerate(zip(places, given, strict=True))
    )
    widths = [stage.width for stage in stages]
    letters: Letters = {"w": widths[-1], **{f"w{i}": width for i, width in enumerate(widths)}}
    for i, (place, stage, own) in enumerate(zip(places, stages, given, strict=True)):
        inside: Letters = {"w": widths[i], **({"u": widths[i - 1]} if i else {})}
        inside |= {"v": widths[i + 1]} if i + 1 < len(widths) else {}
        if "w" in record.fixed:
            inside = {}  # each part finds its own
        blocks = _blocks(plan, place, stage, inside, {**own, "num_heads": _heads(own, record.fixed)}, sharing)
        stages = (*stages[:i], stage._replace(blocks=blocks), *stages[i + 1 :])
        plan.done.add(id(place.row))
        plan.steps.append(Step(place.row, Row, {"shift": True, "depth": stage.depth, "container": type(place.row)}))
        for part in place.parts:
            if part is not place.row:
                holds_it: dict[str, Any] = {"row": place.attribute} if part is place.owner else {}
                plan.visit(part, "", {**inside, "n": stage.depth}, _stays, **holds_it)
        if place.parent is not place.owner and id(place.parent) not in plan.done:
            plan.done.add(id(place.parent))
            plan.steps.append(Step(place.parent, Rows, {}))
        if place.owner is not model and id(place.owner) not in plan.done:
            informed = "feature_info" in vars(place.owner)
            holds: dict[str, Any] = {"_stages": stages} if informed else {}
            plan.visit(place.owner, "", letters, _stays, Features if informed else Narrowed, row=place.attribute, **holds)
    for drop, held in drop_paths([list(place.row.children()) for place in places], [stage.depth for stage in stages]):
        plan.done.add(id(drop))
        plan.steps.append(Step(drop, made(Shape(type(drop), ElasticDropPath)), held))
    # Depths stand in a tuple inside the dict, where no walk finds them: a space names them where their rows stand.
    dims: Letters = {f"w{i}": width for i, width in enumerate(widths)}
    dims |= {"w*": tuple(widths), "n*": tuple(stage.depth for stage in stages)}
    row = {"row": places[0].attribute} if places[0].owner is model else {}
    held = {"_stages": stages, "_counts": {}, "_remade": dict(record.axes), "_dims": {**dims, "w": widths[-1]}}
    held["_kept"] = frozenset(vars(model))
    plan.visit(model, "", letters, _stays, _kind_of(model), **row, **held)
    return plan, stages


def _kind_of(model: nn.Module) -> type[Model]:
    """Return what stands first among the bases of a whole model's class."""
    if type(model).__module__.startswith("transformers."):
        return Pretrained
    return TimmModel if "feature_info" in vars(model) else Model


def _stays(letter: str, path: str, size: int, stacks: int, head_dim: int) -> Dim:
    """Make the Dim of a size outside the rows of blocks, which is not searched."""
    return Dim([size], name=f"{path}.{letter}")


def _stage(
    plan: Plan,
    model: nn.Module,
    place: Place,
    number: int,
    given: Mapping[str, Any],
    sharing: Sharing,
    fixed: Sequence[str],
) -> Stage:
    prefix = _prefix(place, number)
    own = _width_of(plan, place.row, "w" in fixed)
    unit = _unit_of(plan, place.owner if place.parts else model)
    for letter, what in (("w", "embed_dim"), ("n", "depth")):
        if letter in fixed and given[what] is not None:
            raise ChoiceError(f"{what}: in this model it cannot be searched; expected None, got {shown(given[what])}")
    name, n = f"{prefix}embed_dim", len(place.row._modules)
    width = Dim(widths_of(name, given["embed_dim"], own, unit), sharing=sharing, name=name)
    name = f"{prefix}depth"
    leave = () if given["leave"] is None else given["leave"]
    depth = Depth(counts_of(name, given["depth"], n, least=ceil(n / 2)), leave=leave, name=name)
    if leave != () and depth.fixed:
        raise ChoiceError(f"leave: {name} is fixed, so no block leaves; give depth= several values")
    return Stage(prefix, width, depth, unit, ())


def _heads(given: Mapping[str, Any], fixed: Sequence[str]) -> Any:
    """Return what is given for heads: nothing where all blocks share one table for each head; "auto" asks for none then."""
    values = given["num_heads"]
    if "h" not in fixed or isinstance(values, Settled):
        return values
    asked = values.values if isinstance(values, EachBlock) else [values]
    for value in asked:
        if value is not None and not (isinstance(value, str) and value == "auto"):
            raise ChoiceError(
                f'num_heads: in this model they cannot be searched; expected None or "auto", got {shown(value)}'
            )
    return None


def _width_of(plan: Plan, row: nn.Module, fixed: bool) -> int:
    """Return the width of blocks: the size of the first axis that is called w; 1 where there is none and it stays."""
    whole: set[int] = set()
    for part in row.modules():
        record = plan.record_of(part) if id(part) not in whole else None
        for name in record.whole if record else ():
            stays = part if name == "." else part_at(part, name)
            whole |= {id(inner) for inner in stays.modules()} if isinstance(stays, nn.Module) else set()
        for name, axes in record.axes.items() if record else ():
            for axis, size in zip(axes, shape_at(part, name), strict=False):
                if axis.letters == ("w",):
                    return size // axis.stacks
    if fixed:
        return 1
    first = next(iter(row._modules.values()))
    raise WrapError(f"no record says what is w in a {type(first).__name__}; supported are {supported_parts(plan)}")


def _unit_of(plan: Plan, owner: nn.Module) -> int:
    """Return what has to divide the width: the channels of heads that are as many as fit into it."""
    unit = 1
    for part in owner.modules():
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
    blocks = []
    for number, block in enumerate(place.row.children()):
        own = {
            what: (values.values[number] if isinstance(values, EachBlock) else values) if number in searched else None
            for what, values in given.items()
        }
        width = stage.width.largest if "w" in letters else _width_of(plan, block, True)
        choices = _Choices(f"{stage.prefix}blocks.{number}", width, own, sharing, {}, {})
        plan.visit(block, "", letters, choices.settle, Slot, _depth=stage.depth)
        blocks.append(Block(tuple(choices.heads.values()), tuple(choices.hidden.values())))
    return tuple(blocks)


class _Choices(NamedTuple):
    """The choices of a block, made when a record first asks for one: by name the Dim, and what a unit of it is."""

    prefix: str
    width: int
    given: Mapping[str, Any]
    sharing: Sharing
    heads: dict[str, tuple[Dim, int]]
    hidden: dict[str, tuple[Dim, int]]

    def settle(self, letter: str, path: str, size: int, stacks: int, head_dim: int) -> Dim:
        """Return the Dim of the heads, or of the hidden width, of the module at `path` in the block."""
        made, word = (self.heads, "num_heads") if letter == "h" else (self.hidden, "mlp_dim")
        name = f"{self.prefix}.{path}.{word}" if made else f"{self.prefix}.{word}"
        if letter == "h":
            values = counts_of(name, self.given["num_heads"], size)
        else:
            values = hidden_of(name, self.given["mlp_ratio"], size, self.width / stacks)
        dim = Dim(values, sharing=self.sharing, name=name)
        made[name] = (dim, head_dim if letter == "h" else stacks)
        return dim

"""A timm model that you already have, made searchable: weights, checkpoint keys and outputs of the largest subnet kept.

Needs timm (extra `timm`, 1.0.23 or later), which is imported when `wrap` is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import ceil, inf, nextafter
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vitas.choice import Choice, Dim, are_several, plain_number
from vitas.errors import ChoiceError, FileError, VitasError, WrapError, is_one_of, one_of, shown
from vitas.order import order_by_magnitude
from vitas.sample import use_subnet
from vitas.saving import as_path, load_subnet
from vitas.sharing import Sharing
from vitas.subnet import Number
from vitas.superformer.arguments import check_flags, reusable
from vitas.walk import holders, unwrap

Values = Any
"""None, "auto", or several numbers and percentages such as "50%"."""


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
        inplace: Whether to make `timm_model` itself searchable, and not a copy.

    Raises:
        WrapError: another model, one on the meta device, one that is searchable already, or one with parts of another kind.
        ChoiceError: values that the model has no weights for, or that leave out its own; percentages outside (0, 100] or of
            which no whole heads or blocks come out; more or fewer entries than there are stages; another word for `sharing`
            or `order`; an `inplace` that is neither True nor False.
        VitasError: timm is not installed.
    """
    families = _families()
    check_flags(inplace=inplace)
    if isinstance(timm_model, str):
        raise WrapError(f"expected a model, got the name {shown(timm_model)}; pass timm.create_model({shown(timm_model)})")
    model: Any = unwrap(timm_model)
    if any(holders(model)) or isinstance(model, families[0].Narrowed):
        raise WrapError(f"{type(model).__name__} is searchable already")
    family = next((family for family in families if type(model) in family.MODELS), None)
    if family is None:
        supported = ", ".join(f"{kind.__module__}.{kind.__qualname__}" for family in families for kind in family.MODELS)
        raise WrapError(
            f"{type(model).__name__} cannot be wrapped; supported are {supported} (vit_*, deit_*, deit3_*, twins_*)"
        )
    if part := family.unsupported(model):
        raise WrapError(f"{type(model).__name__} cannot be wrapped: {part}; supported are {family.supported_parts()}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise WrapError("the model is on the meta device and has no weights; build it on a real one")
    if not is_one_of(["magnitude", None], order):
        raise ChoiceError(f"order: {one_of(['magnitude', None], order)}")
    stages = family.sizes(model)

    def dim(name: str, values: Sequence[int]) -> Dim:
        return Dim(values, sharing=sharing, name=name)

    def row(own: Any, widths: Values, heads: Values, ratios: Values, depths: Values, numbers: Any) -> Any:
        name, n = f"{own.prefix}embed_dim", len(own.num_heads)
        width = dim(name, _widths(name, widths, own.embed_dim, own.unit))
        name = f"{own.prefix}depth"
        slots = Choice(_counts(name, depths, n, least=ceil(n / 2)), name=name)
        searched = _block_numbers(f"{own.prefix}blocks", numbers, n)
        counts, hidden = [], []
        for i in range(n):
            name = f"{own.prefix}blocks.{i}.num_heads"
            counts.append(dim(name, _counts(name, heads if i in searched else None, own.num_heads[i])))
            name, per_ratio = f"{own.prefix}blocks.{i}.mlp_dim", own.embed_dim / own.stacks[i]
            hidden.append(dim(name, _hidden(name, ratios if i in searched else None, own.mlp_dim[i], per_ratio)))
        return families[0].Row(width, slots, counts, hidden)

    arguments = {"embed_dim": embed_dim, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "depth": depth, "blocks": blocks}
    given = [_for_each_stage(what, values, len(stages)) for what, values in arguments.items()]
    rows = [row(*own) for own in zip(stages, *given, strict=True)]
    if order is not None and any(own.unit > 1 and not row.width.fixed for own, row in zip(stages, rows, strict=True)):
        raise ChoiceError("order: attention pooling groups channels into heads, so a searched embed_dim cannot be permuted")
    if order is not None and not rows[-1].width.fixed and model.num_classes == 0:
        raise ChoiceError(
            "order: without a classifier the channels of a searched embed_dim are the outputs; give embed_dim=None"
        )
    model = model if inplace else copy.deepcopy(model)
    family.narrow(model, rows)
    if order == "magnitude":
        order_by_magnitude(model)
    return model  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ExportReport:
    """Of which class the export of a subnet will be, and whether that class's own constructor can build it.

    Attributes:
        of_class: The class of the export, one of timm's; its blocks are timm's too.
        arguments: Sizes with which the constructor, or `timm.create_model` for the wrapped model, builds the same network;
            None where it cannot. `save_subnet`, `load_subnet` and `register` take the export either way.
        reasons: Why the constructor cannot.
        of_plain: Parts that timm's classes cannot express, and that are of vitas.plain: attention of a Twins whose heads
            are together narrower or wider than the stage.
    """

    of_class: str
    arguments: dict[str, Any] | None
    reasons: tuple[str, ...]
    of_plain: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.arguments is not None:
            return f"{self.of_class}({', '.join(f'{name}={_sized(value)}' for name, value in self.arguments.items())})"
        text = f"{self.of_class}, put together block by block: its constructor cannot, since " + "; ".join(self.reasons)
        if self.of_plain:
            text += f". Of vitas.plain, since timm's have embed_dim channels inside: {', '.join(self.of_plain)}"
        return text


def _sized(value: Any) -> str:
    return f"[{', '.join(map(_sized, value))}]" if isinstance(value, list) else f"{value:g}"


def export_report(model: nn.Module, subnet: Mapping[str, Number] | None = None) -> ExportReport:
    """Say beforehand what `export_subnet` will return for a wrapped model.

    timm's classes express every subnet of a wrapped Vision Transformer, since its blocks are put together one by one; its
    constructor has one size for all blocks, so it builds few of them. Of a wrapped Twins the same holds but for attention
    whose heads do not add up to the width of the stage, which is of vitas.plain inside timm's block.

    Args:
        model: What `wrap` returned, possibly inside DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.

    Raises:
        ChoiceError: not a subnet of the model's space.
        WrapError: a model that `wrap` did not make.
    """
    inner: Any = unwrap(model)
    family = next((f for f in _families() if isinstance(inner, tuple(f.MODELS.values()))), None)
    if family is None:
        raise WrapError(f"{type(inner).__name__}: expected what wrap returned; other exports are of vitas.plain")
    with use_subnet(model, subnet) if subnet is not None else nullcontext():
        stages = family.sizes(inner)
        parts = [f"blocks.{name}" for name, part in inner.blocks.named_modules() if getattr(part, "of_plain", False)]
    reasons = [reason for own in stages for reason in _unlike_constructor(own)]
    kind = type(inner).__bases__[-1]
    arguments = None if reasons else family.arguments([_arguments(own) for own in stages])
    return ExportReport(f"{kind.__module__}.{kind.__qualname__}", arguments, tuple(reasons), tuple(parts))


def _unlike_constructor(own: Any) -> list[str]:
    """Say why timm's constructors, which have one size for all blocks of a stage, cannot build a row of blocks."""
    stage = own.prefix and f"{own.prefix[:-1]}: "
    reasons = [
        f"{stage}{what} differs from block to block: {', '.join(map(str, values))}"
        for what, values in (("num_heads", own.num_heads), ("the hidden width of the MLP", own.mlp_dim))
        if len(set(values)) > 1
    ]
    dim, heads, head_dims = own.embed_dim, own.num_heads[0], set(own.head_dim)
    if len(set(own.num_heads)) == 1 and (dim % heads or head_dims != {dim // heads}):
        width = ", ".join(map(str, head_dims))
        reasons.append(f"{stage}{heads} heads have {width} channels each and not embed_dim / num_heads = {dim / heads:g}")
    if (pooled := own.pool_mlp_dim) not in (None, own.mlp_dim[0]):
        reasons.append(
            f"the MLP of attention pooling keeps its hidden width of {pooled}, those of the blocks have {own.mlp_dim[0]}"
        )
    return reasons


def _arguments(own: Any) -> dict[str, int | float]:
    """Return the sizes of a row of blocks in the words of timm's VisionTransformer."""
    dim, hidden = own.embed_dim, own.mlp_dim[0] * own.stacks[0]
    ratio = hidden / dim
    ratio = ratio if int(dim * ratio) == hidden else nextafter(ratio, inf)  # timm rounds the product down
    return {"embed_dim": dim, "depth": len(own.num_heads), "num_heads": own.num_heads[0], "mlp_ratio": ratio}


def register(folder: str | PathLike[str], name: str | None = None) -> str:
    """Let `timm.create_model(name)` build a network of timm that `save_subnet` wrote; return the name.

    `pretrained=True` loads the weights of the folder, without it they are drawn anew. `num_classes`, `global_pool` and
    `img_size` are taken as timm takes them.

    Args:
        folder: What `save_subnet` wrote from the export of a wrapped model; read again whenever a model is created.
        name: A word of letters, digits and underscores; None: the folder's name.

    Raises:
        ChoiceError: a name that timm has already, or that is none.
        FileError: as `load_subnet`; a network that is not timm's.
        VitasError: timm is not installed.
    """
    _families()
    from timm.models import is_model, model_entrypoint, register_model

    folder = as_path(folder).absolute()
    name = folder.name if name is None else name
    if not isinstance(name, str) or not name.isidentifier():
        raise ChoiceError(f"name: expected a word of letters, digits and underscores, got {shown(name)}")
    if is_model(name) and (known := getattr(model_entrypoint(name), "folder", None)) != folder:
        raise ChoiceError(f"name: {shown(name)} is {'registered for ' + str(known) if known else 'a model of timm'} already")
    if not type(load_subnet(folder)).__module__.startswith("timm."):
        raise FileError(f"{folder}: not a network of timm; load_subnet builds it")

    def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
        return _created(folder, pretrained, options)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.folder = folder  # type: ignore[attr-defined]
    if not is_model(name):
        register_model(entrypoint)
    return name


_TIMMS_OWN = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _created(folder: Path, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Return the network of a folder as `timm.create_model` was asked for it."""
    from vitas.timm_file import draw_weights

    legal = ["num_classes", "global_pool", "img_size"]
    for option in options:
        if option not in (*legal, *_TIMMS_OWN):
            raise ChoiceError(f"{folder.name}: {one_of(legal, option)}; the rest of a saved network is settled")
    model: Any = load_subnet(folder, img_size=options.get("img_size"))
    if not pretrained:
        draw_weights(model)
    classes, pool = options.get("num_classes", model.num_classes), options.get("global_pool")
    if classes != model.num_classes or pool not in (None, model.global_pool):
        model.reset_classifier(classes, pool)
    return model  # type: ignore[no-any-return]


def _families() -> tuple[Any, ...]:
    """Return the files that make the families of timm's models searchable."""
    try:
        from vitas import timm_twins, timm_vit
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "timm":
            raise
        raise VitasError('timm is not installed: pip install "vitas[timm]"') from None
    return timm_vit, timm_twins


# -- values ------------------------------------------------------------------------------------------------------------


def _for_each_stage(what: str, given: Values, n: int) -> list[Values]:
    """Return what each of `n` stages is given: an entry each where some entry is not one value, else all the same."""
    given = reusable(given)
    if n == 1 or not are_several(given):
        return [given] * n
    entries = [reusable(entry) for entry in given]
    if not any(entry is None or _is_several(entry) for entry in entries):
        return [entries] * n
    if len(entries) != n:
        raise ChoiceError(f"{what}: expected one entry for each of the {n} stages, or values for all, got {len(entries)}")
    return entries


def _is_several(value: Values) -> bool:
    return value == "auto" if isinstance(value, str) else are_several(value)


def _counts(name: str, given: Values, own: int, least: int | None = None) -> list[int]:
    """Return numbers of heads or, from `least`, of blocks."""

    def part(percentage: str) -> int:
        count = own * _percent(name, percentage) / 100
        if abs(count - round(count)) > own / 2000 or round(count) < 1:  # "33.3%" of 3 is meant to be 1
            fitting = ", ".join(f"{100 * n / own:.4g}%" for n in range(1, own + 1))
            raise ChoiceError(f"{name}: {shown(percentage)} of {own} is no whole number; these are: {fitting}")
        return round(count)

    auto = _steps(own) if least is None else list(range(least, own + 1))
    return _settled(name, given, own, auto, part, lambda number: number)


def _widths(name: str, given: Values, own: int, unit: int) -> list[int]:
    """Return widths of the residual stream, multiples of `unit`."""
    auto = [width for width in _steps(own) if 2 * width >= own and width % unit == 0]
    widths = _settled(name, given, own, auto, lambda p: round(own * _percent(name, p) / 100), lambda number: number)
    for width in widths:
        if width % unit:
            raise ChoiceError(f"{name}: attention pooling has heads of {unit} channels, which do not divide {width}")
    return widths


def _hidden(name: str, given: Values, own: int, per_ratio: float) -> list[int]:
    """Return hidden widths of an MLP; a number is a multiple of the model's width, as in timm's mlp_ratio."""

    def width(ratio: Any) -> Any:
        if not 0 < plain_number(ratio, name) * per_ratio < own + 1:
            raise ChoiceError(
                f'{name}: expected an mlp_ratio in (0, {own / per_ratio:g}], "auto" or percentages, got {shown(ratio)}'
            )
        return int(ratio * per_ratio)

    return _settled(name, given, own, _steps(own), lambda p: round(own * _percent(name, p) / 100), width)


def _settled(
    name: str, given: Values, own: int, auto: list[int], part: Callable[[str], int], number: Callable[[Any], Any]
) -> list[int]:
    """Return the values in ascending order, the model's own the largest."""
    if given is None:
        return [own]
    if isinstance(given, str) and given == "auto":
        return auto
    several = list(given) if are_several(given) else [given]
    if any(isinstance(value, str) and value == "auto" for value in several):
        raise ChoiceError(f'{name}: "auto" stands for all values and not among them, got {shown(several)}')
    values = [part(value) if isinstance(value, str) else number(value) for value in several]
    for value in values:
        if not _is_count(value, 1, own):
            raise ChoiceError(f'{name}: expected ints in 1..{own}, percentages such as "50%", or "auto", got {shown(value)}')
    if max(values, default=0) != own:
        listed = ", ".join(map(str, sorted(values))) or "nothing"
        raise ChoiceError(f"{name}: the largest has to be the model's own {own}, whose weights all share, got {listed}")
    return sorted(int(value) for value in values)


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(least <= value <= most)


def _percent(name: str, text: str) -> float:
    try:
        percent = float(text.strip().removesuffix("%")) if text.strip().endswith("%") else None
    except ValueError:
        percent = None
    if percent is None or not 0 < percent <= 100:
        raise ChoiceError(f'{name}: expected "auto" or a percentage in (0, 100] such as "50%", got {shown(text)}')
    return percent


def _steps(own: int) -> list[int]:
    """Return equal steps up to `own`: quarters, thirds or halves where they divide it, else rounded quarters."""
    steps = next((n for n in (4, 3, 2) if own % n == 0), 4)
    return sorted({max(1, round(own * i / steps)) for i in range(1, steps + 1)})


def _block_numbers(name: str, blocks: Iterable[Any] | None, n: int) -> set[int]:
    if blocks is None:
        return set(range(n))
    if not are_several(blocks):
        raise ChoiceError(f"{name}: expected several numbers in 0..{n - 1}, got {shown(blocks)}")
    numbers = list(blocks)
    for number in numbers:
        if not _is_count(number, 0, n - 1):
            raise ChoiceError(f"{name}: expected numbers in 0..{n - 1}, got {shown(number)}")
    return {int(number) for number in numbers}

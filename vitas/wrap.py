"""A timm model that you already have, made searchable: weights, checkpoint keys and outputs of the largest subnet kept.

Needs timm (extra `timm`, 1.0.23 or later), which is imported when `wrap` is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from math import ceil, inf, nextafter
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from vitas.choice import MOST_VALUES, Choice, Dim, plain_number
from vitas.errors import ChoiceError, FileError, VitasError, WrapError, is_one_of, one_of, shown
from vitas.order import order_by_magnitude
from vitas.sample import use_subnet
from vitas.saving import load_subnet
from vitas.sharing import Sharing
from vitas.subnet import Number
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
    blocks: Iterable[int] | None = None,
    sharing: Sharing = "cyclic",
    order: str | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Return a timm Vision Transformer (ViT, DeiT, DeiT-III, distilled or not) made searchable.

    The weights, the `state_dict` keys and shapes, timm's methods and the outputs of the largest subnet stay what they were.
    Choices are called `embed_dim`, `depth`, `blocks.3.num_heads`, `blocks.3.mlp_dim`. Heads keep their width, so that the
    width of q, k and v follows their number.

    Each choice takes None (fixed), "auto", or several values: numbers, or percentages of the model's own such as "50%"; the
    largest has to be the model's own. "auto" goes in quarters (or thirds, or halves, where four does not divide), for
    `embed_dim` from a half; for `depth` it is every number from a half.

    Source: timm's models, 1.0.23 to 1.0.31; making them searchable is ours.

    Args:
        timm_model: Of exactly timm's `VisionTransformer` or `VisionTransformerDistilled`.
        embed_dim: Widths of the residual stream.
        num_heads: Heads of each block.
        mlp_ratio: Hidden widths of each block's MLP, as multiples of the model's own `embed_dim`.
        depth: Numbers of blocks that run.
        blocks: Numbers of the blocks whose heads and MLP can be searched; None: all.
        sharing: Which channels a width uses, see vitas.sharing.
        order: "magnitude": first permute heads, MLP units and channels so that those with the largest weights serve the most
            widths; the function stays (features before the classifier come in the new order). None: leave them.
        inplace: Whether to make `timm_model` itself searchable, and not a copy.

    Raises:
        WrapError: another model, one on the meta device, one that is searchable already, or one with parts of another kind.
        ChoiceError: values that the model has no weights for, or that leave out its own; percentages outside (0, 100] or of
            which no whole heads or blocks come out; another word for `sharing` or `order`.
        VitasError: timm is not installed.
    """
    timm_vit = _timm_vit()
    model = unwrap(timm_model)
    if any(holders(model)) or isinstance(model, timm_vit.Narrowed):
        raise WrapError(f"{type(model).__name__} is searchable already")
    if type(model) not in timm_vit.MODELS:
        supported = ", ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in timm_vit.MODELS)
        raise WrapError(f"{type(model).__name__} cannot be wrapped; supported are {supported} (vit_*, deit_*, deit3_*)")
    if part := timm_vit.unsupported(model):
        raise WrapError(f"{type(model).__name__} cannot be wrapped: {part}; supported are {timm_vit.supported_parts()}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise WrapError("the model is on the meta device and has no weights; build it on a real one")
    if not is_one_of(["magnitude", None], order):
        raise ChoiceError(f"order: {one_of(['magnitude', None], order)}")
    sizes = timm_vit.sizes(model)
    searched = _block_numbers(blocks, len(sizes.num_heads))

    def dim(name: str, values: Sequence[int]) -> Dim:
        return Dim(values, sharing=sharing, name=name)

    width = dim("embed_dim", _widths("embed_dim", embed_dim, sizes.embed_dim, sizes.unit))
    slots = Choice(_counts("depth", depth, len(sizes.num_heads)), name="depth")
    heads, hidden = [], []
    for i, (own_heads, own_hidden) in enumerate(zip(sizes.num_heads, sizes.mlp_dim, strict=True)):
        name = f"blocks.{i}.num_heads"
        heads.append(dim(name, _counts(name, num_heads if i in searched else None, own_heads)))
        name, per_ratio = f"blocks.{i}.mlp_dim", sizes.embed_dim / sizes.stacks[i]
        hidden.append(dim(name, _hidden(name, mlp_ratio if i in searched else None, own_hidden, per_ratio)))
    if order is not None and not width.fixed and sizes.unit > 1:
        raise ChoiceError("order: attention pooling groups channels into heads, so a searched embed_dim cannot be permuted")
    if order is not None and not width.fixed and model.num_classes == 0:
        raise ChoiceError(
            "order: without a classifier the channels of a searched embed_dim are the outputs; give embed_dim=None"
        )
    model = model if inplace else copy.deepcopy(model)
    timm_vit.narrow(model, width, slots, heads, hidden)
    if order == "magnitude":
        order_by_magnitude(model)
    return model


@dataclass(frozen=True)
class ExportReport:
    """Of which class the export of a subnet will be, and whether that class's own constructor can build it.

    Attributes:
        of_class: The class of the export, one of timm's; its blocks are timm's too.
        arguments: Sizes with which the constructor, or `timm.create_model` for the wrapped model, builds the same network;
            None where it cannot. `save_subnet`, `load_subnet` and `register` take the export either way.
        reasons: Why the constructor cannot.
    """

    of_class: str
    arguments: dict[str, int | float] | None
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        if self.arguments is not None:
            sizes = ", ".join(f"{name}={value:g}" for name, value in self.arguments.items())
            return f"{self.of_class}({sizes})"
        return f"{self.of_class}, put together block by block: its constructor cannot, since " + "; ".join(self.reasons)


def export_report(model: nn.Module, subnet: Mapping[str, Number] | None = None) -> ExportReport:
    """Say beforehand what `export_subnet` will return for a wrapped model.

    timm's classes express every subnet of a wrapped Vision Transformer, since its blocks are put together one by one; its
    constructor has one size for all blocks, so it builds few of them.

    Args:
        model: What `wrap` returned, possibly inside DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.

    Raises:
        ChoiceError: not a subnet of the model's space.
        WrapError: a model that `wrap` did not make.
    """
    timm_vit = _timm_vit()
    inner: Any = unwrap(model)
    if not isinstance(inner, timm_vit.ElasticVisionTransformer):
        raise WrapError(f"{type(inner).__name__}: expected what wrap returned; other exports are of vitas.plain")
    with use_subnet(model, subnet) if subnet is not None else nullcontext():
        sizes = timm_vit.sizes(inner)
        dim, head_dims = sizes.embed_dim, {block.attn.head_dim for block in inner.blocks}
    reasons = [
        f"{what} differs from block to block: {', '.join(map(str, values))}"
        for what, values in (("num_heads", sizes.num_heads), ("the hidden width of the MLP", sizes.mlp_dim))
        if len(set(values)) > 1
    ]
    heads, hidden, stacks = sizes.num_heads[0], sizes.mlp_dim[0], sizes.stacks[0]
    if len(set(sizes.num_heads)) == 1 and (dim % heads or head_dims != {dim // heads}):
        width = ", ".join(map(str, head_dims))
        reasons.append(f"{heads} heads have {width} channels each and not embed_dim / num_heads = {dim / heads:g}")
    if (pooled := sizes.pool_mlp_dim) not in (None, hidden):
        reasons.append(f"the MLP of attention pooling keeps its hidden width of {pooled}, those of the blocks have {hidden}")
    ratio = hidden * stacks / dim
    ratio = ratio if int(ratio * dim) == hidden * stacks else nextafter(ratio, inf)  # timm rounds the product down
    arguments = {"embed_dim": dim, "depth": len(sizes.num_heads), "num_heads": heads, "mlp_ratio": ratio}
    kind = type(inner).__bases__[-1]
    return ExportReport(f"{kind.__module__}.{kind.__qualname__}", None if reasons else arguments, tuple(reasons))


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
    _timm_vit()
    from timm.models import is_model, model_entrypoint, register_model

    folder = Path(folder).absolute()
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
    legal = ["num_classes", "global_pool", "img_size"]
    for option in options:
        if option not in (*legal, *_TIMMS_OWN):
            raise ChoiceError(f"{folder.name}: {one_of(legal, option)}; the rest of a saved network is settled")
    model: Any = load_subnet(folder, img_size=options.get("img_size"))
    if not pretrained:
        model.init_weights()
    classes, pool = options.get("num_classes", model.num_classes), options.get("global_pool")
    if classes != model.num_classes or pool not in (None, model.global_pool):
        model.reset_classifier(classes, pool)
    return model  # type: ignore[no-any-return]


def _timm_vit() -> Any:
    try:
        from vitas import timm_vit
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "timm":
            raise
        raise VitasError('timm is not installed: pip install "vitas[timm]"') from None
    return timm_vit


# -- values ------------------------------------------------------------------------------------------------------------


def _counts(name: str, given: Values, own: int) -> list[int]:
    """Return numbers of heads or of blocks."""

    def part(percentage: str) -> int:
        count = own * _percent(name, percentage) / 100
        if abs(count - round(count)) > own / 2000 or round(count) < 1:  # "33.3%" of 3 is meant to be 1
            fitting = ", ".join(f"{100 * n / own:.4g}%" for n in range(1, own + 1))
            raise ChoiceError(f"{name}: {percentage} of {own} is no whole number; these are: {fitting}")
        return round(count)

    half = ceil(own / 2) if name == "depth" else 1
    auto = range(half, own + 1) if name == "depth" else _steps(own)
    return _settled(name, given, own, list(auto), part, lambda number: number)


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
    several = islice(given, MOST_VALUES + 1) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
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


def _block_numbers(blocks: Iterable[int] | None, n: int) -> set[int]:
    if blocks is None:
        return set(range(n))
    if isinstance(blocks, (int, str)) or not isinstance(blocks, Iterable):
        raise ChoiceError(f"blocks: expected several numbers in 0..{n - 1}, got {shown(blocks)}")
    numbers = list(islice(blocks, MOST_VALUES + 1))
    for number in numbers:
        if not _is_count(number, 0, n - 1):
            raise ChoiceError(f"blocks: expected numbers in 0..{n - 1}, got {shown(number)}")
    return {int(number) for number in numbers}

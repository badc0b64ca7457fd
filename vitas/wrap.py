"""A timm model that you already have, made searchable: weights, checkpoint keys and outputs of the largest subnet kept.

Needs timm (extra `timm`, 1.0.23 or later), which is imported when `wrap` is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from math import ceil
from typing import Any

from torch import nn

from vitas.choice import Choice, Dim
from vitas.errors import ChoiceError, VitasError, WrapError, one_of
from vitas.order import order_by_magnitude
from vitas.sharing import Sharing
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

    Each choice takes None (fixed), "auto" (steps of a quarter or a third: heads and MLP from the first, `embed_dim` and `depth`
    from a half), or several values: numbers, or percentages of the model's own such as "50%". The largest has to be the
    model's own.

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
            widths; the function stays. None: leave them where they are.
        inplace: Whether to make `timm_model` itself searchable, and not a copy.

    Raises:
        WrapError: another model, one on the meta device, one that is searchable already, or one with parts of another kind.
        ChoiceError: values that the model does not have weights for, or that leave out its own; percentages outside (0, 100];
            another word for `sharing` or `order`.
        VitasError: timm is not installed.
    """
    timm_vit = _timm_vit()
    model = unwrap(timm_model)
    if any(True for _ in holders(model)) or isinstance(model, timm_vit.Narrowed):
        raise WrapError(f"{type(model).__name__} is searchable already")
    if type(model) not in timm_vit.MODELS:
        supported = ", ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in timm_vit.MODELS)
        raise WrapError(f"{type(model).__name__} cannot be wrapped; supported are {supported} (vit_*, deit_*, deit3_*)")
    if part := timm_vit.unsupported(model):
        raise WrapError(f"{type(model).__name__} cannot be wrapped: {part}; supported are {timm_vit.supported_parts()}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise WrapError("the model is on the meta device and has no weights; build it on a real one")
    if order not in (None, "magnitude"):
        raise ChoiceError(f"order: {one_of(['magnitude'], order)}, or None")
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
    if order is not None and sizes.unit > 1 and not width.fixed:
        raise ChoiceError("order: attention pooling groups channels into heads, so a searched embed_dim cannot be permuted")
    model = model if inplace else copy.deepcopy(model)
    timm_vit.narrow(model, width, slots, heads, hidden)
    if order == "magnitude":
        order_by_magnitude(model)
    return model


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
        if abs(count - round(count)) > 1e-9 or round(count) < 1:
            fitting = ", ".join(f"{100 * n / own:g}%" for n in range(1, own + 1))
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
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio * per_ratio < own + 1:
            raise ChoiceError(
                f"{name}: expected an mlp_ratio in (0, {own / per_ratio:g}], \"auto\" or percentages, got {ratio!r}"
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
    several = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    values = [part(value) if isinstance(value, str) else number(value) for value in several]
    for value in values:
        if isinstance(value, bool) or not hasattr(value, "__index__") or not 1 <= value <= own:
            raise ChoiceError(f'{name}: expected ints in 1..{own}, percentages such as "50%", or "auto", got {value!r}')
    if max(values, default=0) != own:
        listed = ", ".join(map(str, sorted(values))) or "nothing"
        raise ChoiceError(f"{name}: the largest has to be the model's own {own}, whose weights all share, got {listed}")
    return sorted(int(value) for value in values)


def _percent(name: str, text: str) -> float:
    try:
        percent = float(text.strip().removesuffix("%")) if text.strip().endswith("%") else None
    except ValueError:
        percent = None
    if percent is None or not 0 < percent <= 100:
        raise ChoiceError(f'{name}: expected "auto" or a percentage in (0, 100] such as "50%", got {text!r}')
    return percent


def _steps(own: int) -> list[int]:
    """Return equal steps up to `own`: quarters, thirds or halves where they divide it, else rounded quarters."""
    steps = next((n for n in (4, 3, 2) if own % n == 0), 4)
    return sorted({max(1, round(own * i / steps)) for i in range(1, steps + 1)})


def _block_numbers(blocks: Iterable[int] | None, n: int) -> set[int]:
    if blocks is None:
        return set(range(n))
    if isinstance(blocks, (int, str)) or not isinstance(blocks, Iterable):
        raise ChoiceError(f"blocks: expected several numbers in 0..{n - 1}, got {blocks!r}")
    numbers = list(blocks)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < n:
            raise ChoiceError(f"blocks: expected numbers in 0..{n - 1}, got {number!r}")
    return set(numbers)

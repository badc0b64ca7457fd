"""A timm model that you already have, made searchable: weights, checkpoint keys and outputs of the largest subnet kept.

Needs timm (extra `timm`, 1.0.23 or later), which is imported when `wrap` is used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any

from torch import nn

from vitas.checks import check_flags
from vitas.choice import Choice, Dim
from vitas.errors import ChoiceError, WrapError, is_one_of, one_of, shown
from vitas.nn import Elastic
from vitas.sharing import Sharing
from vitas.space import holders, unwrap
from vitas.wrapping.arguments import Values, block_numbers, counts_of, for_each_stage, hidden_of, widths_of
from vitas.wrapping.families import timm_families
from vitas.wrapping.order import order_by_magnitude
from vitas.wrapping.sizes import Row


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
    families = timm_families()
    check_flags(inplace=inplace)
    if isinstance(timm_model, str):
        raise WrapError(f"expected a model, got the name {shown(timm_model)}; pass timm.create_model({shown(timm_model)})")
    model: Any = unwrap(timm_model)
    if any(holders(model)) or isinstance(model, Elastic):
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
        width = dim(name, widths_of(name, widths, own.embed_dim, own.unit))
        name = f"{own.prefix}depth"
        slots = Choice(counts_of(name, depths, n, least=ceil(n / 2)), name=name)
        searched = block_numbers(f"{own.prefix}blocks", numbers, n)
        counts, hidden = [], []
        for i in range(n):
            name = f"{own.prefix}blocks.{i}.num_heads"
            counts.append(dim(name, counts_of(name, heads if i in searched else None, own.num_heads[i])))
            name, per_ratio = f"{own.prefix}blocks.{i}.mlp_dim", own.embed_dim / own.stacks[i]
            hidden.append(dim(name, hidden_of(name, ratios if i in searched else None, own.mlp_dim[i], per_ratio)))
        return Row(width, slots, counts, hidden)

    arguments = {"embed_dim": embed_dim, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "depth": depth, "blocks": blocks}
    given = [for_each_stage(what, values, len(stages)) for what, values in arguments.items()]
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


def sized(value: Any) -> str:
    """Return sizes as a person writes them: "[2, 4]", "3.5"."""
    return f"[{', '.join(map(sized, value))}]" if isinstance(value, list) else f"{value:g}"

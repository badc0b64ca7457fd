"""A model that you already have, made searchable: weights, checkpoint keys and outputs of the largest subnet kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vitas.checks import check_flags
from vitas.errors import ChoiceError, WrapError, shown
from vitas.nn.kept import copied
from vitas.sharing import Sharing
from vitas.space import holders, unwrap
from vitas.wrapping.arguments import Values, for_blocks, for_each_stage
from vitas.wrapping.model import Stage
from vitas.wrapping.narrow import Narrowed
from vitas.wrapping.order import check_importance, check_order, put_in_order, scores_of
from vitas.wrapping.plan import Plan, apply, refuse_adapters, refuse_unfit, refuse_unnamed
from vitas.wrapping.record import check_names, part_at
from vitas.wrapping.records import RECORDS
from vitas.wrapping.slots import name_of
from vitas.wrapping.stages import block_names, places_of, planned


def wrap(
    timm_model: nn.Module,
    *,
    embed_dim: Values = None,
    num_heads: Values = "auto",
    mlp_ratio: Values = "auto",
    depth: Values = None,
    leave: Iterable[Any] | None = None,
    blocks: Iterable[Any] | None = None,
    sharing: Sharing = "cyclic",
    order: str | Mapping[str, Any] | Callable[[nn.Module], Any] | None = None,
    images: Tensor | tuple[Any, ...] | None = None,
    inplace: bool = False,
    records: Mapping[type[nn.Module], str] | None = None,
) -> nn.Module:
    """Return a model of timm made searchable: one of the classes that vitas/wrapping/records/timm.py describes.

    ViT, DeiT, hybrids, Eva (DINOv3, EVA-02, PE), BEiT, NaFlexVit, Qwen3Vit, DeepseekVit, SAM, RelPos, CaiT, XCiT; in stages
    Twins, Swin, SwinV2, PVTv2, MetaFormer; of MaxxVit (MaxViT, CoAtNet), PiT, LeViT, TinyViT, MViTv2, CrossViT heads, MLPs
    and depths; of Hiera and HieraDet (SAM 2) heads and MLPs; of VOLO MLPs.

    Also a tower of transformers: ViT, DeiT, DINOv2, DINOv3, CLIP, SigLIP, Swin, SwinV2. The config of its exports says the
    sizes where one number holds for all blocks.

    The weights, the `state_dict` keys and shapes, the library's methods and the outputs of the largest subnet stay what they
    were. Choices are called `embed_dim`, `depth`, `blocks.3.num_heads`, `blocks.3.mlp_dim`; where there are stages,
    `stages.2.embed_dim`, `stages.2.depth`, `stages.2.blocks.5.num_heads`... Heads keep their width, so that the width of q,
    k and v follows their number.

    Each choice takes None (fixed), "auto", or several values: numbers, or percentages of the model's own such as "50%"; the
    largest has to be the model's own. "auto" goes in quarters (or thirds, or halves, where four does not divide), for
    `embed_dim` from a half; for `depth` it is every number from a half.

    Stages are alike in what they are given, ["50%", "100%"] say, or get an entry each: a list of which
    some entry is None, "auto" or several values, such as [None, "auto", [128, 192, 256], ["50%", "100%"]].

    In the same way `num_heads` and `mlp_ratio` take an entry for each block (of a stage); or a mapping from names and
    globs of blocks, of which the first that matches counts: {"blocks.[0-5]": "auto", "*": None}.

    Source: timm's models, 1.0.23 to 1.0.31, and transformers', 5.20 to 5.24; making them searchable is ours.

    Args:
        timm_model: Of exactly a class that vitas/wrapping/records/timm.py or transformers.py describes, or `records` does.
        embed_dim: Widths of the residual stream; where there are stages, of each.
        num_heads: Heads of each block.
        mlp_ratio: Hidden widths of each block's MLP, as multiples of the model's (or the stage's) own `embed_dim`.
        depth: Numbers of blocks that run; where there are stages, of each.
        leave: Numbers of blocks in the order in which they leave as the depth shrinks; then the others, the last first.
            Where there are stages, the numbers in every one, or an entry for each.
        blocks: Numbers of the blocks whose heads and MLP can be searched; None: all. Where there are stages, the numbers in
            every one, or an entry for each.
        sharing: Which channels a width uses, see vitas.sharing.
        order: First permute heads, MLP units and channels so that important ones serve the most widths; the function stays
            (features before the classifier come in the new order). "magnitude": those with the largest weights;
            "activation": with the largest weights that read large activations of `images`; a mapping from names of choices
            to one score for each unit; a function that is given each linear layer and convolution of `timm_model` and
            returns scores of its weights, what broadcasts to them, or None. None: leave them where they are.
        images: A batch for order="activation", or a tuple of all inputs.
        records: For classes of your own the line that says what follows what, see vitas/wrapping/record.py:
            {MyBlock: "qkv: 3 h d, w; proj: w, h d; num_heads = h"}.
        inplace: Whether to make `timm_model` itself searchable, and not a copy.

    Raises:
        WrapError: another model, one on the meta device, names in `records` that no module of the class has,
            one that is searchable already, or one with parts of another kind.
        ChoiceError: values that the model has no weights for, or that leave out its own; percentages outside (0, 100] or of
            which no whole heads or blocks come out; more or fewer entries than there are stages; another word for `sharing`
            or `order`; scores that do not fit; blocks that leave where the depth is fixed; an `inplace` that is neither True
            nor False.
        VitasError: timm is not installed.

    Example:
        >>> import timm
        >>> model = vitas.wrap(timm.create_model("test_vit"), embed_dim=["50%", "100%"], depth="auto")
        >>> print(vitas.search_space(model))
        SearchSpace of 14 choices, 599,040 networks
          6.62 M / 16.4 M / 37.6 M multiply-adds (cheapest / median / costliest)
          embed_dim           32, 64
          depth               3, 4, 5, 6
          blocks.*.num_heads  1, 2  (x6)
          blocks.*.mlp_dim    48, 96, 144, 192  (x6)
    """
    check_flags(inplace=inplace)
    if isinstance(timm_model, str):
        name = shown(timm_model, 40)
        raise WrapError(f"expected a model, got the name {name}; pass timm.create_model({name})")
    model: Any = unwrap(timm_model)
    if any(holders(model)) or any(isinstance(part, Narrowed) for part in model.modules()):
        raise WrapError(f"{type(model).__name__} is searchable already")
    refuse_adapters(model)
    check_order(order, images)
    known = all_records(records)
    for kind, line in (records or {}).items():
        if alike := [part for part in model.modules() if type(part) is kind]:
            check_names(line, alike)
    places = places_of(model, Plan(known))
    if any(parameter.is_meta for parameter in model.parameters()):
        raise WrapError("the model is on the meta device and has no weights; build it on a real one")
    arguments = {"embed_dim": embed_dim, "depth": depth, "leave": leave, "blocks": blocks}
    given: dict[str, Any] = {what: for_each_stage(what, values, len(places)) for what, values in arguments.items()}
    names = block_names(places)
    given |= {"num_heads": for_blocks("num_heads", num_heads, names, "num_heads")}
    given |= {"mlp_ratio": for_blocks("mlp_ratio", mlp_ratio, names, "mlp_dim")}
    per_stage = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    plan, stages = planned(model, places, per_stage, sharing, known)
    importance = order if isinstance(order, Mapping) else {}
    if order is not None:
        permuted = [stage for stage in stages if order is not importance or stage.width.name in importance]
        _refuse_order(model, permuted, stages[-1], plan)
    refuse_unnamed(model, plan)
    refuse_unfit(model, plan)
    dims = [dim for stage in stages for block in stage.blocks for dim, _ in (*block.heads, *block.hidden)]
    check_importance(importance, [dim for dim in (*(stage.width for stage in stages), *dims) if not dim.fixed])
    scores = {} if order is None or order is importance else scores_of(model, order, images)
    model, steps = (model, plan.steps) if inplace else copied((model, plan.steps))
    apply(steps)
    put_in_order(model, scores, importance)
    return model  # type: ignore[no-any-return]


def all_records(own: Mapping[type[nn.Module], str] | None) -> dict[str, str]:
    """Return the records of libraries and those that a user gives, by the full names of classes.

    Raises:
        WrapError: anything but a mapping from classes of modules to lines of text.
    """
    for kind, line in own.items() if isinstance(own, Mapping) else [(own, "")] if own is not None else []:
        if not isinstance(kind, type) or not issubclass(kind, nn.Module) or not isinstance(line, str):
            raise WrapError(f'records: expected classes and lines such as {{MyBlock: "norm: w"}}, got {shown(own)}')
    return {**RECORDS, **{name_of(kind): line for kind, line in (own or {}).items()}}


def _refuse_order(model: Any, permuted: Sequence[Stage], last: Stage, plan: Plan) -> None:
    if any(stage.unit > 1 and not stage.width.fixed for stage in permuted):
        raise ChoiceError("order: attention pooling groups channels into heads, so a searched embed_dim cannot be permuted")
    record = plan.record_of(model)
    classified = any(
        not axes[0].letters and axes[-1].letters == ("w",) and isinstance(part_at(model, name), nn.Linear)
        for name, axes in (record.axes.items() if record else ())
        if len(axes) == 2
    )
    if last in permuted and not last.width.fixed and not classified:
        raise ChoiceError(
            "order: without a classifier the channels of a searched embed_dim are the outputs; give embed_dim=None"
        )


def sized(value: Any) -> str:
    """Return sizes as a person writes them: "[2, 4]", "3.5"."""
    return f"[{', '.join(map(sized, value))}]" if isinstance(value, list) else f"{value:g}"

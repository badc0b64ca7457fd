"""What every subnet costs, from one counted run of the largest.

How many positions each layer sees does not depend on what is searched. So the multiply-adds of a linear layer or convolution
are those positions times its weight's active size, and the products inside attention go with its heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vitas.cost import Cost, counted
from vitas.errors import VitasError
from vitas.nn import CyclicLinear, Elastic, ElasticConv2d, ShiftableIdentity
from vitas.nn.kept import on_meta
from vitas.nn.stacked import StackedLinear
from vitas.space import State
from vitas.wrapping.narrow import Narrowed, plain, weight_cost
from vitas.wrapping.origin import arguments_of

Counts = dict[str, dict[str, int]]
"""The multiply-adds of each module by operator, without those of its parts."""


def image_of(model: nn.Module) -> tuple[int, int, int]:
    """Return channels, height and width of a model's images.

    Raises:
        VitasError: a model that does not say.
    """
    size: Any = None
    for part in model.modules():
        size = vars(part).get("img_size") or vars(part).get("image_size")
        size = size or getattr(vars(part).get("config"), "image_size", None)
        if size:
            break
    conv = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    size = size or arguments_of(model).get("img_size")
    given = tuple(dict(vars(model).get("pretrained_cfg") or {}).get("input_size") or ())
    if not size and len(given) != 3:
        raise VitasError("this model does not know the size of its images; give it one by set_input_size")
    height, width = given[1:] if not size else (size, size) if isinstance(size, int) else size
    told = next((vars(part)["in_chans"] for part in model.modules() if "in_chans" in vars(part)), 3)
    return (conv.in_channels if conv is not None else told), int(height), int(width)


def counted_cost(model: Any, known: dict[Any, Counts]) -> Cost:
    """Return the multiply-adds of a narrowed model's subnets for one image of its size.

    Args:
        model: The model.
        known: Counts by image and shapes of parameters, which layers anywhere may change; what is counted is kept there.
    """
    image = image_of(model)
    key = image, tuple((name, parameter.shape) for name, parameter in model.named_parameters())
    if key not in known:
        known.clear()
        blank = torch.empty(1, *image, device="meta", dtype=next(model.parameters()).dtype)
        known[key] = counted(_original(model), (blank,))
    return sum((cost * gate for cost, gate in _terms(model, known[key])), Cost())


def _original(model: nn.Module) -> nn.Module:
    """Return the largest subnet's export, without memory."""
    twin = on_meta(model, model)
    State.of_module(twin).largest().put_back()
    with torch.no_grad():
        made = plain(twin)
    assert made is not None
    return made.eval()


def _terms(model: Any, counts: Counts) -> Iterator[tuple[Cost, Cost]]:
    """Yield the cost of each module that computes something itself, and when it runs."""
    parts: dict[str, nn.Module] = dict(model.named_modules())
    rows = {path: part for path, part in parts.items() if isinstance(part, ShiftableIdentity)}
    for path, operators in counts.items():
        gate = Cost(1)
        for row, slots in rows.items():
            if path.startswith(f"{row}."):
                slot = int(path.removeprefix(f"{row}.").partition(".")[0])
                gate = gate * Cost.above(slots.depth, slots.depth.turns[slot])
        owner, _, name = path.rpartition(".")
        above = parts[owner]
        heads = above._dims["h"] if isinstance(above, Narrowed) and name in above.each_head else None
        for operator, macs in operators.items():
            if heads is not None:
                yield (Cost(heads) * _whole(path, macs, heads.largest)).named(operator).under(path), gate
                continue
            for inner, cost in _costs(parts[path], path, operator, macs, counts):
                yield (cost.named(operator).under(inner) if inner else cost.named(operator)), gate


def _costs(part: Any, path: str, operator: str, macs: int, counts: Counts) -> Iterator[tuple[str, Cost]]:
    """Yield path and cost of what a module computes itself."""
    if isinstance(part, (CyclicLinear, StackedLinear, ElasticConv2d)) or (
        isinstance(part, Narrowed) and operator != "matmul" and not part._modules
    ):
        yield path, weight_cost(part, _positions(path, macs, part))
    elif operator == "matmul" and isinstance(part, Narrowed):
        inner = next((part._dims[word] for word in ("h", "h d", "w") if word in part._dims), None)
        yield path, Cost(macs) if inner is None else Cost(inner) * _whole(path, macs, inner.largest)
    elif operator == "linear" and isinstance(part, Narrowed) and isinstance(part, nn.MultiheadAttention):
        width = part._dims["w"]  # of all its weights, in and out
        yield path, Cost(width) * Cost(width) * _whole(path, macs, width.largest**2)
    elif operator == "linear" and isinstance(part, Narrowed):  # the weights of layers that are not called themselves
        uncalled = {
            name: child
            for name, child in part._modules.items()
            if isinstance(child, (CyclicLinear, StackedLinear)) and f"{path}.{name}" not in counts
        }
        positions = _whole(path, macs, sum(child.weight.numel() for child in uncalled.values()))
        for name, child in uncalled.items():
            yield f"{path}.{name}", weight_cost(child, positions)
    else:
        yield path, Cost(macs)


def _positions(path: str, macs: int, layer: Elastic) -> int:
    weights = (layer.stored(name) for name in layer.axes() if name not in layer._buffers)
    return _whole(path, macs, sum(weight.numel() for weight in weights if weight is not None and weight.ndim > 1))


def _whole(path: str, macs: int, unit: int) -> int:
    if not unit or macs % unit:
        raise VitasError(f"cost: the {macs} multiply-adds of {path} do not go with the sizes of its weights or heads")
    return macs // unit

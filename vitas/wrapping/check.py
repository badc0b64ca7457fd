"""Whether records say the truth: a subnet is the full model without the units that it leaves out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vitas.checks import as_count
from vitas.choice import Dim
from vitas.errors import WrapError
from vitas.measure import relative_error
from vitas.nn import Elastic
from vitas.nn.layer import Stack
from vitas.space import State, arguments_of, eval_mode, search_space, unwrap
from vitas.wrapping.model import Model, largest

_MOST = 1e-4
"""Largest difference, max|a - b| / max|b|, in single precision; in double it is 1e-9."""


@torch.no_grad()
def check_records(model: nn.Module, images: Tensor | tuple[Any, ...], *, subnets: int = 4) -> float:
    """Compare subnets of a wrapped model with the whole model in which the units that they leave out are silent.

    A head, or a unit of an MLP, is silent where the columns by which its output is read are 0. That finds an axis whose
    letters stand in the wrong order, which neither the largest subnet nor an export shows. Widths of the residual stream
    and depths are left at their largest. Norms over heads or units (`norm: h d`, `norm: m`) see other statistics, and layers
    that mix heads read silent ones too: of these the difference says nothing.

    Source: ours.

    Args:
        model: What `wrap` returned, possibly with records of one's own; its active subnet is put back.
        images: A batch, or a tuple of all inputs.
        subnets: How many subnets are drawn, by a fixed seed.

    Returns:
        The largest max|a - b| / max|b|.

    Raises:
        WrapError: a difference above 1e-4 (1e-9 in double precision), outputs that are not finite, or a model that `wrap`
            did not make.
        ChoiceError: no tensor among the inputs, a number of subnets that is not a positive int.

    Example:
        >>> import timm
        >>> model = vitas.wrap(timm.create_model("test_vit"))
        >>> vitas.check_records(model, torch.randn(1, 3, 160, 160)) < 1e-4
        True
    """
    inner = unwrap(model)
    if not isinstance(inner, Model):
        raise WrapError(f"{type(inner).__name__}: expected what wrap returned")
    arguments, subnets = arguments_of(images), as_count(subnets, "subnets")
    space, state = search_space(inner), State.of_module(inner)
    units = [dim for stage in inner._stages for block in stage.blocks for dim, _ in (*block.heads, *block.hidden)]
    generator, errors = torch.Generator().manual_seed(0), list[float]()
    try:
        with eval_mode(inner):
            for _ in range(subnets):
                space.activate(space.largest())
                for dim in units:
                    dim.active = dim.values[int(torch.randint(len(dim.values), (), generator=generator))]
                got = _tensors(inner(*arguments))
                with _silent(inner, units), largest(inner):
                    expected = _tensors(inner(*arguments))
                errors += (relative_error(a, b) for a, b in zip(got, expected, strict=True))
    finally:
        state.put_back()
    if not errors or not all(map(math.isfinite, errors)):
        raise WrapError(f"{type(inner).__name__}: nothing to compare: its outputs are NaN or infinite, or hold no tensor")
    worst = max(errors)
    if not worst <= (1e-9 if next(inner.parameters()).dtype == torch.float64 else _MOST):
        raise WrapError(
            f"{type(inner).__name__}: a subnet is {worst:.2g} off the model without its other units: letters in the wrong"
            " order, or a layer across heads or units"
        )
    return worst


@contextmanager
def _silent(model: nn.Module, units: list[Dim]) -> Iterator[None]:
    """Set to 0 the columns by which layers read units that the active subnet leaves out, for the length of a with block."""
    before: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        dims = module.axes().get("weight", ()) if isinstance(module, Elastic) else ()
        read = dims[1] if len(dims) > 1 else None
        parts, dim = (read.parts, read.dim) if isinstance(read, Stack) else (1, read)
        if isinstance(module, Elastic) and dim is not None and any(base is unit for base in dim.bases for unit in units):
            weight = module.stored("weight")
            assert weight is not None
            before.append((weight, weight.clone()))
            left_out = torch.ones(dim.largest, dtype=torch.bool, device=weight.device)
            left_out[dim.channels().to(weight.device)] = False
            weight[:, left_out.repeat(parts)] = 0
    try:
        yield
    finally:
        for weight, own in before:
            weight.copy_(own)


def _tensors(outputs: object) -> list[Tensor]:
    """Return the tensors among what a model returns."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]

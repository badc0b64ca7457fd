"""A second opinion on a count of multiply-adds: fvcore's, which runs the network and adds up what it sees."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vitas.cost.count import unfused
from vitas.errors import VitasError
from vitas.nn.images import as_exported
from vitas.nn.layer import exported
from vitas.sample import use_subnet
from vitas.space import Number, arguments_of, device_of, holders, unwrap
from vitas.superformer.base import OfImages

if TYPE_CHECKING:
    from fvcore.nn import FlopCountAnalysis

_Handle = Callable[[list[Any], list[Any]], Any]
"""Returns what an operator of torch.jit costs, from its inputs and outputs."""


def flop_analysis(model: nn.Module, subnet: Mapping[str, Number] | None = None, inputs: Any = None) -> FlopCountAnalysis:
    """Return fvcore's analysis of a subnet, for its `flop_count_table`, `flop_count_str`, `by_module()`, `by_operator()`.

    It is that of the export, in eval mode, so it stands for this subnet whatever becomes active later, the parameters in
    its tables are the subnet's, and its names are those of the export, which are the model's but for private copies. Linear
    layers, convolutions and matrix products are counted, fused attention too, and nothing else: what `count_flops` counts.
    `total()` equals it to the unit. The rest that ran is in `unsupported_ops()`. Model, active subnet and the state of the
    random numbers are untouched.

    Source: handles for convolutions and linear layers, fvcore 0.1.5.post20221221; those for fused attention, and for matrix
    products that broadcast, are ours.

    Args:
        model: A model, searchable or plain, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.
        inputs: A tensor or a tuple of arguments to run the network on; the count is for all of them. None: one image, for a
            superformer or a wrapped timm model.

    Raises:
        ChoiceError: not a subnet of the model's space; inputs without a tensor among them.
        ExportError: a subnet that cannot be exported.
        VitasError: no inputs for a model that does not know the size of its images; a model on the meta device.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> analysis = vitas.flop_analysis(model, vitas.search_space(model).smallest())
        >>> analysis.total()
        761216
    """
    model = unwrap(model)
    device = device_of(model)
    if inputs is None:
        if not isinstance(model, OfImages):
            raise VitasError(
                f"inputs: {type(model).__name__} does not know the size of its images; give it one as inputs=..."
            )
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        inputs = torch.zeros(1, *model.image_shape(), device=device, dtype=dtype)
    arguments = arguments_of(inputs)
    nothing = isinstance(subnet, Mapping) and not subnet and not any(holders(model))  # to choose
    with nullcontext() if subnet is None or nothing else use_subnet(model, subnet), torch.no_grad():
        network, arguments = exported(model).eval(), as_exported(model, arguments)
    with warnings.catch_warnings(), unfused():
        warnings.simplefilter("ignore")  # fvcore imports parts of torch.jit that torch 2.14 calls deprecated
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(network, arguments)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.clear_op_handles().set_op_handle(**_handles())
        analysis.total()  # runs the network, now and not at the first question
    return analysis


def _handles() -> dict[str, _Handle]:
    """Return what counts each operator of torch.jit, under the names that count_flops uses."""
    from fvcore.nn import jit_handles as fvcore

    handles = {
        ("linear", "linear"): fvcore.linear_flop_jit,
        ("linear", "addmm"): fvcore.addmm_flop_jit,
        ("linear", "mm"): fvcore.matmul_flop_jit,
        ("conv", "_convolution"): fvcore.conv_flop_jit,
        ("conv", "_convolution_mode"): _convolution_by_mode,
        ("matmul", "bmm"): fvcore.bmm_flop_jit,
        ("matmul", "baddbmm"): lambda inputs, outputs: fvcore.bmm_flop_jit(inputs[1:3], outputs),
        ("matmul", "matmul"): _matmul,
        ("matmul", "einsum"): _einsum,
        ("matmul", "scaled_dot_product_attention"): _attention,
    }
    return {f"aten::{name}": _named(word, count) for (word, name), count in handles.items()}


def _named(word: str, handle: _Handle) -> _Handle:
    def named(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        counted = handle(inputs, outputs)
        return Counter({word: sum(counted.values()) if isinstance(counted, Counter) else counted})

    return named


def _shape(value: Any) -> list[int]:
    return value.type().sizes()  # type: ignore[no-any-return]


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Count q k^T and the product with v: q (..., N, d), k (..., M, d), v (..., M, e) -> (..., N, e)."""
    *rows, e = _shape(outputs[0])
    m, d = _shape(inputs[1])[-2:]
    return math.prod(rows) * m * (d + e)


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    """Count (..., N, K) by (..., K, M); fvcore's own handle takes the first for the one with all leading axes."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _convolution_by_mode(inputs: list[Any], outputs: list[Any]) -> int:
    """Count a convolution whose padding is a word."""
    (batch, _, *size), kernel = _shape(outputs[0]), _shape(inputs[1])
    return batch * math.prod(kernel) * math.prod(size)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Count a product of two tensors: the numbers that come out, times those summed over that both tensors have.

    fvcore's own handle, which serves for other numbers of tensors, reads the count off a text, rounded to four digits.
    """
    from fvcore.nn.jit_handles import einsum_flop_jit

    terms, _, left = inputs[0].toIValue().replace(" ", "").partition("->")
    if terms.count(",") != 1:
        return int(einsum_flop_jit(inputs, outputs))
    first, second = map(_sizes, terms.split(","), map(_shape, inputs[1].node().inputs()))
    summed = [n for letter, n in first.items() if letter in second and letter not in left]
    return math.prod([*_shape(outputs[0]), *summed]) if summed else 0


def _sizes(term: str, shape: list[int]) -> dict[str, int]:
    """Return the size of each letter of a term such as "b...ij"."""
    ahead, _, behind = term.partition("...")
    return {**dict(zip(ahead, shape, strict=False)), **dict(zip(reversed(behind), reversed(shape), strict=False))}

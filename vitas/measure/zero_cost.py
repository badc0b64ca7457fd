"""How good a subnet may become, without training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitas.errors import ShapeError, VitasError, brief
from vitas.measure.score import described
from vitas.nn.images import as_exported
from vitas.nn.layer import exported
from vitas.space import device_of, unwrap


def zero_cost(model: nn.Module, inputs: Tensor) -> float:
    """Return the DSS indicator of the active subnet, by which untrained networks are ranked: more is better.

    Synaptic diversity of the attention, the sum over its linear layers of |dR/dW|_nuc * |W|_nuc, plus synaptic saliency of
    the MLPs, the sum over their weights of dR/dW * W. R is the sum of the outputs for an image of ones, every parameter
    replaced by its absolute value. It is meant for weights as they are drawn, before training. Model, gradients and active
    subnet are untouched. On a small space it ranked networks no better than their number of parameters (docs/benchmarks.md).

    Source: Zhou et al. (TF-TAS), arXiv:2203.12217; absolute weights and ones as in Tanaka et al. (SynFlow),
    arXiv:2006.05467. Ours: float64, q, k and v as the one layer that they are in an export, no other linear layers.

    Args:
        model: A model whose linear layers lie under the names `attn` and `mlp`, as timm's and ours do; searchable or plain.
        inputs: A batch, (B, ...), for the shape of one image.

    Raises:
        ShapeError: not a batch, or of images that the model cannot run.
        VitasError: a model on the meta device, no linear layers under those names, or outputs that are not a tensor.
        ExportError: a subnet that cannot be exported.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.zero_cost(model, torch.randn(1, 3, 16, 16)) > 0
        True
    """
    return sum(dss(model, inputs))


def dss(model: nn.Module, inputs: Tensor) -> tuple[float, float]:
    """Return the two parts of `zero_cost`: synaptic diversity and synaptic saliency.

    Raises:
        VitasError: as `zero_cost`.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim < 1 or not len(inputs):
        raise ShapeError(f"inputs: expected a batch of at least one image, got {described(inputs)}")
    device = device_of(unwrap(model))
    inputs, *_ = as_exported(unwrap(model), [inputs[:1]])
    network = exported(unwrap(model)).double().eval().requires_grad_()
    layers = [(path.split("."), part) for path, part in network.named_modules() if isinstance(part, nn.Linear)]
    attention = [layer.weight for path, layer in layers if "attn" in path]
    mlp = [layer.weight for path, layer in layers if "mlp" in path and "attn" not in path]
    if not attention or not mlp:
        raise VitasError(
            f"{type(network).__name__}: expected linear layers under the names 'attn' and 'mlp',"
            f" got {len(attention)} and {len(mlp)}"
        )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    with torch.enable_grad():
        try:
            outputs = network(torch.ones_like(inputs, dtype=torch.float64, device=device))
        except (ValueError, RuntimeError) as error:
            raise ShapeError(f"inputs: {type(network).__name__} cannot run them: {brief(error)}") from error
        if not isinstance(outputs, Tensor):
            raise VitasError(f"outputs: expected a tensor, got {described(outputs)}")
        weights = [*attention, *mlp]
        gradients = torch.autograd.grad(outputs.sum(), weights, materialize_grads=True)
    with torch.no_grad():
        diversity, saliency = 0.0, 0.0
        for number, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            if number < len(attention):
                diversity += float(_nuclear_norm(gradient) * _nuclear_norm(weight))
            else:
                saliency += float((gradient * weight).sum())
    return diversity, saliency


def _nuclear_norm(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix).sum()  # type: ignore[no-any-return]

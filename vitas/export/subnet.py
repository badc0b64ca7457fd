"""From a searchable model to the plain torch network of one subnet."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from vitas.errors import ChoiceError, ExportError, is_one_of, listed, one_of, shown
from vitas.measure import relative_error
from vitas.memory import machine_memory
from vitas.nn.images import ImageSize, as_exported
from vitas.nn.layer import exported, is_layer
from vitas.sample import use_subnet
from vitas.space import Number, Subnet, TableRow, arguments_of, device_of, eval_mode, holders, search_space, unwrap
from vitas.superformer import create_superformer

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest max|a - b| / max|b| that `verify` accepts."""


def export_subnet(
    model: nn.Module,
    subnet: Mapping[str, Number] | None = None,
    *,
    weights: str = "inherit",
    verify: Tensor | tuple[Any, ...] | None = None,
    side: str | None = None,
) -> nn.Module:
    """Return the plain network of a subnet: torch.nn layers inside the classes of vitas.plain, no choices left.

    Device, dtype, training mode and requires_grad are the model's; the weights are contiguous copies of their own. Hooks on
    elastic layers stay behind. The model's active subnet is untouched.

    Args:
        model: A model with elastic layers, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.
        weights: "inherit" copies the active weights, "fresh" draws new ones by each layer's `reset_parameters`, or as
            timm's model does.
        verify: A batch, or a tuple of all inputs, on which export and active path are compared, in eval mode.
        side: "left" or "right", for bilateral sharing; None: "left", or the active side where `subnet` is None.

    Raises:
        ChoiceError: not a subnet of the model's space, or no space, such as one with a broken tie; an unknown word for
            `weights` or `side`; nothing that `verify` could compare.
        ExportError: `verify` found a difference; a part that is still searchable, that overrides the forward pass of an
            elastic layer, or that cannot draw fresh weights; weights of several parts that would be one no longer; a model
            without elastic layers.
        VitasError: `verify` on the meta device.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> images = torch.randn(2, 3, 16, 16)
        >>> small = vitas.export_subnet(model, vitas.sample_subnet(model, flops="50%"), verify=images)
        >>> type(small)
        <class 'vitas.plain.VisionTransformer'>
        >>> fresh = vitas.export_subnet(model, weights="fresh")  # the active one, to be trained from scratch
    """
    if not is_one_of(["inherit", "fresh"], weights):
        raise ChoiceError(f"weights: {one_of(['inherit', 'fresh'], weights)}")
    if weights == "fresh" and verify is not None:
        raise ChoiceError("verify: fresh weights have nothing to be compared with")
    inner = unwrap(model)
    if not any(is_layer(part) or type(part).__module__ == "vitas.plain" for part in inner.modules()):
        raise ExportError(f"{type(inner).__name__} has no elastic layers to export")
    if verify is not None:
        device_of(inner)  # refuses the meta device, before anything is copied
    if isinstance(subnet, Mapping) and not subnet and not any(holders(inner)):
        subnet = None  # nothing to choose
    if subnet is None and any(holders(inner)):
        active = search_space(inner).active()  # in any case: this refuses broken ties
        subnet = None if side is None else active
    with use_subnet(model, subnet, side=side) if subnet is not None else nullcontext():
        with torch.inference_mode(False), torch.no_grad():  # weights made in inference mode could not be trained
            plain = exported(inner)
        _refuse_untied(inner, plain)
        if weights == "fresh":
            _reset(plain)
        if verify is not None:
            _verify(inner, plain, verify)
    return plain


def build_subnet(
    name: str,
    subnet: Mapping[str, Number],
    *,
    num_classes: int = 1000,
    img_size: ImageSize = 224,
    in_chans: int = 3,
    **overrides: Any,
) -> nn.Module:
    """Return the plain network of a subnet with fresh weights; no weights of the superformer are ever allocated.

    Args:
        name: Superformer in whose space the subnet lies, see `list_superformers`.
        subnet: Such as `published_subnet("vitas_c")`.
        num_classes: Classes; 0: no classifier.
        img_size: Height and width in pixels, or one int for both; several sides where the subnet names one of them.
        in_chans: Image channels.
        overrides: Other arguments of the superformer.

    Raises:
        ChoiceError: an unknown name or argument, not a subnet of the space.
        ExportError: a network that takes more memory than this machine has.

    Example:
        >>> small = {"patch_size": 4, "embed_dim": 32, "depth": 1}
        >>> small |= {"blocks.0.num_heads": 2, "blocks.0.qkv_dim": 32, "blocks.0.mlp_dim": 48}
        >>> network = vitas.build_subnet("deit_micro", small, num_classes=10, img_size=16)
        >>> network(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 10])
    """
    with torch.device("meta"):
        model = create_superformer(name, num_classes=num_classes, img_size=img_size, in_chans=in_chans, **overrides)
    plain = export_subnet(model, subnet if isinstance(subnet, TableRow) else Subnet(subnet))
    size = sum(parameter.nbytes for parameter in plain.parameters())
    if size > (machine_memory() or 2**40):
        raise ExportError(f"{name}: this subnet needs {size / 2**40:.1f} TiB, more than this machine has")
    plain = plain.to_empty(device=torch.get_default_device())
    _reset(plain)
    return plain


def _reset(plain: nn.Module) -> None:
    """Draw fresh weights.

    Raises:
        ExportError: a part that cannot, or a parameter that nothing draws.
    """
    with torch.no_grad():
        for _, weight in _trained(plain):
            weight.fill_(torch.nan)  # what is passed over stays so
    _draw(plain)
    if left := [name for name, weight in _trained(plain) if weight.isnan().any()]:
        raise ExportError(f"draw by hand, after weights='inherit': {listed(left, 1)}; no reset_parameters() does")


def _trained(plain: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, own) for name, own in plain.named_parameters() if own.requires_grad and not own.is_meta]


def _draw(module: nn.Module, path: str = "") -> None:
    """Draw weights, the parts before the whole, so that a model may have the last word over its layers."""
    for name, child in module.named_children():
        _draw(child, f"{path}.{name}" if path else name)
    reset = getattr(module, "reset_parameters", None) or getattr(module, "init_weights", None)  # timm's word
    each = getattr(module, "_init_weights", None)  # timm's too: it draws one module, and is applied to all
    if reset is not None:
        reset()
    elif each is not None and len(signature(each).parameters) == 1:
        module.apply(each)
    elif any(True for _ in module.parameters(recurse=False)):
        raise ExportError(f"{path or 'model'}: {type(module).__name__} has weights but no reset_parameters() to draw anew")


def _refuse_untied(model: nn.Module, plain: nn.Module) -> None:
    """Refuse a parameter that stands in two places of a model, of which the export would have two."""
    exported_as = dict(plain.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), path)
        if exported_as.get(path) is not exported_as.get(other) and {path, other} <= exported_as.keys():
            raise ExportError(
                f"{shown(other, 50)} and {shown(path, 50)} are one weight, two in the export: give each its own"
            )


@torch.no_grad()
def _verify(model: nn.Module, plain: nn.Module, inputs: Tensor | tuple[Any, ...]) -> None:
    if not isinstance(inputs, (Tensor, tuple)):
        raise ChoiceError(f"verify: expected a batch or a tuple of inputs, got {shown(inputs)}")
    arguments = arguments_of(inputs, "verify")
    with eval_mode(model, plain):
        expected, got = list(_tensors(model(*arguments))), list(_tensors(plain(*as_exported(model, arguments))))
    if not sum(tensor.numel() for tensor in expected):
        raise ChoiceError("verify: the outputs hold no numbers to compare, for these inputs")
    if len(got) != len(expected):
        raise ExportError(f"the export returns {len(got)} tensors, the active path {len(expected)}")
    for a, b in zip(got, expected, strict=True):
        error = relative_error(a, b)
        if not error <= TOLERANCE.get(b.dtype, 0.0):
            raise ExportError(f"export and active path differ by {error:.2g} (max|a - b| / max|b|) on the given inputs")


def _tensors(output: object) -> Iterator[Tensor]:
    """Yield the tensors that a model returned, alone or in tuples, lists and dicts."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list, Mapping)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)

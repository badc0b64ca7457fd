"""What every elastic layer promises, tested once: a layer's test class builds the layer and inherits the suite.

class TestMyLayer(Contract):
    def build(self, sharing): ...      # the layer and its choices
    def inputs(self, layer): ...       # an input that fits the active subnet
    def reference(self, layer, x): ... # the same outputs, by indexing and torch alone
"""

import copy
import pickle
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vitas import Choice, Dim, load_superformer, save_superformer
from vitas.cost.expression import Cost
from vitas.cost.stated import cost_of, params_of
from vitas.errors import CheckpointError
from vitas.nn.layer import Elastic, checked_axes, exported

PATTERNS = ["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"]
PLAIN_LEAVES = {nn.Linear, nn.LayerNorm, nn.Conv2d, nn.GELU, nn.Dropout, nn.Identity}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give realistic random weights: std 1 / sqrt(fan_in), gains around 1, biases around 0; ones and zeros hide slips."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        with torch.no_grad():
            if "norm" in name.lower() or parameter.ndim == 1:
                parameter.copy_((0.0 if name.endswith("bias") else 1.0) + 0.2 * noise)
            elif "token" in name or "pos_embed" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return module


def passed_on(model: nn.Module, other: nn.Module, folder: Path) -> nn.Module:
    """Return `other` with the weights of a superformer, which travel in a file."""
    save_superformer(model, folder / "model.safetensors")
    load_superformer(other, folder / "model.safetensors")
    return other


def relative_error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return ((a - b).abs().max() / b.abs().max()).item()


def macs(model: nn.Module, x: Tensor) -> int:
    """Count with torch's own counter, attention unfused so that nothing is hidden."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def leaves(module: nn.Module) -> Iterator[nn.Module]:
    return (part for part in module.modules() if not any(True for _ in part.children()))


def is_plain(module: nn.Module) -> bool:
    text = pickle.dumps(module)
    return b"vitas.nn" not in text and b"vitas.choice" not in text and b"vitas.superformer" not in text


class Contract:
    """Inherited by the test class of every elastic layer."""

    tokens: int | Cost = 1
    """What `cost` is to be told: tokens, output positions of a convolution, or a Map."""

    plain_leaves: tuple[type[nn.Module], ...] = ()
    """Kinds of plain layers that no other export uses."""

    def build(self, sharing: str) -> tuple[nn.Module, list[Choice[Any]]]:
        raise NotImplementedError

    def inputs(self, layer: nn.Module) -> Tensor:
        raise NotImplementedError

    def reference(self, layer: nn.Module, x: Tensor) -> Tensor:
        raise NotImplementedError

    def subnets(self, choices: list[Choice[Any]]) -> Iterator[None]:
        """Activate every combination, on both sides where there are two."""
        dims = [choice for choice in choices if isinstance(choice, Dim) and len(choice.sides) > 1]
        for side in ("left", "right") if dims else ("left",):
            for dim in dims:
                dim.side = side
            for values in product(*(choice.values for choice in choices)):
                for choice, value in zip(choices, values, strict=True):
                    choice.active = value
                yield

    @pytest.mark.parametrize("sharing", PATTERNS)
    def test_equals_its_export_and_an_independent_reference(self, sharing: str) -> None:
        layer, choices = self.build(sharing)
        randomize(layer.double()).eval()
        for _ in self.subnets(choices):
            x = self.inputs(layer).double()
            plain = exported(layer)
            assert relative_error(layer(x), plain(x)) <= 1e-12
            assert relative_error(layer(x), self.reference(layer, x)) <= 1e-12

    def test_equals_its_export_in_single_precision(self) -> None:
        layer, choices = self.build("cyclic")
        randomize(layer).eval()
        for _ in self.subnets(choices):
            x = self.inputs(layer)
            assert relative_error(layer(x), exported(layer)(x)) <= 1e-5

    def test_exports_plain_layers_with_weights_of_their_own(self) -> None:
        layer, choices = self.build("cyclic")
        randomize(layer)
        shared = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
        for _ in self.subnets(choices):
            plain = exported(layer)
            assert is_plain(plain)
            kinds = {*PLAIN_LEAVES, *self.plain_leaves}
            assert all(type(leaf) in kinds or type(leaf).__module__ == "vitas.plain" for leaf in leaves(plain))
            for parameter in plain.parameters():
                assert parameter.is_contiguous()
                assert parameter.untyped_storage().data_ptr() not in shared
                assert parameter.untyped_storage().nbytes() == parameter.nbytes

    def test_export_keeps_mode_dtype_device_and_requires_grad(self) -> None:
        layer, choices = self.build("cyclic")
        next(self.subnets(choices))
        layer.eval().requires_grad_(False)
        plain = exported(layer.to(torch.bfloat16))
        assert not any(part.training for part in plain.modules())
        assert {(p.dtype, p.requires_grad) for p in plain.parameters()} <= {(torch.bfloat16, False)}
        assert all(part.training for part in exported(layer.train()).modules())
        assert {p.device.type for p in exported(layer.to("meta")).parameters()} <= {"meta"}

    def test_export_touches_no_random_numbers(self) -> None:
        layer, _ = self.build("cyclic")
        before = torch.get_rng_state()
        exported(layer)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("sharing", ["bilateral", "cyclic"])
    def test_only_active_slices_get_gradient(self, sharing: str) -> None:
        layer, choices = self.build(sharing)
        randomize(layer.double())
        for _ in self.subnets(choices):
            x = self.inputs(layer).double().requires_grad_()
            plain = exported(layer)
            layer.zero_grad(set_to_none=True)
            (out,) = torch.autograd.grad(layer(x).square().sum(), x)
            plain(x).square().sum().backward()
            assert x.grad is not None
            assert relative_error(out, x.grad) <= 1e-12
            layer(x).square().sum().backward()
            got = torch.cat([p.grad[p.grad != 0] for p in layer.parameters() if p.grad is not None])
            expected = torch.cat([p.grad[p.grad != 0] for p in plain.parameters() if p.grad is not None])
            torch.testing.assert_close(got.sort().values, expected.sort().values, rtol=1e-9, atol=1e-12)

    def test_counts_are_those_of_the_export(self) -> None:
        layer, choices = self.build("cyclic")
        for _ in self.subnets(choices):
            plain = exported(layer)
            assert params_of(layer).active() == sum(parameter.numel() for parameter in plain.parameters())
            tokens = self.tokens if isinstance(self.tokens, Cost) else Cost(self.tokens)
            assert cost_of(layer, tokens).active() == macs(plain, self.inputs(layer)[:1])

    def test_axes_are_those_of_the_weights_and_the_export_keeps_their_names(self) -> None:
        layer, choices = self.build("cyclic")
        for _ in self.subnets(choices):
            for part in [part for part in layer.modules() if isinstance(part, Elastic) and checked_axes(part)]:
                weights, made = part.active_weights(), exported(part)
                own = {**dict(made.named_parameters()), **dict(made.named_buffers())}
                assert list(own) == [name for name in part.axes() if name in weights]
                assert all(torch.equal(own[name], weight) for name, weight in weights.items())

    def test_copies_keep_the_active_subnet_and_their_own_ties(self) -> None:
        layer, choices = self.build("cyclic")
        randomize(layer)
        for choice in choices:
            choice.active = choice.smallest
        x = self.inputs(layer)
        layer.eval()
        expected = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), expected)
            for choice in choices:
                choice.active = choice.largest
            assert torch.equal(twin(x), expected)  # the copy has choices of its own
            assert torch.equal(copy.deepcopy(twin)(x), expected)
            for choice in choices:
                choice.active = choice.smallest

    def test_loads_its_own_state_by_assignment(self) -> None:
        layer, _ = self.build("cyclic")
        source = randomize(copy.deepcopy(layer), seed=1)
        layer.load_state_dict(source.state_dict(), assign=True)
        layer.eval(), source.eval()
        x = self.inputs(layer)
        assert torch.equal(layer(x), source(x))

    def test_foreign_checkpointing_recomputes_the_same_or_fails(self) -> None:
        layer, choices = self.build("cyclic")
        randomize(layer.double())
        for choice in choices:
            choice.active = choice.values[0]
        x = self.inputs(layer).double().requires_grad_()
        checkpoint(layer, x, use_reentrant=False).square().sum().backward()
        again = x.detach().clone().requires_grad_()
        layer(again).square().sum().backward()
        torch.testing.assert_close(x.grad, again.grad)
        out = checkpoint(layer, x, use_reentrant=True)
        with pytest.raises(CheckpointError, match="use_reentrant=False"):
            out.sum().backward()
        caught = 0
        for moved in choices:
            out = checkpoint(layer, x, use_reentrant=False)
            moved.active = moved.largest
            x.grad = None
            try:
                out.square().sum().backward()
            except (RuntimeError, ValueError):
                caught += 1
            else:  # a part that the forward pass did not reach, such as blocks beyond the depth
                torch.testing.assert_close(x.grad, again.grad)
            moved.active = moved.smallest
        assert caught

    def test_prints_what_is_active(self) -> None:
        layer, choices = self.build("cyclic")
        choice = choices[0]
        choice.active = choice.smallest
        assert f"{choice.smallest} of {choice.smallest}..{choice.largest}" in repr(layer)

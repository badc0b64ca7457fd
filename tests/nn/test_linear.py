import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract import Contract, randomize
from vitas import ChoiceError, Dim
from vitas.errors import ShapeError
from vitas.nn.linear import CyclicLinear


class TestCyclicLinear(Contract):
    def build(self, sharing):
        i, o = Dim([3, 5, 8], sharing=sharing), Dim([2, 4, 6], sharing=sharing)
        return CyclicLinear(i, o), [i, o]

    def inputs(self, layer):
        return torch.randn(4, layer.in_dim.active)

    def reference(self, layer, x):
        rows, columns = layer.out_dim.channels(), layer.in_dim.channels()
        return F.linear(x, layer.weight[rows][:, columns], layer.bias[rows])


class TestCyclicLinearWithoutBias(TestCyclicLinear):
    def build(self, sharing):
        i, o = Dim([3, 5, 8], sharing=sharing), Dim([2, 4, 6], sharing=sharing)
        return CyclicLinear(i, o, bias=False), [i, o]

    def reference(self, layer, x):
        return F.linear(x, layer.weight[layer.out_dim.channels()][:, layer.in_dim.channels()])


@pytest.mark.parametrize("bias", [True, False])
def test_with_ints_it_is_torchs_linear(bias):
    torch.manual_seed(0)
    ours = CyclicLinear(6, 4, bias)
    torch.manual_seed(0)
    theirs = nn.Linear(6, 4, bias)
    x = torch.randn(3, 7, 6)
    assert torch.equal(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert (ours.in_features, ours.out_features) == (6, 4)


def test_device_and_dtype_are_torchs_arguments():
    layer = CyclicLinear(Dim([2, 4]), 3, device="meta", dtype=torch.float64)
    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.float64)


def test_a_shared_dim_ties_two_layers():
    hidden = Dim([4, 8])
    first, second = CyclicLinear(3, hidden), CyclicLinear(hidden, 2)
    hidden.active = 4
    assert second(first(torch.randn(5, 3))).shape == (5, 2)


def test_the_largest_subnet_is_bit_equal_to_the_full_layer_and_needs_no_copy():
    layer = randomize(CyclicLinear(Dim([3, 5, 8]), Dim([2, 4, 6])))
    weights = layer.active_weights()
    assert weights["weight"] is layer.weight
    x = torch.randn(4, 8)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_an_input_of_another_width_is_refused_with_the_name_of_the_dimension():
    layer = CyclicLinear(Dim([4, 8], name="embed_dim"), 3)
    with pytest.raises(ShapeError, match=r"embed_dim: expected 8 channels along axis -1, got shape \(2, 4\)"):
        layer(torch.randn(2, 4))
    with pytest.raises(ShapeError, match=r"embed_dim: expected 8 channels along axis -1, got shape \(\)"):
        layer(torch.tensor(1.0))


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "8", None])
def test_channels_that_are_no_positive_int_are_refused(wrong):
    with pytest.raises(ChoiceError, match=r"in_features|positive"):
        CyclicLinear(wrong, 3)

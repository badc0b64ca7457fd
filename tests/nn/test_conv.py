import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract import Contract
from vitas import ChoiceError, Dim
from vitas.errors import ShapeError
from vitas.nn.conv import ElasticConv2d


class TestElasticConv2d(Contract):
    tokens = 4 * 4

    def build(self, sharing):
        i, o = Dim([2, 3, 5], sharing=sharing), Dim([1, 4, 6], sharing=sharing)
        return ElasticConv2d(i, o, 3, stride=2, padding=1), [i, o]

    def inputs(self, layer):
        return torch.randn(2, layer.in_dim.active, 8, 8)

    def reference(self, layer, x):
        rows, columns = layer.out_dim.channels(), layer.in_dim.channels()
        return F.conv2d(x, layer.weight[rows][:, columns], layer.bias[rows], stride=2, padding=1)


class TestDepthwiseConv2d(Contract):
    tokens = 8 * 8

    def build(self, sharing):
        dim = Dim([2, 3, 5], sharing=sharing)
        return ElasticConv2d(dim, dim, 3, padding=1, groups=dim, padding_mode="reflect"), [dim]

    def inputs(self, layer):
        return torch.randn(2, layer.in_dim.active, 8, 8)

    def reference(self, layer, x):
        used = layer.in_dim.channels()
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, layer.weight[used], layer.bias[used], groups=len(used))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2}, {"padding": "same", "dilation": 2}, {"bias": False}])
def test_with_ints_it_is_torchs_convolution(options):
    ours, theirs = ElasticConv2d(4, 6, 3, **options), nn.Conv2d(4, 6, 3, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.export()(x), theirs(x))


def test_groups_that_searchable_channels_cannot_have_are_refused():
    dim = Dim([2, 4])
    with pytest.raises(ChoiceError, match="groups"):
        ElasticConv2d(dim, dim, 3, groups=2)
    with pytest.raises(ChoiceError, match="groups"):
        ElasticConv2d(dim, Dim([2, 4]), 3, groups=dim)


def test_an_input_of_other_channels_is_refused():
    with pytest.raises(ShapeError, match="expected 4 channels"):
        ElasticConv2d(Dim([2, 4]), 3, 1)(torch.randn(1, 2, 5, 5))

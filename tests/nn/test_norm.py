import pytest
import torch
from torch import nn

from tests.contract import Contract
from vitas import Dim
from vitas.errors import ShapeError
from vitas.nn.norm import ElasticLayerNorm, LayerScale


class TestElasticLayerNorm(Contract):
    def build(self, sharing):
        dim = Dim([2, 3, 4, 7], sharing=sharing)
        return ElasticLayerNorm(dim), [dim]

    def inputs(self, layer):
        return torch.randn(2, 5, layer.dim.active)

    def reference(self, layer, x):
        z = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + layer.eps).sqrt()
        used = layer.dim.channels()
        return z * layer.weight[used] + layer.bias[used]


class TestLayerScale(Contract):
    def build(self, sharing):
        dim = Dim([1, 3, 4], sharing=sharing)
        return LayerScale(dim, 0.1), [dim]

    def inputs(self, layer):
        return torch.randn(2, 5, layer.dim.active)

    def reference(self, layer, x):
        return x * layer.gamma[layer.dim.channels()]


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}, {"bias": False}, {"elementwise_affine": False}])
def test_with_ints_it_is_torchs_layer_norm(options):
    ours, theirs = ElasticLayerNorm(6, **options), nn.LayerNorm(6, **options)
    x = torch.randn(3, 6)
    assert torch.equal(ours(x), theirs(x))
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("options", [{"bias": False}, {"elementwise_affine": False}])
def test_norms_without_bias_or_gain_export(options):
    dim = Dim([3, 6])
    layer = ElasticLayerNorm(dim, **options)
    dim.active = 3
    x = torch.randn(2, 3)
    assert torch.equal(layer(x), layer.export()(x))


@pytest.mark.parametrize("layer", [ElasticLayerNorm, LayerScale])
def test_an_input_of_another_width_is_refused(layer):
    with pytest.raises(ShapeError, match="expected 4 channels"):
        layer(Dim([2, 4]))(torch.randn(2, 3))

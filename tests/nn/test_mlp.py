import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract import Contract
from vitas import Choice, Dim
from vitas.nn.mlp import ElasticMlp


class TestElasticMlp(Contract):
    tokens = 5

    def build(self, sharing):
        dim, hidden = Dim([3, 6], sharing=sharing), Dim([2, 5, 8], sharing=sharing)
        return ElasticMlp(dim, hidden), [dim, hidden]

    def inputs(self, layer):
        return torch.randn(2, 5, layer.fc1.in_dim.active)

    def reference(self, layer, x):
        d, h = layer.fc1.in_dim.channels(), layer.fc1.out_dim.channels()
        x = F.gelu(F.linear(x, layer.fc1.weight[h][:, d], layer.fc1.bias[h]))
        return F.linear(x, layer.fc2.weight[d][:, h], layer.fc2.bias[d])


class TestElasticMlpByRatio(TestElasticMlp):
    def build(self, sharing):
        dim, ratio = Dim([4, 6], sharing=sharing), Choice([1.5, 2.0])
        return ElasticMlp(dim, ratio * dim), [dim, ratio]

    def test_hidden_width_is_the_rounded_down_product(self):
        layer, (dim, ratio) = self.build("cyclic")
        dim.active, ratio.active = 4, 1.5
        assert layer.export().fc1.out_features == 6


@pytest.mark.extras
def test_with_ints_it_is_timms_mlp():
    from timm.layers import Mlp

    ours, theirs = ElasticMlp(6, 12, act_layer=nn.ReLU), Mlp(6, 12, act_layer=nn.ReLU)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 6)
    assert torch.equal(ours(x), theirs(x))


def test_dropout_is_kept_by_the_export():
    plain = ElasticMlp(Dim([2, 4]), 8, drop=0.25).export()
    assert (plain.drop1.p, plain.drop2.p) == (0.25, 0.25)

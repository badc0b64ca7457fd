import pytest
import torch
import torch.nn.functional as F

from tests.contract import Contract, randomize
from tests.nn.test_attention import attend, part
from vitas import Choice, ChoiceError, Dim, VitasError
from vitas.cost.expression import Cost, Map
from vitas.errors import ShapeError
from vitas.nn.layer import exported
from vitas.nn.subsampled import ElasticSubsampledAttention


class SubsampledContract(Contract):
    tokens = Map(5, 4)  # a ratio of 2 leaves out the last row

    def inputs(self, layer):
        return torch.randn(2, 5, 4, layer.dim.active)

    def qkv(self, layer, x, coarse):
        d, rows = layer.dim.channels(), layer.qkv_dim.channels()
        q = F.linear(x, *part(layer.q, 0, rows, d))
        return q, *(F.linear(coarse, *part(layer.kv, number, rows, d)) for number in range(2))

    def reference(self, layer, x):
        d, rows, ratio = layer.dim.channels(), layer.qkv_dim.channels(), layer.sr_ratio
        coarse = x.flatten(1, 2)
        if ratio > 1:
            patches = [
                x[:, top : top + ratio, left : left + ratio].flatten(1)
                for top in range(0, 5 - ratio + 1, ratio)
                for left in range(0, 4 - ratio + 1, ratio)
            ]
            weight = layer.sr.weight[d][:, d].permute(0, 2, 3, 1).flatten(1)
            coarse = torch.stack(patches, dim=1) @ weight.T + layer.sr.bias[d]
            centred = coarse - coarse.mean(-1, keepdim=True)
            coarse = centred / (centred.square().mean(-1, keepdim=True) + layer.norm.eps).sqrt()
            coarse = coarse * layer.norm.weight[d] + layer.norm.bias[d]
        out = attend(*self.qkv(layer, x.flatten(1, 2), coarse), layer.num_heads.active)
        return F.linear(out, layer.proj.weight[d][:, rows], layer.proj.bias[d]).view(2, 5, 4, -1)


class TestSearchedWidth(SubsampledContract):
    def build(self, sharing):
        dim, heads, qkv = Dim([6, 8], sharing=sharing), Choice([2, 4]), Dim([4, 8, 12], sharing=sharing)
        return ElasticSubsampledAttention(dim, heads, 2, qkv_dim=qkv), [dim, heads, qkv]


class TestWithoutSubsampling(SubsampledContract):
    def build(self, sharing):
        dim, heads = Dim([6, 8], sharing=sharing), Dim([1, 2], sharing=sharing)
        return ElasticSubsampledAttention(dim, heads, head_dim=4), [dim, heads]


class TestPrivateQK(SubsampledContract):
    def build(self, sharing):
        dim, heads, qkv = Dim([6, 8], sharing=sharing), Choice([2, 4]), Dim([4, 8], sharing=sharing)
        return ElasticSubsampledAttention(dim, heads, 2, qkv_dim=qkv, private="qk"), [dim, heads, qkv]

    def qkv(self, layer, x, coarse):
        d, rows, count = layer.dim.channels(), layer.qkv_dim.channels(), str(layer.num_heads.active)
        q = F.linear(x, *part(layer.q[count], 0, rows, d))
        return q, F.linear(coarse, *part(layer.kv.k[count], 0, rows, d)), F.linear(coarse, *part(layer.kv.v, 0, rows, d))


class TestPrivateV(SubsampledContract):
    def build(self, sharing):
        dim, heads, qkv = Dim([6, 8], sharing=sharing), Choice([2, 4]), Dim([4, 8], sharing=sharing)
        return ElasticSubsampledAttention(dim, heads, 1, qkv_dim=qkv, private="v"), [dim, heads, qkv]

    def qkv(self, layer, x, coarse):
        d, rows, count = layer.dim.channels(), layer.qkv_dim.channels(), str(layer.num_heads.active)
        q = F.linear(x, *part(layer.q, 0, rows, d))
        return q, F.linear(coarse, *part(layer.kv.k, 0, rows, d)), F.linear(coarse, *part(layer.kv.v[count], 0, rows, d))


@pytest.mark.extras
@pytest.mark.parametrize(("ratio", "size"), [(1, (7, 7)), (2, (14, 14)), (2, (5, 9)), (8, (8, 17))])
def test_with_ints_it_is_timms_attention_at_any_size(ratio, size):
    from timm.models.twins import GlobalSubSampleAttn

    theirs = randomize(GlobalSubSampleAttn(12, 3, sr_ratio=ratio).double())
    ours = ElasticSubsampledAttention(12, 3, ratio).double()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    expected = theirs(x.flatten(1, 2), size).view_as(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exported(ours)(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours(x.flatten(1, 2), size), ours(x).flatten(1, 2))  # timm's call


@pytest.mark.parametrize("ratio", [0, -2, 2.0, True, "2"])
def test_ratios_that_are_not_positive_ints_are_refused(ratio):
    with pytest.raises(ChoiceError, match="sr_ratio: expected a positive int"):
        ElasticSubsampledAttention(8, 2, ratio)


def test_its_cost_needs_a_map():
    with pytest.raises(VitasError, match=r"vitas.cost.Map\(height, width\)"):
        ElasticSubsampledAttention(8, 2).cost(Cost(49))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 16, 8), r"expected shape \(batch, height, width, 8\), got \(2, 16, 8\)"),
        ((2, 5, 3, 8), r"sides of at least 4, got \(2, 5, 3, 8\)"),
        ((2, 3, 5, 8), r"sides of at least 4, got \(2, 3, 5, 8\)"),
    ],
)
def test_an_input_that_is_no_map_or_too_small_is_refused(shape, message):
    with pytest.raises(ShapeError, match=message):
        ElasticSubsampledAttention(8, 2, 4)(torch.randn(shape))

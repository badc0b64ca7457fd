import pytest
import torch
import torch.nn.functional as F

from tests.contract import Contract, randomize
from tests.nn.test_attention import attend, part
from vitas import Choice, ChoiceError, Dim, VitasError
from vitas.cost.expression import Cost, Map
from vitas.errors import ShapeError
from vitas.nn.layer import exported
from vitas.nn.window import ElasticWindowAttention


def windows(x, side):
    """Yield every window of the padded map with where it stands, one by one."""
    height, width = x.shape[1:3]
    padded = torch.zeros(x.shape[0], -(-height // side) * side, -(-width // side) * side, x.shape[3], dtype=x.dtype)
    padded[:, :height, :width] = x
    for top in range(0, padded.shape[1], side):
        for left in range(0, padded.shape[2], side):
            yield top, left, padded[:, top : top + side, left : left + side].reshape(x.shape[0], side * side, -1)


class WindowContract(Contract):
    tokens = Map(5, 4)  # windows of 3 leave a padding of 1 and 2

    def inputs(self, layer):
        return torch.randn(2, 5, 4, layer.dim.active)

    def qkv(self, layer, x):
        d, rows = layer.dim.channels(), layer.qkv_dim.channels()
        return (F.linear(x, *part(layer.qkv, number, rows, d)) for number in range(3))

    def reference(self, layer, x):
        d, rows, side = layer.dim.channels(), layer.qkv_dim.channels(), layer.window_size.active
        gathered = torch.zeros(2, 5 + side, 4 + side, len(rows), dtype=x.dtype)
        for top, left, tokens in windows(x, side):
            out = attend(*self.qkv(layer, tokens), layer.num_heads.active)
            gathered[:, top : top + side, left : left + side] = out.reshape(2, side, side, -1)
        return F.linear(gathered[:, :5, :4], layer.proj.weight[d][:, rows], layer.proj.bias[d])


class TestSearchedWidth(WindowContract):
    def build(self, sharing):
        dim, heads, qkv = Dim([6, 8], sharing=sharing), Choice([2, 4]), Dim([4, 8, 12], sharing=sharing)
        return ElasticWindowAttention(dim, heads, 3, qkv_dim=qkv), [dim, heads, qkv]


class TestHeadsDecideTheWidthAndTheWindowIsSearched(WindowContract):
    def build(self, sharing):
        dim, heads, window = Dim([6, 8], sharing=sharing), Dim([1, 2], sharing=sharing), Choice([2, 3, 6])
        return ElasticWindowAttention(dim, heads, window, head_dim=4), [dim, heads, window]


class TestPrivateQK(WindowContract):
    def build(self, sharing):
        dim, heads, qkv = Dim([6, 8], sharing=sharing), Choice([2, 4]), Dim([4, 8], sharing=sharing)
        return ElasticWindowAttention(dim, heads, 3, qkv_dim=qkv, private="qk"), [dim, heads, qkv]

    def qkv(self, layer, x):
        d, rows = layer.dim.channels(), layer.qkv_dim.channels()
        own = layer.qkv.qk[str(layer.num_heads.active)]
        return (
            F.linear(x, *part(own, 0, rows, d)),
            F.linear(x, *part(own, 1, rows, d)),
            F.linear(x, *part(layer.qkv.v, 0, rows, d)),
        )


@pytest.mark.extras
@pytest.mark.parametrize(("side", "size"), [(7, (14, 14)), (7, (15, 9)), (4, (3, 2)), (3, (3, 7))])
def test_with_ints_it_is_timms_attention_at_any_size(side, size):
    from timm.models.twins import LocallyGroupedAttn

    theirs = randomize(LocallyGroupedAttn(12, 3, ws=side).double())
    ours = ElasticWindowAttention(12, 3, side).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    expected = theirs(x.flatten(1, 2), size).view_as(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(exported(ours)(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours(x.flatten(1, 2), size), ours(x).flatten(1, 2))  # timm's call


def test_no_window_sees_another():
    layer = randomize(ElasticWindowAttention(8, 2, 3))
    x = torch.randn(1, 6, 6, 8, requires_grad=True)
    layer(x)[0, 1, 4].sum().backward()  # in the window of rows 0..2 and columns 3..5
    seen = x.grad[0].abs().sum(-1) > 0
    assert seen[:3, 3:].all()
    assert seen.sum() == 9


@pytest.mark.parametrize("window", [0, -7, 2.5, True, "7"])
def test_windows_that_are_not_positive_ints_are_refused(window):
    with pytest.raises(ChoiceError, match="window_size"):
        ElasticWindowAttention(8, 2, window)


def test_its_cost_needs_a_map():
    with pytest.raises(VitasError, match=r"vitas.cost.Map\(height, width\)"):
        ElasticWindowAttention(8, 2).cost(Cost(49))


@pytest.mark.parametrize("shape", [(2, 49, 49), (49, 49), (1, 2, 7, 7, 49)])
def test_an_input_that_is_no_map_is_refused(shape):
    with pytest.raises(ShapeError, match=r"expected shape \(batch, height, width, 49\), got \("):
        ElasticWindowAttention(49, 7)(torch.randn(shape))

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from tests.contract import Contract, randomize
from vitas import Choice, ChoiceError, Dim
from vitas.errors import ShapeError
from vitas.nn.attention import ElasticAttention
from vitas.nn.private import Private


def attend(q, k, v, heads):
    """Plain attention in the textbook's form, with the true head width in the scale; (B, N, d) each."""
    B, N, d = q.shape
    q, k, v = (t.view(B, -1, heads, d // heads).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / (d // heads) ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, N, d)


def part(layer, number, rows, columns):
    """One of the stacked weights, cut by indexing."""
    size = layer.out_dim.largest
    weight, bias = layer.weight[number * size : (number + 1) * size], layer.bias[number * size : (number + 1) * size]
    return weight[rows][:, columns], bias[rows]


class AttentionContract(Contract):
    tokens = 5

    def inputs(self, layer):
        return torch.randn(2, 5, layer.dim.active)


class TestFixedHeadDim(AttentionContract):
    def build(self, sharing):
        dim, heads = Dim([6, 8], sharing=sharing), Dim([1, 2, 3], sharing=sharing)
        return ElasticAttention(dim, heads, head_dim=4), [dim, heads]

    def reference(self, layer, x):
        d, rows = layer.dim.channels(), layer.qkv_dim.channels()
        q, k, v = (F.linear(x, *part(layer.qkv, number, rows, d)) for number in range(3))
        x = attend(q, k, v, layer.num_heads.active)
        return F.linear(x, layer.proj.weight[d][:, rows], layer.proj.bias[d])


class TestSearchedWidth(TestFixedHeadDim):
    def build(self, sharing):
        dim, heads, qkv = Dim([6, 8], sharing=sharing), Choice([2, 4]), Dim([4, 8, 12], sharing=sharing)
        return ElasticAttention(dim, heads, qkv_dim=qkv), [dim, heads, qkv]


class TestPrivateQK(AttentionContract):
    def build(self, sharing):
        dim, heads, qkv = Dim([6, 8], sharing=sharing), Choice([2, 4]), Dim([4, 8, 12], sharing=sharing)
        return ElasticAttention(dim, heads, qkv_dim=qkv, private="qk"), [dim, heads, qkv]

    def reference(self, layer, x):
        d, rows = layer.dim.channels(), layer.qkv_dim.channels()
        own = layer.qkv.qk[str(layer.num_heads.active)]
        q, k = (F.linear(x, *part(own, number, rows, d)) for number in range(2))
        v = F.linear(x, *part(layer.qkv.v, 0, rows, d))
        x = attend(q, k, v, layer.num_heads.active)
        return F.linear(x, layer.proj.weight[d][:, rows], layer.proj.bias[d])

    def test_copies_of_other_head_counts_get_no_gradient(self):
        layer, (_, heads, _) = self.build("cyclic")
        heads.active = 2
        layer(self.inputs(layer)).sum().backward()
        assert all(parameter.grad is not None for parameter in layer.qkv.qk["2"].parameters())
        assert all(parameter.grad is None for parameter in layer.qkv.qk["4"].parameters())


class TestPrivateV(AttentionContract):
    def build(self, sharing):
        dim, heads, qkv = Dim([6, 8], sharing=sharing), Choice([2, 4]), Dim([4, 12], sharing=sharing)
        return ElasticAttention(dim, heads, qkv_dim=qkv, private="v", qkv_bias=False), [dim, heads, qkv]

    def reference(self, layer, x):
        d, rows = layer.dim.channels(), layer.qkv_dim.channels()
        size = layer.qkv_dim.largest
        q, k = (F.linear(x, layer.qkv.qk.weight[n * size : (n + 1) * size][rows][:, d]) for n in range(2))
        v = F.linear(x, layer.qkv.v[str(layer.num_heads.active)].weight[rows][:, d])
        x = attend(q, k, v, layer.num_heads.active)
        return F.linear(x, layer.proj.weight[d][:, rows], layer.proj.bias[d])


class TestPrivateQKWithFixedHeadDim(AttentionContract):
    def build(self, sharing):
        dim, heads = Dim([6, 8], sharing=sharing), Dim([1, 2, 3], sharing=sharing)
        return ElasticAttention(dim, heads, head_dim=4, private="qk"), [dim, heads]

    def reference(self, layer, x):
        d, rows = layer.dim.channels(), layer.qkv_dim.channels()
        own = layer.qkv.qk[str(layer.num_heads.active)]  # has just the rows that its head count needs
        q, k = (F.linear(x, *part(own, number, torch.arange(4 * layer.num_heads.active), d)) for number in range(2))
        v = F.linear(x, *part(layer.qkv.v, 0, rows, d))
        x = attend(q, k, v, layer.num_heads.active)
        return F.linear(x, layer.proj.weight[d][:, rows], layer.proj.bias[d])


class TestQKNorm(AttentionContract):
    def build(self, sharing):
        dim, heads = Dim([6, 8], sharing=sharing), Dim([1, 2], sharing=sharing)
        return ElasticAttention(dim, heads, head_dim=4, qk_norm=True), [dim, heads]

    def reference(self, layer, x):
        d, rows = layer.dim.channels(), layer.qkv_dim.channels()
        q, k, v = (F.linear(x, *part(layer.qkv, number, rows, d)) for number in range(3))
        q = layer.q_norm(q.unflatten(-1, (-1, 4))).flatten(-2)
        k = layer.k_norm(k.unflatten(-1, (-1, 4))).flatten(-2)
        x = attend(q, k, v, layer.num_heads.active)
        return F.linear(x, layer.proj.weight[d][:, rows], layer.proj.bias[d])


@pytest.mark.extras
@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
def test_with_ints_it_is_timms_attention(options):
    from timm.layers import Attention

    theirs = randomize(Attention(12, 3, qkv_bias=True, **options, norm_layer=torch.nn.LayerNorm).double())
    ours = ElasticAttention(12, 3, **options).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    assert list(ElasticAttention(12, 3, qkv_bias=False).state_dict()) == list(Attention(12, 3).state_dict())


def test_fewer_heads_are_the_larger_subnet_with_the_other_heads_masked():
    heads = Dim([1, 2, 3, 4], sharing="ordinal")
    layer = randomize(ElasticAttention(16, heads, head_dim=4).double())
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    v = F.linear(x, *part(layer.qkv, 2, torch.arange(16), torch.arange(16)))
    q, k = (F.linear(x, *part(layer.qkv, number, torch.arange(16), torch.arange(16))) for number in range(2))
    for count in heads.values:
        heads.active = count
        masked = attend(q, k, v, 4) * (torch.arange(16) < 4 * count)
        expected = F.linear(masked, layer.proj.weight, layer.proj.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_a_row_serves_only_one_of_q_k_v_in_every_subnet():
    dim, heads, qkv = Dim([8]), Choice([2, 4]), Dim([4, 8, 12])
    layer = ElasticAttention(dim, heads, qkv_dim=qkv)
    x = torch.randn(1, 3, 8)
    for width in qkv.values:
        qkv.active = width
        layer.zero_grad(set_to_none=True)
        layer(x).sum().backward()
        rows = layer.qkv.weight.grad.view(3, 12, 8).abs().sum(-1) > 0
        assert torch.equal(rows[2].nonzero().flatten(), qkv.channels().sort().values)
        assert torch.equal(rows[0], rows[2])


def test_heads_that_do_not_divide_the_width_are_refused_when_built():
    with pytest.raises(ChoiceError, match=r"5 heads do not divide a qkv_dim of 12; these divide every width: 1, 2, 3, 4, 6"):
        ElasticAttention(8, Choice([2, 5]), qkv_dim=Dim([12, 24]))
    with pytest.raises(ChoiceError, match="3 heads do not divide 8 channels"):
        ElasticAttention(8, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 4, "qkv_dim": 8}, "head_dim .* or qkv_dim, not both"),
        ({"private": "kq"}, "private: expected one of qk, v, got 'kq'"),
        ({"qkv_dim": Dim([4, 8]), "qk_norm": True}, "qk_norm: needs heads of one width"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ChoiceError, match=message):
        ElasticAttention(8, Choice([2, 4]), **options)


def test_private_copies_for_a_single_head_count_are_refused():
    with pytest.raises(ChoiceError, match="more than one"):
        ElasticAttention(8, 2, private="qk")


def test_a_foreign_checkpoint_notices_another_private_copy():
    choice = Choice([1, 2])
    layer = randomize(Private(choice, lambda value: torch.nn.Linear(4, 4)))
    choice.active = 1
    out = checkpoint(lambda x: layer(x).tanh(), torch.randn(2, 4, requires_grad=True), use_reentrant=False)
    choice.active = 2
    with pytest.raises(RuntimeError, match="different metadata"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("heads", "options"),
    [(0, {}), (2.0, {}), (Choice([0, 2]), {"qkv_dim": 8}), (2, {"head_dim": 4.0}), (2, {"head_dim": 0})],
)
def test_heads_and_head_widths_that_are_no_positive_ints_are_refused(heads, options):
    with pytest.raises(ChoiceError, match="expected a positive int"):
        ElasticAttention(8, heads, **options)


@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 4, 8)])
def test_an_input_with_other_axes_is_refused(shape):
    with pytest.raises(ShapeError, match=r"embed_dim: expected shape \(batch, tokens, 8\), got \("):
        ElasticAttention(Dim([4, 8], name="embed_dim"), 2)(torch.randn(shape))


@pytest.mark.parametrize("choice", [[1, 2], 2, Choice([1.5, 2.0])])
def test_private_copies_are_for_the_values_of_a_choice_of_ints(choice):
    with pytest.raises(ChoiceError, match="private copies need a choice of ints, got"):
        Private(choice, lambda value: torch.nn.Linear(2, 2))


@pytest.mark.parametrize("private", ["qk", "v"])
def test_pruned_parts_that_are_joined_into_one_weight_are_what_they_are_now(private):
    layer = randomize(ElasticAttention(8, Choice([2, 4]), qkv_dim=Dim([4, 8]), private=private))
    x, shared = torch.randn(2, 5, 8), layer.qkv.v if private == "qk" else layer.qkv.qk
    prune.l1_unstructured(shared, "weight", 0.5)
    before = layer(x)
    with torch.no_grad():
        shared.weight_orig.mul_(3)
    assert not torch.allclose(layer(x), before)
    layer(x).sum().backward()
    assert shared.weight_orig.grad.count_nonzero() <= shared.weight_mask.count_nonzero()
    export = layer.export()
    assert torch.equal(export(x), layer(x))

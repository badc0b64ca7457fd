"""fvcore's count of a subnet equals ours, whatever runs; wrapped timm models are counted in tests/wrapping too."""

import copy
import itertools
import logging
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract import macs, randomize
from tests.cost.test_cost import SIZES, Own, dividing, generator_of
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import (
    ChoiceError,
    VitasError,
    active_subnet,
    count_flops,
    create_superformer,
    export_subnet,
    flop_analysis,
    sample_subnet,
    search_space,
)


def unfused(q, k, v, dropout_p=0.0):
    """Attention in matrix products that every counter sees."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v


def fvcores_own_count(network, x, monkeypatch):
    """Return the count by fvcore's handles alone, of a network with unfused attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore imports torch.jit and asks tensors for their truth while tracing
        from fvcore.nn import FlopCountAnalysis

        monkeypatch.setattr(F, "scaled_dot_product_attention", unfused)
        analysis = FlopCountAnalysis(network.eval(), x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts = analysis.by_operator()
    monkeypatch.undo()
    return {word: counts[word] for word in ("linear", "conv", "matmul")}


def assert_counts_are_fvcores(name, subnets, size, seed, **options):
    model = create_superformer(name, img_size=size, num_classes=11, **options)
    space, generator = search_space(model), generator_of(seed)
    for _ in range(subnets):
        subnet = space.sample(generator)
        count, analysis = count_flops(model, subnet), flop_analysis(model, subnet)
        assert analysis.total() == count.total, (name, size, subnet)
        assert analysis.by_operator() == Counter(count.by_operator), (name, size, subnet)


FAST = [
    ("deit_micro", 32, {}),
    ("deit_micro", 64, {"distilled": True}),
    ("deit_micro", (8, 24), {"global_pool": "avg", "qk_norm": False}),
    ("autoformer_tiny", 64, {}),
    ("vitas_deit", 64, {"patch_size": [16, 32]}),
    ("twins_micro", 32, {}),
    ("vitas_twins", 32, {}),
]


@pytest.mark.parametrize(("name", "size", "options"), FAST)
def test_counts_by_operator_are_fvcores(name, size, options):
    assert_counts_are_fvcores(name, 1 if name == "vitas_twins" else 2, size, 0, **options)


@pytest.mark.heavy
@pytest.mark.parametrize(("size", "subnets"), [(224, 5), (96, 8)])  # fvcore runs the network
@pytest.mark.parametrize("name", SIZES)
def test_counts_by_operator_are_fvcores_on_many_subnets(name, size, subnets):
    options = dividing(name, size) | ({"patch_size": [8, 16]} if name == "deit_micro" else {})
    assert_counts_are_fvcores(name, subnets, size, 1, **options)


@pytest.mark.parametrize(
    "options", [{}, {"distilled": True}, {"global_pool": "avg"}, {"init_values": 0.1}, {"num_classes": 0}]
)
def test_counts_of_every_patch_size_and_head_count(options):
    model = small(**options)
    space = search_space(model)
    for patch, heads in itertools.product([2, 4], [1, 2]):
        subnet = {**space.largest(), "patch_size": patch, "blocks.1.num_heads": heads}
        assert flop_analysis(model, subnet).total() == count_flops(model, subnet).total


@pytest.mark.parametrize(
    "options", [{"qk_norm": True, "qkv_dim": None, "private": None}, {"private": "v"}, {"shift": False}]
)
def test_counts_with_other_attention(options):
    model = small(**options)
    for seed in range(3):
        subnet = sample_subnet(model, generator=generator_of(seed))
        assert flop_analysis(model, subnet).by_operator() == Counter(count_flops(model).by_operator)


def test_counts_of_windows_that_do_not_fill_the_map():
    model = small_twins()
    for seed in range(5):
        subnet = sample_subnet(model, generator=generator_of(seed))
        assert flop_analysis(model, subnet).by_operator() == Counter(count_flops(model).by_operator)


@pytest.mark.parametrize("make", [small, small_twins])
def test_the_handles_of_fused_attention_count_what_fvcore_counts_unfused(make, monkeypatch):
    model = make()
    sample_subnet(model, generator=generator_of(0))
    x = torch.zeros(1, *model.image_shape())
    assert flop_analysis(model).by_operator() == Counter(fvcores_own_count(export_subnet(model), x, monkeypatch))


def test_it_stands_for_its_subnet_whatever_becomes_active_later():
    from fvcore.nn import flop_count_str, flop_count_table

    model = small()
    space = search_space(model)
    space.activate(space.smallest())
    analysis, count = flop_analysis(model), count_flops(model)
    space.activate(space.largest())
    analysis.set_op_handle("aten::gelu", None)  # asks fvcore to run it again
    by_module = analysis.by_module()
    assert by_module[""] == analysis.total() == count.total
    attention = {path: n for path, n in count.by_module.items() if path.startswith("blocks.0.attn")}
    assert by_module["blocks.0.attn"] == sum(attention.values())
    assert by_module["patch_embed"] == sum(n for path, n in count.by_module.items() if path.startswith("patch_embed"))
    assert by_module["head"] == count.by_module["head"]
    assert not by_module["norm"]
    assert "blocks.1" not in by_module
    table, text = flop_count_table(analysis, max_depth=1), flop_count_str(analysis)
    head = next(line for line in table.splitlines() if " head " in line)
    assert f"#flops: {count.by_module['head']}" in text
    assert head.split("|")[2].strip() == str(4 * 5 + 5)


def test_what_is_not_counted_is_told_and_nothing_is_said_unasked(caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        analysis = flop_analysis(small(global_pool="avg", init_values=0.1))
    assert set(analysis.unsupported_ops()) >= {"aten::layer_norm", "aten::gelu", "aten::add", "aten::mul", "aten::mean"}
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_model_modes_gradients_and_random_numbers_are_left_alone():
    model = randomize(small(proj_drop_rate=0.1, drop_path_rate=0.1)).train()
    model.blocks.eval()
    subnet = sample_subnet(model, generator=generator_of(1))
    modes, weights = [part.training for part in model.modules()], copy.deepcopy(model.state_dict())
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    random, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    flop_analysis(model, search_space(model).smallest()).by_module()
    assert active_subnet(model) == subnet
    assert [part.training for part in model.modules()] == modes
    assert [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()] == hooks
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("wrapper", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_through_wrappers_and_in_any_mode_of_autograd(wrapper, around):
    model = small()
    sample_subnet(model, generator=generator_of(4))
    with around():
        assert flop_analysis(wrapper(model)).total() == count_flops(model).total
    assert flop_analysis(model.double()).total() == count_flops(model).total


def test_a_model_without_choices_and_plain_networks():
    model = create_superformer(
        "deit_micro", img_size=16, patch_size=4, embed_dim=64, depth=2, num_heads=2, qkv_dim=32, mlp_dim=64
    )
    x = torch.randn(3, 3, 16, 16)
    for subnet in (None, {}):
        assert flop_analysis(model, subnet).total() == count_flops(model, subnet).total
    plain = export_subnet(model)
    assert flop_analysis(plain, inputs=x).total() == 3 * count_flops(model).total == macs(plain, x)
    with pytest.raises(ChoiceError, match="no choices"):
        flop_analysis(model, {"depth": 1})


# -- users' own models -------------------------------------------------------------------------------------------------


def test_a_model_of_ones_own():
    model = Own().train()
    search_space(model).activate({"width": 4, "hidden": 3})
    for width, hidden in itertools.product([2, 4], [3, 6]):
        subnet, x = {"width": width, "hidden": hidden}, torch.randn(3, 2, 4, 6)
        count, analysis = count_flops(model, subnet, inputs=(x, 2.0)), flop_analysis(model, subnet, inputs=(x, 2.0))
        assert analysis.total() == count.total
        assert {path: n for path, n in analysis.by_module().items() if path in count.by_module} == count.by_module
    assert active_subnet(model) == {"width": 4, "hidden": 3}


class Products(nn.Module):
    """Matrix products of many kinds, which fvcore sees under other names or counts wrongly by itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding="same", groups=2)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(6, 3, 5, batch_first=True)
        self.weight = nn.Parameter(torch.randn(5, 1, 6, 7))

    def forward(self, x):
        x = self.up(self.conv(x)).flatten(2)[..., :6]  # (B, 3, 6)
        x = self.encoder(self.attention(x, x, x)[0])
        wide = x @ self.weight  # (5, B, 3, 7)
        pairs = torch.einsum("abik, abjk -> abij", wide, wide[..., :2, :])
        gated = torch.einsum("...ij,...ij->...ij", wide, wide)  # a product of elements
        mixed = torch.einsum("...ij,...kj", wide, gated)
        last = torch.baddbmm(mixed.flatten(0, 1), mixed.flatten(0, 1), mixed.flatten(0, 1))
        row = torch.addmm(last.new_zeros(4), last[0], last.new_ones(3, 4)).mm(last.new_ones(4, 2))
        return pairs.sum() + last.sum() + row.sum() + (wide @ last.new_ones(7)).sum() * 0


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("images", [1, 2])
def test_products_of_many_kinds(frozen, images):
    model, x = Products().requires_grad_(not frozen).eval(), torch.randn(images, 2, 4, 4)
    conv, up = images * 16 * 4 * 1 * 9, images * 16 * 4 * 3 * 4
    attention = images * (4 * 3 * 6 * 6 + 2 * 3 * 3 * 6)
    encoder = attention + images * 2 * 3 * 6 * 5
    wide, vector = images * 5 * 3 * 6 * 7, images * 5 * 3 * 7
    pairs, mixed, last, row = images * 5 * 3 * 2 * 7, images * 5 * 3 * 3 * 7, images * 5 * 27, 3 * 3 * 4 + 3 * 4 * 2
    expected = conv + up + attention + encoder + wide + vector + pairs + mixed + last + row
    assert count_flops(model, inputs=x).total == flop_analysis(model, inputs=x).total() == expected


def test_a_stack_of_three_tensors_goes_fvcores_way():
    class Three(nn.Module):
        def forward(self, a, b, c):
            return torch.einsum("ij,jk,kl->il", a, b, c)

    assert flop_analysis(Three(), inputs=(torch.ones(2, 3), torch.ones(3, 4), torch.ones(4, 5))).total() == 24 + 40


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_mistakes_are_named():
    with pytest.raises(VitasError, match="inputs: Own does not know the size of its images; give it one as inputs="):
        flop_analysis(Own())
    with pytest.raises(ChoiceError, match="inputs: expected a tensor"):
        flop_analysis(small(), inputs=[None])
    with pytest.raises(ChoiceError, match="embed_dim"):
        flop_analysis(small(), {"embed_dim": 5})
    with pytest.raises(ChoiceError, match=r"expected a torch\.nn\.Module"):
        flop_analysis("model")
    with torch.device("meta"):
        model = small()
    with pytest.raises(VitasError, match="meta device"):
        flop_analysis(model)


def test_an_analysis_that_fails_leaves_the_model_and_torch_as_they_were():
    model = small().train()
    subnet = sample_subnet(model, generator=generator_of(0))
    with pytest.raises(ValueError, match="images"):
        flop_analysis(model, search_space(model).smallest(), inputs=torch.randn(1, 5, 4, 4))
    assert active_subnet(model) == subnet
    assert model.training
    assert not torch.jit.is_tracing()
    assert flop_analysis(model).total() == count_flops(model).total

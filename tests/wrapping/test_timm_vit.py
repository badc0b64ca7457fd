"""A timm model made searchable: same weights, same outputs, timm's methods, exact exports and counts."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import vitas
from tests.contract import macs, randomize, relative_error
from vitas import (
    ChoiceError,
    VitasError,
    activate_subnet,
    count_flops,
    count_params,
    export_report,
    export_subnet,
    flop_analysis,
    sample_subnet,
    search_space,
    use_subnet,
    wrap,
)
from vitas.errors import WrapError

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras

SMALL = {"depth": 3, "num_classes": 5}
# name -> what distinguishes it: (timm's name, arguments)
KINDS = {
    "vit": ("vit_tiny_patch16_224", {}),
    "deit": (
        "deit_tiny_patch16_224",
        {"drop_path_rate": 0.3, "drop_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1},
    ),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "layer scale": ("deit3_small_patch16_224", {"drop_path_rate": 0.2}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True}),
    "average": ("vit_medium_patch16_gap_240", {}),
    "pre-norm": ("vit_xsmall_patch16_clip_224", {}),
    "no pool": ("vit_tiny_patch16_224", {"global_pool": ""}),
    "max pool": ("vit_tiny_patch16_224", {"global_pool": "max", "pool_include_prefix": True}),
    "attention pool": ("test_vit3", {"num_heads": 6, "pool_include_prefix": False}),
    "post-norm": ("vit_base_patch16_rpn_224", {"embed_dim": 192, "num_heads": 3}),
    "gated MLP": ("vit_giant_patch14_dinov2", {"embed_dim": 128, "num_heads": 2}),
    "RMS norm": ("test_vit4", {}),
    "SwiGLU": ("aimv2_large_patch14_224", {"embed_dim": 128, "num_heads": 2}),
    "dynamic": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "no classifier": ("vit_tiny_patch16_224", {"num_classes": 0}),
    "bare": (
        "vit_tiny_patch16_224",
        {"class_token": False, "pos_embed": "none", "qkv_bias": False, "proj_bias": False, "global_pool": "avgmax"},
    ),
    "norm after patches": ("vit_tiny_patch16_224", {"embed_norm_layer": "layernorm", "patch_drop_rate": 0.25}),
}
if hasattr(timm.layers, "AttentionPoolPrr"):  # since timm 1.0.26
    KINDS["attention pool without weights"] = ("vit_tiny_patch16_224", {"global_pool": "prr", "num_heads": 6})
every_kind = pytest.mark.parametrize("kind", KINDS)


def patch_size(name):
    return int(name.partition("patch")[2][:2] or 16)


def original(kind="vit", **options):
    name, own = KINDS[kind]
    model = timm.create_model(name, **{**SMALL, "img_size": 2 * patch_size(name), **own, **options})
    return randomize(model).eval()


def images(model, n=2):
    return torch.randn(n, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(0))


def some(model, n, seed=0):
    """Activate the smallest subnet, then n - 1 random ones."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(n):
        yield sample_subnet(model, policy="random" if i else "smallest", generator=generator)


# -- the largest subnet is the model -----------------------------------------------------------------------------------


@every_kind
def test_the_largest_subnet_is_the_model_bit_by_bit(kind):
    model = original(kind)
    before = copy.deepcopy(model)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    x = images(model)
    assert torch.equal(wrapped(x), model(x))
    state, own = wrapped.state_dict(), model.state_dict()
    assert list(state) == list(own) == list(before.state_dict())
    assert all(torch.equal(state[name], own[name]) and torch.equal(own[name], before.state_dict()[name]) for name in own)
    assert type(model) is type(before)
    assert repr(model) == repr(before)
    for one in (model, wrapped):
        one.train()
    outputs = []
    for one in (model, wrapped):
        torch.manual_seed(3)
        out = one(x)
        outputs.append(out)
        out.square().sum().backward()
    assert torch.equal(*outputs)
    for (name, a), b in zip(wrapped.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@every_kind
def test_exports_are_timms_equal_the_active_path_and_cost_what_was_counted(kind):
    model = original(kind)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    x = images(model)
    for _ in some(wrapped, 6):
        export = export_subnet(wrapped)
        assert type(export) is type(model)
        assert {type(part) for part in export.modules()} <= {type(part) for part in model.modules()} | {nn.Identity}
        assert b"vitas" not in pickle.dumps(export)
        with torch.no_grad():
            assert relative_error(export(x), wrapped(x)) <= 1e-5
        assert count_params(wrapped) == sum(parameter.numel() for parameter in export.parameters())
        assert count_flops(wrapped).total == macs(export, x[:1])
    assert flop_analysis(wrapped).total() == count_flops(wrapped).total


def test_exports_are_exact_in_double_precision():
    wrapped = wrap(original("layer scale").double(), embed_dim="auto", depth="auto")
    x = images(wrapped).double()
    for _ in some(wrapped, 5):
        assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-12


@pytest.mark.parametrize("sharing", ["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"])
def test_every_sharing_pattern(sharing):
    wrapped = wrap(original(), embed_dim="auto", depth="auto", sharing=sharing)
    x = images(wrapped)
    for _ in some(wrapped, 6):
        assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5


@pytest.mark.parametrize("sharing", ["bilateral", "cyclic", "cyclic-chain"])
def test_a_subnet_is_the_slice_that_its_runs_say(sharing):
    """By hand, with timm's own attention: whole heads of q, k, v, and the columns of the projection."""
    wrapped = wrap(original(), embed_dim="auto", sharing=sharing)
    attn, norm, space = wrapped.blocks[0].attn, wrapped.blocks[0].norm1._parameters["weight"], search_space(wrapped)
    starts = []
    sides = ["left", "right"] if sharing == "bilateral" else [None]
    for side, embed_dim, heads in itertools.product(sides, (96, 144, 192), (1, 2, 3)):
        subnet = space.subnet({"embed_dim": embed_dim, "blocks.0.num_heads": heads}, fill="largest")
        with use_subnet(wrapped, subnet, side=side):
            export, width, inner = export_subnet(wrapped), wrapped._dims["w"].channels(), attn._dims["h d"].channels()
            start, length = wrapped._dims["w"].run
        starts.append(start if start + length <= 192 else 0)
        assert (len(width), len(inner), len(set((inner // 64).tolist()))) == (embed_dim, 64 * heads, heads)  # whole heads
        rows = torch.cat([inner, 192 + inner, 384 + inner])
        got = export.blocks[0].attn
        assert torch.equal(got.qkv.weight, attn.qkv.weight[rows][:, width])
        assert torch.equal(got.qkv.bias, attn.qkv.bias[rows])
        assert torch.equal(got.proj.weight, attn.proj.weight[width][:, inner])
        assert (got.num_heads, got.head_dim, got.attn_dim) == (heads, 64, 64 * heads)
        assert torch.equal(export.blocks[0].norm1.weight, norm[width])
        for name in ("cls_token", "pos_embed"):
            assert torch.equal(getattr(export, name), wrapped._parameters[name][..., width])
    assert any(starts)  # in the middle: else it would not be noticed that they are ignored


def test_only_what_is_active_gets_gradient():
    wrapped = wrap(original().double(), embed_dim="auto", depth="auto").train()
    for _ in some(wrapped, 4):
        wrapped.zero_grad(set_to_none=True)
        export = export_subnet(wrapped)
        x = images(wrapped).double()
        wrapped(x).square().sum().backward()
        export(x).square().sum().backward()
        for depth, block in enumerate(wrapped._modules["blocks"]):
            assert (block.norm1._parameters["weight"].grad is None) == (depth >= len(export.blocks))
        got = torch.cat([p.grad[p.grad != 0] for p in wrapped.parameters() if p.grad is not None])
        expected = torch.cat([p.grad[p.grad != 0] for p in export.parameters() if p.grad is not None])
        torch.testing.assert_close(got.sort().values, expected.sort().values, rtol=1e-9, atol=1e-12)


# -- choices -----------------------------------------------------------------------------------------------------------


def test_names_and_values_of_choices():
    wrapped = wrap(original(), embed_dim="auto", depth="auto")
    values = {name: choice.values for name, choice in search_space(wrapped).choices.items()}
    blocks = {f"blocks.{i}.num_heads": (1, 2, 3) for i in range(3)} | {
        f"blocks.{i}.mlp_dim": (192, 384, 576, 768) for i in range(3)
    }
    assert values == {"embed_dim": (96, 144, 192), "depth": (2, 3), **blocks}
    assert search_space(wrapped).size == 3 * (12**2 + 12**3)


def test_wrap_alone_makes_heads_and_mlp_searchable():
    assert search_space(wrap(original())).size == (3 * 4) ** 3


def test_values_as_people_type_them():
    wrapped = wrap(
        original(), embed_dim=["50%", 192], num_heads=["100%"], mlp_ratio=[0.5, 2, 4.0], depth=(1, 3), blocks=[0, 2]
    )
    values = {name: choice.values for name, choice in search_space(wrapped).choices.items()}
    assert values == {
        "embed_dim": (96, 192),
        "depth": (1, 3),
        "blocks.0.mlp_dim": (96, 384, 768),
        "blocks.2.mlp_dim": (96, 384, 768),
    }
    for _ in some(wrapped, 8):  # depth 1 and 3, nothing between
        assert len(wrapped.blocks) in (1, 3)
    ratios = np.array([2, 4], dtype=np.float32)
    wrapped = wrap(original(), num_heads=[" 33.3 % ", "66.67%", "100%"], mlp_ratio=ratios, blocks=np.arange(1))
    values = {name: choice.values for name, choice in search_space(wrapped).choices.items()}
    assert values == {"blocks.0.num_heads": (1, 2, 3), "blocks.0.mlp_dim": (384, 768)}


@pytest.mark.parametrize("kind", ["vit", "gated MLP", "SwiGLU"])
def test_an_mlp_ratio_means_what_timm_means(kind):
    wrapped = wrap(original(kind), mlp_ratio=[2, "100%"], num_heads=None)
    sample_subnet(wrapped, policy="smallest")
    export, timms = export_subnet(wrapped), original(kind, mlp_ratio=2)
    assert {name: p.shape for name, p in export.named_parameters()} == {
        name: p.shape for name, p in timms.named_parameters()
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": [1, 2]}, "the largest has to be the model's own 3"),
        ({"num_heads": [1, 4]}, r"ints in 1\.\.3"),
        ({"num_heads": ["50%", "100%"]}, "'50%' of 3 is no whole number; these are: 33.33%, 66.67%, 100%"),
        ({"num_heads": [0, 3]}, "got 0"),
        ({"num_heads": [1.5, 3]}, "got 1.5"),
        ({"num_heads": [True, 3]}, "got True"),
        ({"num_heads": [3.0]}, "got 3.0"),
        ({"num_heads": [1, 1, 3]}, "1 is given twice"),
        ({"num_heads": ["33%", "100%"]}, "'33%' of 3 is no whole number"),
        ({"num_heads": ["nan%"]}, "got 'nan%'"),
        ({"num_heads": "most"}, "got 'most'"),
        ({"num_heads": ["auto", 3]}, "num_heads: expected one entry for each of the 3 blocks, or values for all, got 2"),
        ({"num_heads": [[1, 3]]}, "num_heads: expected one entry for each of the 3 blocks, or values for all, got 1"),
        ({"num_heads": itertools.count(1)}, "got 4"),
        ({"embed_dim": ["0%", "100%"]}, r"percentage in \(0, 100\]"),
        ({"embed_dim": ["120%"]}, r"percentage in \(0, 100\]"),
        ({"embed_dim": ["half"]}, "got 'half'"),
        ({"embed_dim": []}, "got nothing"),
        ({"embed_dim": [96, 96, 192]}, "96"),
        ({"mlp_ratio": [4, 5]}, r"mlp_ratio in \(0, 4\]"),
        ({"mlp_ratio": [2, True]}, "got True"),
        ({"mlp_ratio": [float("nan"), 4]}, "got nan"),
        ({"mlp_ratio": [384, 768]}, r"mlp_ratio in \(0, 4\], \"auto\" or percentages, got 384"),
        ({"depth": [2]}, "the model's own 3"),
        ({"depth": [0, 3]}, "got 0"),
        ({"depth": [3, 4]}, "got 4"),
        ({"blocks": [3]}, r"numbers in 0\.\.2, got 3"),
        ({"blocks": [-1]}, "got -1"),
        ({"blocks": [0.0]}, "got 0.0"),
        ({"blocks": itertools.count()}, "got 3"),
        ({"blocks": 1}, "several numbers"),
        ({"order": "random"}, "order: expected one of magnitude, activation, None"),
        ({"order": np.array(["a", "b"])}, "order: expected one of magnitude, activation, None"),
        ({"sharing": "fair"}, "sharing"),
        *(({name: torch.tensor(0.0)}, f"{name}: ") for name in ("embed_dim", "depth", "blocks")),
    ],
)
def test_values_that_do_not_fit_are_refused(options, message):
    model = original()
    with pytest.raises(ChoiceError, match=message):
        wrap(model, **options, inplace=True)
    assert type(model) is timm.models.VisionTransformer  # untouched


def test_an_iterator_serves_every_block():
    given = {"num_heads": [1, 3], "mlp_ratio": ["25%", "100%"], "blocks": [0, 2]}
    lists, iterators = wrap(original(), **given), wrap(original(), **{name: iter(values) for name, values in given.items()})
    assert search_space(iterators).description() == search_space(lists).description()


def test_widths_that_attention_pooling_cannot_split_are_refused():
    model = original("attention pool", num_heads=3)  # 96 channels, heads of 32
    assert search_space(wrap(model, embed_dim="auto")).choices.get("embed_dim") is None  # 48 and 72 do not fit
    wrapped = wrap(model, embed_dim=[64, 96])
    x = images(model)
    for _ in some(wrapped, 4):
        assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5
    with pytest.raises(ChoiceError, match="heads of 32 channels, which do not divide 48"):
        wrap(model, embed_dim=[48, 96])
    with pytest.raises(ChoiceError, match="attention pooling groups channels"):
        wrap(model, embed_dim=[64, 96], order="magnitude")


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny"])
def test_other_models_are_refused_with_what_is_supported(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    said = rf"^timm\.models\.{name[:6]}\w*\.\w+ cannot be wrapped; supported are \d+ classes, listed on vitas\.wrap's page"
    with pytest.raises(WrapError, match=said) as caught:
        wrap(model)
    assert len(str(caught.value)) <= 160


def test_parts_of_another_kind_are_refused_by_name():
    model = timm.create_model("vit_dwee_patch16_reg1_gap_256", depth=1)
    with pytest.raises(WrapError, match=r"blocks\.0\.attn is a DiffAttention; supported are Block"):
        wrap(model)

    class Adapted(nn.Linear):
        pass

    model = original()
    model.blocks[1].attn.qkv = Adapted(192, 576)
    with pytest.raises(WrapError, match=r"blocks\.1\.attn\.qkv is a Adapted"):
        wrap(model)


def _share_a_block(model):
    model.blocks[1] = model.blocks[0]


def _share_a_weight(model):
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight


def _add_a_parameter(model):
    model.temperature = nn.Parameter(torch.ones(1))


def _prune(model):
    from torch.nn.utils import prune

    prune.random_unstructured(model.blocks[0].mlp.fc1, "weight", amount=0.5)


def _patch_forward(model):
    model.blocks[0].attn.forward = lambda x, **_: x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_share_a_block, r"blocks\.1\.norm1\.weight and blocks\.0\.norm1\.weight are one parameter"),
        (_share_a_weight, r"blocks\.1\.mlp\.fc1\.weight and blocks\.0\.mlp\.fc1\.weight are one parameter"),
        (_add_a_parameter, "the model holds temperature"),
        (_prune, r"blocks\.0\.mlp\.fc1 holds weight_orig"),
        (_patch_forward, r"blocks\.0\.attn has a forward of its own"),
    ],
)
def test_models_that_were_changed_in_ways_that_an_export_would_lose_are_refused(change, message):
    model = original()
    change(model)
    with pytest.raises(WrapError, match=message):
        wrap(model)


def test_a_model_without_weights_or_wrapped_before_is_refused():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    with pytest.raises(WrapError, match="meta device"):
        wrap(model)
    with pytest.raises(WrapError, match=r"got the name 'vit_tiny_patch16_224'; pass timm\.create_model\('vit_tiny"):
        wrap("vit_tiny_patch16_224")
    with pytest.raises(WrapError, match="searchable already"):
        wrap(wrap(original()))
    with pytest.raises(WrapError, match="searchable already"):
        wrap(wrap(original(), num_heads=None, mlp_ratio=None))
    with pytest.raises(WrapError, match="searchable already"):
        wrap(vitas.create_superformer("deit_micro", img_size=32))


def test_in_place():
    model = original()
    parameters, x = list(model.parameters()), images(model)
    expected = model(x)
    assert wrap(model, inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(x), expected)
    assert search_space(model).size > 1


# -- timm's methods ----------------------------------------------------------------------------------------------------


@every_kind
def test_features_and_intermediates_are_those_of_the_export(kind):
    wrapped = wrap(original(kind), embed_dim="auto", depth="auto")
    x = images(wrapped)
    for _ in some(wrapped, 3):
        export = export_subnet(wrapped)
        features = wrapped.forward_features(x)
        assert relative_error(export.forward_features(x), features) <= 1e-5
        for pre_logits in (False, True):
            got, expected = (one.forward_head(features, pre_logits=pre_logits) for one in (export, wrapped))
            assert relative_error(got, expected) <= 1e-5
        for options in ({}, {"indices": 1, "stop_early": True}, {"norm": True, "output_fmt": "NLC"}):
            last, several = wrapped.forward_intermediates(x, **options)
            wanted_last, wanted = export.forward_intermediates(x, **options)
            assert relative_error(last, wanted_last) <= 1e-5
            assert len(several) == len(wanted)
            assert all(relative_error(a, b) <= 1e-5 for a, b in zip(several, wanted, strict=True))
        assert wrapped.embed_dim == wrapped.num_features == export.embed_dim == export.num_features
        assert len(wrapped.blocks) == len(export.blocks) == len(export.feature_info)


def test_a_new_classifier_is_searchable():
    for kind in ("vit", "distilled"):
        wrapped = wrap(original(kind), embed_dim="auto")
        sample_subnet(wrapped, policy="smallest")
        wrapped.reset_classifier(7)
        assert wrapped.state_dict()["head.weight"].shape == (7, 192)
        x = images(wrapped)
        assert wrapped(x).shape == (2, 7)
        assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5
        assert count_flops(wrapped).total == macs(export_subnet(wrapped), x[:1])
        heads = wrapped.get_classifier()
        assert all(head.out_features == 7 for head in (heads if isinstance(heads, tuple) else (heads,)))
    wrapped.reset_classifier(0)
    assert wrapped(x).shape == (2, 96)


def test_a_classifier_that_is_assigned_is_searchable():
    wrapped = wrap(original("distilled"), embed_dim="auto")
    wrapped.head, wrapped.head_dist = nn.Linear(192, 7), nn.Linear(192, 7)
    sample_subnet(wrapped, policy="smallest")
    x = images(wrapped)
    assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5
    assert count_flops(wrapped).total == macs(export_subnet(wrapped), x[:1])


def test_parts_and_parameters_by_name_are_those_of_the_whole_model():
    wrapped = wrap(original(), embed_dim="auto", depth=[1, 3])
    sample_subnet(wrapped, policy="smallest")
    wrapped.set_grad_checkpointing()
    for name, parameter in wrapped.named_parameters():
        assert wrapped.get_parameter(name) is parameter
    for name, part in wrapped.named_modules():
        if name not in ("", "blocks"):
            assert wrapped.get_submodule(name) is part
    timm.utils.freeze(wrapped, ["patch_embed", "blocks.2"])
    frozen = {name for name, parameter in wrapped.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in wrapped.state_dict() if name.startswith(("patch_embed.", "blocks.2."))}
    assert search_space(wrapped).active()["depth"] == 1


def test_frozen_parts_stay_frozen_in_the_export():
    model = original().requires_grad_(False)
    model.head.requires_grad_(True)
    model.blocks[1].attn.qkv.bias.requires_grad_(True)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    sample_subnet(wrapped, policy="smallest")
    trained = {name for name, parameter in export_subnet(wrapped).named_parameters() if parameter.requires_grad}
    assert trained == {"blocks.1.attn.qkv.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    wrapped = wrap(original("registers"), embed_dim="auto", depth="auto").to(dtype)
    x = images(wrapped).to(dtype)
    for _ in some(wrapped, 3):
        export = export_subnet(wrapped)
        assert export(x).dtype == dtype
        assert relative_error(export(x).float(), wrapped(x).float()) <= 3e-2  # processors may round slices otherwise


def test_another_image_size_resamples_the_whole_table():
    model = original()
    wrapped = wrap(model, embed_dim="auto")
    sample_subnet(wrapped, policy="smallest")
    for one in (model, wrapped):
        one.set_input_size(img_size=(48, 64))
    assert torch.equal(wrapped.state_dict()["pos_embed"], model.state_dict()["pos_embed"])
    x = images(wrapped)
    assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5
    assert count_flops(wrapped).total == macs(export_subnet(wrapped), x[:1])
    wrapped.set_input_size(img_size=(48, 64), patch_size=(8, 8))
    assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5


def test_images_of_other_sizes_where_timm_takes_them():
    wrapped = wrap(original("dynamic"), embed_dim="auto", depth="auto")
    x = torch.randn(1, 3, 48, 80)
    for _ in some(wrapped, 3):
        assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5


def test_weights_drawn_anew_are_drawn_whole():
    wrapped = wrap(original(), embed_dim="auto")
    sample_subnet(wrapped, policy="smallest")
    wrapped.init_weights()
    state = wrapped.state_dict()
    assert (state["pos_embed"].abs() < 0.2).all()
    assert (state["norm.weight"] == 1).all()
    fresh = export_subnet(wrapped, weights="fresh")
    assert fresh.pos_embed.std() < 0.1


def test_checkpoints_of_timm_load():
    wrapped, model = wrap(original(), embed_dim="auto"), randomize(original(), seed=5)
    sample_subnet(wrapped, policy="smallest")
    for assign in (False, True):
        wrapped.load_state_dict(model.state_dict(), assign=assign)
        with use_subnet(wrapped, search_space(wrapped).largest()):
            assert torch.equal(wrapped(images(model)), model(images(model)))


def test_optimisers_averages_and_data_settings_of_timm():
    from timm.data import resolve_model_data_config
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV3

    model = original()
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    assert resolve_model_data_config(wrapped) == resolve_model_data_config(model)
    assert wrapped.no_weight_decay() == model.no_weight_decay()
    assert wrapped.group_matcher() == model.group_matcher()
    sizes = []
    for one in (wrapped, model):
        optimizer = create_optimizer_v2(one, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
        sizes.append([(group["lr_scale"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups])
    assert sizes[0] == sizes[1]
    optimizer = create_optimizer_v2(wrapped, opt="adamw", lr=1e-2)
    ema = ModelEmaV3(wrapped, decay=0.5)
    subnet = sample_subnet(wrapped, policy="smallest")
    before = copy.deepcopy(wrapped.state_dict())
    wrapped.train()(images(wrapped)).square().sum().backward()
    optimizer.step()
    ema.update(wrapped)
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, (before[name] + wrapped.state_dict()[name]) / 2)
    with use_subnet(ema, subnet):
        assert ema.module(images(wrapped)).shape == (2, 5)


@pytest.mark.parametrize("method", ["forward", "forward_intermediates"])
def test_checkpointed_gradients_are_those_of_the_subnet_that_ran(method):
    wrapped = wrap(original("registers").double(), embed_dim="auto", depth="auto").train()
    x = images(wrapped).double()

    def run():
        out = getattr(wrapped, method)(x)
        return (out if method == "forward" else out[0]).square().sum()

    for subnet in some(wrapped, 4):
        gradients = []
        for recompute in (False, True):
            search_space(wrapped).activate(subnet)
            wrapped.zero_grad(set_to_none=True)
            wrapped.set_grad_checkpointing(recompute)
            loss = run()
            if recompute:
                sample_subnet(wrapped)
            loss.backward()
            gradients.append([p.grad if p.grad is None else p.grad.clone() for p in wrapped.parameters()])
        for a, b in zip(*gradients, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)


def test_attention_masks_reach_the_blocks_that_run():
    wrapped = wrap(original(), embed_dim="auto", depth="auto")
    x = images(wrapped)
    mask = torch.rand(5, 5) > 0.5
    mask[:, 0] = True
    for _ in some(wrapped, 3):
        assert relative_error(export_subnet(wrapped)(x, attn_mask=mask), wrapped(x, attn_mask=mask)) <= 1e-5


def test_drop_path_rates_are_stretched_over_the_blocks_that_run():
    model = timm.create_model("vit_tiny_patch16_224", depth=5, img_size=32, drop_path_rate=0.4)
    wrapped = wrap(model, depth=[1, 2, 3, 5])
    rates = {}
    for depth in (1, 2, 3, 5):
        with use_subnet(wrapped, search_space(wrapped).subnet({"depth": depth}, fill="largest")):
            rates[depth] = [getattr(block.drop_path2, "drop_prob", 0.0) for block in export_subnet(wrapped).blocks]
    assert rates[5] == [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates[3] == pytest.approx([0.0, 0.2, 0.4])
    assert rates[2] == pytest.approx([0.0, 0.4])
    assert rates[1] == [0.0]


def test_copies_keep_their_own_active_subnet():
    wrapped = wrap(original(), embed_dim="auto", depth="auto")
    x = images(wrapped)
    sample_subnet(wrapped, policy="smallest")
    expected = wrapped(x)
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        sample_subnet(wrapped, policy="largest")
        assert torch.equal(twin(x), expected)
        sample_subnet(wrapped, policy="smallest")


def test_pruning_by_hand_is_refused():
    with pytest.raises(VitasError, match="export a subnet"):
        wrap(original()).prune_intermediate_layers(1)


def test_an_export_has_the_methods_of_timm():
    wrapped = wrap(original(), embed_dim="auto", depth="auto")
    sample_subnet(wrapped, policy="smallest")
    export = export_subnet(wrapped)
    export.reset_classifier(3)
    export.set_input_size(img_size=(64, 64))
    export.set_grad_checkpointing()
    assert export(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    of_the_whole = dict(wrapped.pretrained_cfg)
    assert export.pretrained_cfg == {**of_the_whole, "architecture": f"subnet of {of_the_whole['architecture']}"}
    assert not {"embed_dim", "depth", "num_heads"} & getattr(export, "_model_args", {}).keys()  # other sizes now


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_it_makes_a_bounded_number_of_graphs():
    from tests.test_compile import compare_over_subnets

    torch._dynamo.reset()
    wrapped = wrap(original().double(), embed_dim="auto", depth="auto")
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        history = compare_over_subnets(wrapped, images(wrapped).double(), 12)
    assert history[-1] == history[5] <= 9


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_with_stochastic_depth_it_makes_a_bounded_number_of_graphs():
    from tests.test_compile import Counter

    torch._dynamo.reset()
    model = timm.create_model("vit_tiny_patch16_224", depth=10, embed_dim=24, num_heads=3, img_size=32, drop_path_rate=0.3)
    wrapped = wrap(model, embed_dim="auto", depth=range(1, 11)).train()
    counter, history = Counter(), []
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled = torch.compile(wrapped, backend=counter)
        for depth in (10, 3, 7, 2, 9, 5, 1, 4, 8, 6):
            subnet = search_space(wrapped).subnet({"depth": depth, "embed_dim": 12}, fill="largest")
            activate_subnet(wrapped, subnet)
            compiled(images(wrapped)).square().sum().backward()
            history.append(counter.graphs)
    assert history[-1] == history[4] <= 12


@pytest.mark.heavy
def test_compiled_stochastic_depth_has_the_rates_of_the_active_depth():
    from tests.test_compile import Counter

    torch._dynamo.reset()
    model = timm.create_model("vit_tiny_patch16_224", depth=5, img_size=32, drop_path_rate=0.4)
    wrapped = wrap(model, depth=[1, 2, 3, 5]).train()
    slots, ones = list(wrapped._modules["blocks"]), torch.ones(4000, 1)
    drop = torch.compile(lambda module: module(ones), backend=Counter())
    for depth in (5, 3, 2, 1):
        activate_subnet(wrapped, search_space(wrapped).subnet({"depth": depth}, fill="largest"))
        for block in slots[1:depth]:
            rate, out = block.drop_path1.drop_prob, drop(copy.deepcopy(block.drop_path1))
            torch.testing.assert_close(out.max(), torch.tensor(1 / (1 - rate)))
            assert abs((out == 0).double().mean() - rate) < 5 * (rate * (1 - rate) / len(ones)) ** 0.5


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["ordinal", "bilateral", "cyclic"])
@every_kind
def test_order_keeps_the_function(kind, sharing):
    model = original(kind)
    width = None if model.attn_pool is not None or model.num_classes == 0 else "auto"
    wrapped = wrap(model, embed_dim=width, order="magnitude", sharing=sharing)
    assert relative_error(wrapped(images(model)), model(images(model))) <= 1e-5
    state, new = model.state_dict(), wrapped.state_dict()
    assert not torch.equal(new["blocks.0.mlp.fc2.weight"], state["blocks.0.mlp.fc2.weight"])
    assert torch.equal(new["patch_embed.proj.weight"], state["patch_embed.proj.weight"]) == (width is None)


def test_channels_that_are_outputs_are_not_permuted():
    model = original("no classifier")
    with pytest.raises(ChoiceError, match="are the outputs"):
        wrap(model, embed_dim="auto", order="magnitude")
    wrapped = wrap(model, order="magnitude")
    assert relative_error(wrapped(images(model)), model(images(model))) <= 1e-5


def test_the_heaviest_heads_units_and_channels_serve_the_most_widths():
    model = original()
    with torch.no_grad():  # head 2, then 0, then 1; MLP units and channels the heavier the later
        for head, scale in ((0, 2.0), (1, 1.0), (2, 3.0)):
            model.blocks[0].attn.proj.weight[:, head * 64 : head * 64 + 64] *= scale
            for part in range(3):
                model.blocks[0].attn.qkv.weight[part * 192 + head * 64 : part * 192 + head * 64 + 64] *= scale
        model.blocks[0].mlp.fc1.weight *= torch.linspace(1, 20, 768)[:, None]
        for module in model.modules():
            if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and module.out_features == 192):
                module.weight *= torch.linspace(1, 50, 192).view(-1, *[1] * (module.weight.ndim - 1))
    wrapped = wrap(model, embed_dim="auto", order="magnitude", sharing="ordinal")
    old, new = model.state_dict(), wrapped.state_dict()
    fc1 = new["blocks.0.mlp.fc1.weight"].norm(dim=1)
    assert fc1[:192].min() > fc1[576:].max()
    conv = new["patch_embed.proj.weight"].flatten(1).norm(dim=1)
    assert conv[:48].min() > conv[144:].max()
    heads = new["blocks.0.attn.qkv.weight"].view(3, 3, 64, 192).square().sum(dim=(0, 2, 3))
    before = old["blocks.0.attn.qkv.weight"].view(3, 3, 64, 192).square().sum(dim=(0, 2, 3))
    torch.testing.assert_close(heads, before[[2, 0, 1]])


@pytest.mark.parametrize("sharing", ["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"])
def test_no_unit_serves_more_widths_than_a_heavier_one(sharing):
    def shares(weight, axis):
        squares = weight.double().square().movedim(axis, 0).flatten(1).sum(dim=1)
        return squares / squares.sum()

    model = original()
    wrapped = wrap(model, num_heads=[1, 2, 3], mlp_ratio=[0.5, 1, 3, 4], order="magnitude", sharing=sharing)
    for block in wrapped.blocks:
        attn, mlp = block.attn, block.mlp
        qkv, proj = attn.qkv.weight.view(3, 3, 64, 192), attn.proj.weight.view(192, 3, 64)
        for dim, importance in (
            (mlp.fc2.in_dim, shares(mlp.fc1.weight, 0) + shares(mlp.fc2.weight, 1)),
            (attn.heads, shares(qkv, 1) + shares(proj, 1)),
        ):
            uses = torch.zeros(dim.largest)
            for side in ("left", "right") if sharing == "bilateral" else ("left",):
                dim.side = side
                for value in dim.values:
                    dim.active = value
                    uses[dim.channels()] += 1
            dim.side = "left"
            for few, many in itertools.pairwise(uses.unique().tolist()):
                assert importance[uses == many].min() >= importance[uses == few].max()
            if sharing.startswith("cyclic") and len(uses.unique()) == 1:  # then the smallest width has the heaviest
                dim.active = dim.smallest
                assert importance[dim.channels()].min() == importance.sort(descending=True).values[dim.smallest - 1]


# -- reports -----------------------------------------------------------------------------------------------------------


def test_a_report_says_what_timms_constructor_can_build():
    wrapped = wrap(original(), embed_dim="auto", depth="auto")
    space = search_space(wrapped)
    even = {f"blocks.{i}.{what}": value for i in range(2) for what, value in (("num_heads", 3), ("mlp_dim", 384))}
    report = export_report(wrapped, space.subnet({"embed_dim": 192, "depth": 2, **even}))
    assert report.arguments == {"embed_dim": 192, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
    assert report.of_class == "timm.models.vision_transformer.VisionTransformer"
    with use_subnet(wrapped, space.subnet({"embed_dim": 192, "depth": 2, **even})):
        export = export_subnet(wrapped)
    built = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, **report.arguments).eval()
    built.load_state_dict(export.state_dict())
    assert torch.equal(built(images(built)), export(images(built)))
    report = export_report(wrapped, space.subnet({"embed_dim": 96, "depth": 2, **even}))
    assert report.arguments is None
    assert "heads have 64 channels each and not embed_dim / num_heads = 32" in str(report)
    report = export_report(wrapped, space.subnet({"embed_dim": 192, "depth": 2, **even, "blocks.1.num_heads": 1}))
    assert report.reasons == ("num_heads differs from block to block: 3, 1",)
    wrapped = wrap(original("attention pool", num_heads=3), embed_dim=[64, 96], mlp_ratio=["50%", "100%"], depth=[1, 3])
    space = search_space(wrapped)
    assert export_report(wrapped).arguments == {"embed_dim": 96, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0}
    report = export_report(wrapped, space.subnet({"depth": 1, "blocks.0.mlp_dim": 96}, fill="largest"))
    assert report.reasons == ("the MLP of attention pooling keeps its hidden width of 192, those of the blocks have 96",)
    with pytest.raises(WrapError, match="expected what wrap returned"):
        export_report(vitas.create_superformer("deit_micro", img_size=32))


def test_the_ratio_in_a_report_survives_timms_rounding():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=13, num_heads=1, img_size=32)
    wrapped = wrap(model, mlp_ratio=[15 / 13 + 1e-9, 4])
    sample_subnet(wrapped, policy="smallest")
    assert int(13 * (15 / 13)) == 14  # timm rounds the product down
    built = timm.create_model("vit_tiny_patch16_224", img_size=32, **export_report(wrapped).arguments)
    assert built.blocks[0].mlp.fc1.out_features == 15


# -- whole models ------------------------------------------------------------------------------------------------------


VITS = [  # timm's name, arguments
    ("vit_tiny_patch16_224", {}),
    ("vit_small_patch16_224", {}),
    ("deit_tiny_patch16_224", {}),
    ("deit_small_patch16_224", {}),
    ("deit_base_patch16_224", {}),
    ("deit_tiny_distilled_patch16_224", {}),
    ("deit_small_distilled_patch16_224", {}),
    ("deit3_small_patch16_224", {}),
    ("deit3_medium_patch16_224", {}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 224}),
    ("vit_base_patch14_reg4_dinov2", {"img_size": 224}),
    ("vit_medium_patch16_reg4_gap_256", {}),
    ("vit_betwixt_patch16_reg4_gap_256", {}),
    ("vit_tiny_patch16_224", {"qk_norm": True}),
    ("vit_small_patch16_224", {"qk_norm": True}),
    ("vit_medium_patch16_gap_240", {}),
    ("vit_base_patch16_siglip_gap_224", {}),
    ("vit_xsmall_patch16_clip_224", {}),
    ("vit_medium_patch16_clip_224", {}),
    ("vit_base_patch16_siglip_224", {}),
    ("vit_base_patch32_siglip_256", {}),
    ("vit_small_patch16_224", {"global_pool": "map"}),
    ("test_vit3", {}),
]


@pytest.fixture(params=VITS, ids=lambda row: row[0] + "".join(f"-{name}" for name in row[1]))
def published(request):
    """Return a function that wraps a published model, for images of four patches."""
    name, options = request.param
    # Twelve blocks of 512 channels and more would take a minute a model.
    wide = {"depth": 6} if any(size in name for size in ("_medium_", "_betwixt_", "_base_")) else {}

    def build(**fewer):
        sizes = {"img_size": 2 * patch_size(name), "num_classes": 10, **wide, **fewer}
        model = timm.create_model(name, **{**options, **sizes}, drop_path_rate=0.1)
        return wrap(randomize(model).eval(), embed_dim="auto", depth="auto", inplace=True)

    return build


def check_subnets(wrapped, n):
    """Exports equal the active path and cost what was counted."""
    x = images(wrapped, 1)
    for _ in some(wrapped, n):
        export = export_subnet(wrapped)
        with torch.no_grad():
            assert relative_error(export(x), wrapped(x)) <= 1e-5
        assert count_flops(wrapped).total == macs(export.to("meta"), x.to("meta"))
        assert count_params(wrapped) == sum(parameter.numel() for parameter in export.parameters())


def test_three_subnets_of_every_published_model(published):
    check_subnets(published(depth=2), 3)


@pytest.mark.heavy
def test_fifty_random_subnets_of_every_published_model(published):
    check_subnets(published(), 50)

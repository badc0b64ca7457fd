"""Records: what they refuse, and classes of timm by them: exact exports and counts, the ablation oracle."""

import pickle
import types

import pytest
import torch
from torch import nn

from tests.contract import macs, randomize, relative_error
from tests.wrapping.checks import (
    check_checkpointing,
    check_copies,
    check_counts,
    check_exports,
    check_gradients,
    check_silent_units,
    some,
)
from vitas import SearchSpace, VitasError, check_records, count_flops, export_subnet, sample_subnet, search_space, wrap
from vitas.errors import ChoiceError, ExportError, WrapError
from vitas.plain import ClassAttention

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras

SEES_64 = {"pretrained_cfg_overlay": {"input_size": (3, 64, 64)}}
SEES_32 = {"pretrained_cfg_overlay": {"input_size": (3, 32, 32)}}


def _caformer(num_classes):
    from timm.models import metaformer as m

    mixers, norms = [m.SepConv, m.Attention], [m.LayerNorm2dNoBias, m.LayerNormNoBias]
    model = m.MetaFormer(
        num_classes=num_classes, depths=(1, 2), dims=(16, 32), token_mixers=mixers, norm_layers=norms, head_dim=8
    )
    model.pretrained_cfg = SEES_32["pretrained_cfg_overlay"]
    return model


def _mvit(num_classes):
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    sizes = MultiScaleVitCfg(depths=(1, 2), embed_dim=(16, 32), num_heads=(2, 4), stride_q=((1, 1), (2, 2)))
    model = MultiScaleVit(sizes, img_size=(32, 32), num_classes=num_classes)
    model.pretrained_cfg = SEES_32["pretrained_cfg_overlay"]
    return model


def _volo(num_classes):
    from timm.models.volo import VOLO

    sizes = {"layers": (1, 2), "embed_dims": (16, 32), "num_heads": (2, 4), "stem_hidden_dim": 8}
    outlook = {"downsamples": (True, False), "outlook_attention": (True, False)}
    model = VOLO(img_size=32, num_classes=num_classes, **sizes, **outlook)
    model.pretrained_cfg = SEES_32["pretrained_cfg_overlay"]
    return model


SMALL = {  # timm's name: (arguments, side of the images)
    "vit_small_patch16_dinov3": ({"img_size": 32, "depth": 3, "embed_dim": 96, "num_heads": 6}, 32),
    "vit_small_plus_patch16_dinov3": ({"img_size": 32, "depth": 2, "embed_dim": 128, "num_heads": 4}, 32),
    "eva02_tiny_patch14_224": ({"img_size": 28, "depth": 2}, 28),
    "vit_pe_core_tiny_patch16_384": ({"img_size": 32, "depth": 2}, 32),
    "vit_small_patch16_rope_224": ({"img_size": 32, "depth": 2}, 32),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": (2, 3), "num_heads": (3, 6), "drop_path_rate": 0.2},
        32,
    ),
    "swinv2_tiny_window8_256": (
        {"img_size": 32, "window_size": 4, "embed_dim": 32, "depths": (2, 1), "num_heads": (2, 4), "drop_path_rate": 0.2},
        32,
    ),
    "beit_base_patch16_224": ({"img_size": 32, "embed_dim": 96, "num_heads": 6, "depth": 2}, 32),
    "qwen3_vit_88m": ({"img_size": 32, "embed_dim": 48, "num_heads": 4, "depth": 2, "pos_embed_grid_size": 2}, 32),
    "qwen3_vit_88m_merge": (
        {"img_size": 32, "embed_dim": 48, "num_heads": 4, "depth": 1, "pos_embed_grid_size": 2, "out_features": 24},
        32,
    ),
    "vit_tiny_r_s16_p8_224": ({"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2, "patch_size": 1}, 32),
    "vit_small_patch16_18x2_224": ({"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2}, 32),
    "xcit_nano_12_p16_224": ({"img_size": 32, "embed_dim": 32, "num_heads": 4, "depth": 2, "cls_attn_layers": 1}, 32),
    "cait_xxs24_224": ({"img_size": 32, "embed_dim": 24, "num_heads": 4, "depth": 2, "depth_token_only": 1}, 32),
    "pvt_v2_b0": (
        {"embed_dims": (8, 16), "depths": (2, 1), "num_heads": (2, 4), "sr_ratios": (2, 1), "mlp_ratios": (4, 4), **SEES_32},
        32,
    ),
    "vit_relpos_small_patch16_224": ({"img_size": 32, "embed_dim": 24, "num_heads": 4, "depth": 2}, 32),
    "vit_relpos_base_patch16_clsgap_224": ({"img_size": 32, "embed_dim": 24, "num_heads": 4, "depth": 1}, 32),
    "caformer_s18": (_caformer, 32),
    "maxvit_tiny_tf_224": (
        {"img_size": 64, "embed_dim": (32, 64), "depths": (1, 2), "block_type": ("M", "M"), **SEES_64},
        64,
    ),
    "coatnet_rmlp_nano_rw_224": (
        {"img_size": 32, "embed_dim": (32, 64), "depths": (1, 2), "block_type": ("C", "T"), **SEES_32},
        32,
    ),
    "maxxvit_rmlp_nano_rw_256": ({"img_size": 64, "embed_dim": (64,), "depths": (1,), "block_type": ("M",), **SEES_64}, 64),
    "pit_ti_224": ({"img_size": 32, "depth": (1, 2), "heads": (2, 4), "base_dims": (16, 16)}, 32),
    "levit_128s": (
        {"img_size": 64, "embed_dim": (16, 24), "depth": (2, 1), "num_heads": (2, 3), "key_dim": 8, **SEES_64},
        64,
    ),
    "tiny_vit_5m_224": (
        {"embed_dims": (8, 16), "depths": (1, 2), "num_heads": (2, 4), "window_sizes": (4, 4), **SEES_32},
        32,
    ),
    "mvitv2_tiny": (_mvit, 32),
    "crossvit_tiny_240": (
        {
            "img_size": 48,
            "img_scale": (1, 1),
            "embed_dim": (16, 24),
            "depth": ((1, 2, 0), (1, 1, 0)),
            "num_heads": (2, 3),
            "mlp_ratio": (4, 2, 1),
        },
        48,
    ),
    "volo_d1_224": (_volo, 32),
    "vit_small_patch16_rope_mixed_224": ({"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2}, 32),
    "vit_srelpos_small_patch16_224": ({"img_size": 32, "embed_dim": 24, "num_heads": 4, "depth": 2}, 32),
    "hiera_tiny_224": ({"img_size": 64, "embed_dim": 16, "num_heads": 2, "stages": (1, 2), "q_pool": 1, **SEES_64}, 64),
    "sam2_hiera_tiny": (
        {"embed_dim": 16, "num_heads": 2, "stages": (1, 2), "q_pool": 1, "window_spec": (4, 2), **SEES_32},
        32,
    ),
    "deepseek_vit_412m_align": ({"img_size": 28, "embed_dim": 48, "num_heads": 4, "depth": 1, "out_features": 24}, 28),
    "naflexvit_base_patch16_map": ({"embed_dim": 48, "num_heads": 3, "depth": 2}, 384),
    "samvit_base_patch16": (
        {"img_size": 64, "embed_dim": 96, "num_heads": 6, "depth": 2, "global_attn_indexes": (1,)},
        64,
    ),
}
NEWER = {"qwen3_vit_88m", "qwen3_vit_88m_merge", "deepseek_vit_412m_align"}
"""Those that the oldest timm does not have."""

SMALL = {name: made for name, made in SMALL.items() if name not in NEWER or timm.is_model(name)}
if not timm.is_model("deepseek_vit_412m_align"):
    del SMALL["vit_small_patch16_rope_mixed_224"]  # of the oldest timm it computes in single precision only
HEADS_STAY = {"volo_d1_224", "vit_small_patch16_rope_mixed_224", "vit_srelpos_small_patch16_224"}
DEPTHS_STAY = {"hiera_tiny_224", "sam2_hiera_tiny", "volo_d1_224", "vit_small_patch16_rope_mixed_224"}
WIDTHS_STAY = {
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "crossvit_tiny_240",
    "volo_d1_224",
    "maxvit_tiny_tf_224",
    "coatnet_rmlp_nano_rw_224",
    "maxxvit_rmlp_nano_rw_256",
    "pit_ti_224",
    "levit_128s",
    "tiny_vit_5m_224",
    "mvitv2_tiny",
}
MIXES_HEADS = {"cait_xxs24_224"}
every_model = pytest.mark.parametrize("name", SMALL)


def original(name):
    options, side = SMALL[name]
    model = options(5) if callable(options) else timm.create_model(name, num_classes=5, **options)
    model = randomize(model).eval()
    return model, torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def staying(name):
    """What of a model cannot be searched, as arguments of wrap."""
    return {argument: None for argument, stays in (("embed_dim", WIDTHS_STAY), ("depth", DEPTHS_STAY)) if name in stays}


@every_model
def test_the_largest_subnet_is_the_model_and_exports_equal_the_active_path(name):
    check_exports(*original(name), **staying(name))


@pytest.mark.parametrize("name", sorted(SMALL.keys() - MIXES_HEADS))
def test_a_subnet_is_the_whole_model_without_the_units_that_it_leaves_out(name):
    check_silent_units(*original(name), **staying(name))


def test_heads_that_fill_a_smaller_width_leave_the_library_its_attention():
    options = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 4}
    tied = ("beit_base_patch16_224", "swinv2_tiny_window8_256", "pvt_v2_b0", "vit_relpos_small_patch16_224", "caformer_s18")
    names = {name: SMALL[name][0] for name in (*tied, "xcit_nano_12_p16_224")}
    names |= {"eva02_large_patch14_224": {**options, "patch_size": 16}, "cait_xxs24_224": {**options, "depth_token_only": 1}}
    for name, own in names.items():
        model = own(5) if callable(own) else timm.create_model(name, num_classes=5, **own)
        model = randomize(model).eval()
        wrapped = wrap(model, embed_dim=["50%", "100%"], num_heads=["50%", "100%"], order="magnitude")
        sample_subnet(wrapped, policy="smallest")
        x = torch.randn(2, 3, own.get("img_size", 32) if isinstance(own, dict) else 32, 32)
        export = export_subnet(wrapped)
        classes = {type(part) for part in export.modules()} - {ClassAttention}  # outside the rows heads stay
        assert classes <= {type(part) for part in model.modules()}
        assert relative_error(export(x), wrapped(x)) <= 1e-5


FREED = ("beit_base_patch16_224", "cait_xxs24_224", "swinv2_tiny_window8_256", "xcit_nano_12_p16_224", "caformer_s18")


@pytest.mark.parametrize("name", [*FREED, "pvt_v2_b0", "vit_relpos_small_patch16_224"])
def test_an_export_of_freed_attention_is_wrapped_again(name):
    model, x = original(name)
    wrapped = wrap(model, embed_dim=["50%", "100%"], num_heads=None)
    sample_subnet(wrapped, policy="smallest")
    export = export_subnet(wrapped)
    assert any(type(part).__module__ == "vitas.plain" for part in export.modules())
    check_exports(export, x)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "levit_128s"])
def test_a_model_made_for_other_images_is_tried_with_those(name):
    options = {key: value for key, value in SMALL[name][0].items() if key != "pretrained_cfg_overlay"}
    model = timm.create_model(name, num_classes=5, **options).eval()
    if "_model_args" in vars(model):  # since timm 1.0.31
        wrapped = wrap(model)
        assert wrapped.image_shape() == (3, 64, 64)
        sample_subnet(wrapped, policy="smallest")
        export = export_subnet(wrapped)
        assert wrap(export).image_shape() == (3, 64, 64)
        assert count_flops(wrapped).total == macs(export, torch.randn(1, 3, 64, 64))
        del model._model_args
    with pytest.raises(WrapError, match="it does not run on 3 x 224 x 224, its pretrained_cfg"):
        wrap(model)


@pytest.mark.parametrize("name", ["naflexvit_base_patch16_map", "levit_128s"])  # patches by a linear layer, by convolutions
def test_images_of_another_number_of_channels(name):
    model = timm.create_model(name, num_classes=5, in_chans=1, **SMALL[name][0])
    assert wrap(model).image_shape() == (1, SMALL[name][1], SMALL[name][1])


@every_model
def test_gradients_are_those_of_the_export(name):
    check_gradients(*original(name), **staying(name))


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "swin_tiny_patch4_window7_224"])
def test_copies_checkpointing_order_and_methods(name):
    model, x = original(name)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    check_copies(wrapped, x)
    ordered = wrap(model, embed_dim="auto", order="magnitude")
    assert relative_error(ordered(x), model(x)) <= 1e-5
    wrapped.reset_classifier(7)
    assert wrapped(x).shape == (2, 7)
    assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5
    check_checkpointing(wrapped, x, wrapped.set_grad_checkpointing)


@every_model
def test_counts_by_running_add_up(name):
    check_counts(*original(name), **staying(name))


@pytest.mark.parametrize("name", sorted(WIDTHS_STAY))
def test_a_width_that_stays_is_not_searched(name):
    model, _ = original(name)
    with pytest.raises(ChoiceError, match=r"embed_dim: in this model it cannot be searched; expected None, got 'auto'"):
        wrap(model, embed_dim="auto")


@pytest.mark.parametrize("name", sorted(HEADS_STAY & SMALL.keys()))
def test_heads_that_stay_are_not_searched(name):
    model, _ = original(name)
    assert not any("num_heads" in choice for choice in search_space(wrap(model)).choices)
    with pytest.raises(ChoiceError, match=r"num_heads: in this model they cannot be searched; expected None or .auto., got"):
        wrap(model, num_heads=["50%", "100%"])


def test_running_statistics_of_the_channels_in_use_follow_the_batch():
    model, x = original("xcit_nano_12_p16_224")
    wrapped = wrap(model, embed_dim="auto").train()
    sample_subnet(wrapped, policy="smallest")
    norm = wrapped.blocks[0].local_mp.bn
    before, used = norm.stored("running_mean").clone(), norm._dims["w"].channels()
    export = export_subnet(wrapped)
    assert torch.equal(export.blocks[0].local_mp.bn.running_mean, before[used])
    torch.manual_seed(0)
    y = wrapped(x)
    assert relative_error(y, export(x)) <= 1e-5
    after, expected = norm.stored("running_mean"), before.clone()
    expected[used] = export.blocks[0].local_mp.bn.running_mean
    torch.testing.assert_close(after, expected)
    assert not torch.equal(after[used], before[used])


# -- records of one's own -----------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """A block of one's own."""

    def __init__(self, dim, hidden):
        super().__init__()
        self.norm, self.value, self.gate = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.out, self.gain = nn.Linear(hidden, dim), nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = self.norm(x)
        return x + self.gain * self.out(self.value(y) * self.gate(y).sigmoid())


class Net(nn.Module):
    """A model of one's own."""

    def __init__(self, dim=12, hidden=8, depth=3):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, dim, 4, 4), nn.Linear(dim, 5)
        self.blocks = nn.Sequential(*(Gated(dim, hidden) for _ in range(depth)))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


OWN = {Net: "stem: w, _, _, _; head: _, w; rows blocks", Gated: "norm: w; value gate: m, w; out: w, m; gain: w"}


def test_a_model_of_ones_own():
    model, x = randomize(Net().double()), torch.randn(2, 3, 8, 8).double()
    wrapped = wrap(model, embed_dim="auto", depth="auto", records=OWN)
    assert torch.equal(wrapped(x), model(x))
    assert {"embed_dim", "depth", "blocks.2.mlp_dim"} <= set(search_space(wrapped).choices)
    assert check_records(wrapped, x) <= 1e-12
    for _ in some(wrapped, 4):
        export = export_subnet(wrapped)
        assert (type(export), type(export.blocks[0])) == (Net, Gated)
        assert relative_error(export(x), wrapped(x)) <= 1e-12


def test_a_parameter_that_no_record_names_is_refused():
    records = {**OWN, Gated: "norm: w; value gate: m, w; out: w, m"}
    with pytest.raises(WrapError, match=r"blocks\.0 is a Gated|blocks\.0 holds gain"):
        wrap(Net(), records=records)


def test_sizes_that_the_letters_do_not_give_are_refused():
    records = {**OWN, Gated: "norm: w; value: m, w; gate: 3 m, w; out: w, m; gain: w"}
    with pytest.raises(WrapError, match=r"record of Gated: 'gate: 3 m': axis 0 has 8 channels, the letters say 24"):
        wrap(Net(), records=records)


def test_an_attribute_that_says_another_size_is_refused():
    net = Net()
    vars(net.blocks[1])["width"] = 7
    with pytest.raises(WrapError, match=r"record of Gated: 'width = w': it is 7, the letters say 12"):
        wrap(net, records={**OWN, Gated: f"{OWN[Gated]}; width = w"})


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("norm: w; valeu gate: m, w; out: w, m; gain: w", "'valeu': expected one of .*gate.*value"),
        ("norm: w; value gate: m, w; out: w, m; gain: w; widht = w", "'widht'"),
        ("norm: w; value gate: m, w; out: w, m; gain: w; whole nrom", "'nrom': .*nearest: norm"),
        ("norm: w; value.wieght gate: m, w; out: w, m; gain: w", "'value.wieght'.*weight"),
    ],
)
def test_a_name_that_no_module_has_is_refused(line, wrong):
    with pytest.raises(WrapError, match=f"record of Gated: {wrong}"):
        wrap(Net(), records={**OWN, Gated: line})


def test_a_condition_says_that_a_name_may_be_missing():
    wrap(Net(), records={**OWN, Gated: f"{OWN[Gated]}; shift: w if shift"})
    with pytest.raises(WrapError, match=r"record of Net: 'blokcs': expected one of stem, head, blocks, .*got 'blokcs'"):
        wrap(Net(), records={**OWN, Net: "stem: w, _, _, _; head: _, w; rows blokcs"})


def test_a_wrong_order_of_letters_is_found_by_the_oracle_only():
    attention = timm.layers.Attention
    wrong = "qkv: h e, w; proj: w, h d; num_heads = h; attn_dim = h d"
    model = randomize(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)).double().eval()
    x = torch.randn(2, 3, 32, 32).double()
    wrapped = wrap(model, records={attention: wrong})
    assert torch.equal(wrapped(x), model(x))
    with pytest.raises(WrapError, match="letters in the wrong order"):
        check_records(wrapped, x)


# -- what was put on a model never reaches an export -------------------------------------------------------------------


def vit():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    return wrap(randomize(model).eval(), embed_dim="auto")


@pytest.mark.parametrize(
    "path", ["", "blocks.0", "blocks.0.attn", "blocks.0.attn.proj", "blocks.1.drop_path1", "patch_embed"]
)
def test_a_forward_of_its_own_is_refused_wherever_it_stands(path):
    wrapped = vit()
    part = wrapped.get_submodule(path)
    part.forward = types.MethodType(type(part).forward, part)
    with pytest.raises(ExportError, match="a forward of its own"):
        export_subnet(wrapped)


def test_what_lies_on_a_model_stays_behind():
    wrapped = vit()
    wrapped.trainer, wrapped.note, wrapped._hook = lambda: wrapped, "kept", types.SimpleNamespace(model=wrapped)
    wrapped.get_submodule("blocks.0").owner = [types.SimpleNamespace(model=wrapped)]
    sample_subnet(wrapped, policy="smallest")
    export = export_subnet(wrapped)
    assert not {"trainer", "_hook"} & vars(export).keys()
    assert "owner" not in vars(export.blocks[0])
    assert b"vitas" not in pickle.dumps(export)
    x = torch.randn(2, 3, 32, 32)
    export(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in export.parameters())


def test_attributes_and_blocks_that_follow_the_choices_cannot_be_set():
    wrapped = vit()
    for change in (
        lambda: setattr(wrapped, "embed_dim", 7),
        lambda: setattr(wrapped, "blocks", nn.Sequential()),
        lambda: wrapped.blocks.append(nn.Identity()),
        lambda: wrapped.blocks.__setitem__(0, nn.Identity()),
    ):
        with pytest.raises(VitasError, match=r"cannot be set|export"):
            change()


# -- mistakes that used to pass ----------------------------------------------------------------------------------------


def tiny():
    options = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 3, "num_classes": 5}
    return randomize(timm.create_model("deit_tiny_patch16_224", **options)).eval(), torch.randn(2, 3, 32, 32)


def test_records_are_not_said_to_be_right_where_nothing_was_compared():
    model, x = tiny()
    wrapped = wrap(model)
    assert check_records(wrapped, x) < 1e-5
    with pytest.raises(ChoiceError, match="subnets: expected a positive int, got 0"):
        check_records(wrapped, x, subnets=0)
    wrapped.get_parameter("pos_embed").data.fill_(float("nan"))
    with pytest.raises(WrapError, match="nothing to compare: its outputs are NaN"):
        check_records(wrapped, x)


def test_mistakes_in_arguments_leave_the_model_alone():
    model, _ = tiny()
    for order, message in (
        ({"blocks.0.num_heads": [1, 2], "blocks.1.num_heads": [1]}, r"blocks\.1\.num_heads: expected 2 scores"),
        ({"blocks.0.num_heads": [[1], [2, 3]]}, r"blocks\.0\.num_heads: expected 2 scores"),
        ({"nope": [1]}, "order: expected one of .*, got 'nope'"),
    ):
        with pytest.raises(ChoiceError, match=message):
            wrap(model, order=order, inplace=True)
        assert type(model) is timm.models.vision_transformer.VisionTransformer
    with pytest.raises(ChoiceError, match="leave: expected values, or a list with an entry for each stage"):
        wrap(model, depth=[2, 3], leave={1: 2})
    with pytest.raises(ChoiceError, match="images: the model does not take them"):
        wrap(model, order="activation", images=torch.randn(2, 3))
    for records in ("x", [1], {"Block": "norm: w"}, {nn.Linear: 5}):
        with pytest.raises(WrapError, match="records: expected classes and lines"):
            wrap(model, records=records)


def test_a_subnet_none_of_whose_sizes_is_the_largest_is_tried(monkeypatch):
    tried = []
    activate = SearchSpace.activate

    def noted(space, subnet, **options):
        tried.append((space, subnet))
        activate(space, subnet, **options)

    monkeypatch.setattr(SearchSpace, "activate", noted)
    wrap(tiny()[0], embed_dim=[12, 18, 24], depth=[2, 3])
    [(space, subnet)] = tried
    assert {"embed_dim", "depth", "blocks.0.num_heads", "blocks.1.mlp_dim"} <= set(subnet)
    assert all(value < space.choices[name].largest for name, value in subnet.items())

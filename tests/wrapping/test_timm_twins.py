"""timm's Twins made searchable: same weights, same outputs, timm's methods, exact exports and counts, files."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import vitas
from tests.contract import macs, randomize, relative_error
from tests.wrapping.test_timm_vit import some
from vitas import (
    ChoiceError,
    VitasError,
    count_flops,
    count_params,
    export_report,
    export_subnet,
    flop_analysis,
    load_subnet,
    plain,
    register,
    sample_subnet,
    save_subnet,
    search_space,
    use_subnet,
    wrap,
)
from vitas.errors import FileError, WrapError

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras

SMALL = {
    "img_size": 48,
    "embed_dims": [16, 32, 48],
    "num_heads": [2, 4, 3],
    "mlp_ratios": [4, 2, 3],
    "depths": [3, 2, 4],
    "sr_ratios": [4, 2, 1],
    "wss": (3, 4, 2),  # 12 and 6 and 3 positions a side: whole windows, padded ones, ones larger than the map
    "num_classes": 5,
}
KINDS = {
    "svt": {},
    "pcpvt": {"wss": None},
    "dropout": {
        "drop_path_rate": 0.3,
        "drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "proj_drop_rate": 0.1,
        "pos_drop_rate": 0.1,
    },
    "no pool": {"global_pool": ""},
    "no classifier": {"num_classes": 0},
    "one stage": {name: SMALL[name][:1] for name in ("embed_dims", "num_heads", "mlp_ratios", "depths", "sr_ratios")},
    "tall": {"img_size": (80, 48)},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def original(kind="svt", **options):
    from timm.models.twins import Twins

    return randomize(Twins(**{**SMALL, **KINDS[kind], **options})).eval()


def wrapped_original(kind="svt", **options):
    return wrap(original(kind), embed_dim="auto", depth="auto", **options)


def images(model, n=2):
    return torch.randn(n, 3, *model.patch_embeds[0].img_size, generator=torch.Generator().manual_seed(0))


def expressible(model):
    """Return the numbers of the blocks that run and whose heads add up to the width of the stage."""
    return [
        (stage, slot)
        for stage, row in enumerate(model.blocks)
        for slot, block in enumerate(row)
        if block.attn._dims["h d"].active == model.embed_dims[stage]
    ]


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
    outputs = []
    for one in (model, wrapped):
        one.train()
        torch.manual_seed(3)
        outputs.append(one(x))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for (name, a), b in zip(wrapped.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@every_kind
def test_exports_equal_the_active_path_and_cost_what_was_counted(kind):
    model = original(kind)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    x = images(model)
    for _ in some(wrapped, 6):
        export = export_subnet(wrapped)
        assert type(export) is type(model)
        with torch.no_grad():
            assert relative_error(export(x), wrapped(x)) <= 1e-5
            assert torch.equal(pickle.loads(pickle.dumps(export))(x), export(x))
        assert count_params(wrapped) == sum(parameter.numel() for parameter in export.parameters())
        assert count_flops(wrapped).total == macs(export, x[:1])
        assert [len(row) for row in export.blocks] == export.depths == wrapped.depths
        assert export.embed_dims == wrapped.embed_dims
        assert b"vitas.nn" not in pickle.dumps(export)
    assert flop_analysis(wrapped).total() == count_flops(wrapped).total


def test_attention_is_timms_wherever_timm_can_express_it():
    wrapped, seen = wrapped_original(), set()
    for _ in some(wrapped, 12):
        export, timms = export_subnet(wrapped), expressible(wrapped)
        report = export_report(wrapped)
        for stage, row in enumerate(export.blocks):
            for slot, block in enumerate(row):
                windows = slot % 2 == 0
                if (stage, slot) in timms:
                    kind = timm.models.twins.LocallyGroupedAttn if windows else timm.models.twins.GlobalSubSampleAttn
                    assert (block.attn.dim, block.attn.num_heads) == (
                        export.embed_dims[stage],
                        wrapped.blocks[stage][slot].attn.num_heads,
                    )
                else:
                    kind = plain.WindowAttention if windows else plain.SubsampledAttention
                assert type(block.attn) is kind
                assert (f"blocks.{stage}.{slot}.attn" in report.of_plain) == ((stage, slot) not in timms)
                seen.add(kind)
        allowed = {type(part) for part in original().modules()} | {
            nn.Identity,
            plain.WindowAttention,
            plain.SubsampledAttention,
        }
        assert {type(part) for part in export.modules()} <= allowed
        assert (b"vitas" in pickle.dumps(export)) == bool(report.of_plain)
    assert len(seen) == 4
    fixed = wrap(original(), num_heads=None, depth="auto")  # as many channels inside as outside, always
    for _ in some(fixed, 5):
        assert b"vitas" not in pickle.dumps(export_subnet(fixed))
        assert export_report(fixed).of_plain == ()


def test_exports_are_exact_in_double_precision():
    wrapped = wrap(original("dropout").double(), embed_dim="auto", depth="auto")
    x = images(wrapped).double()
    for _ in some(wrapped, 6):
        assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-12


@pytest.mark.parametrize("sharing", ["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"])
def test_every_sharing_pattern(sharing):
    wrapped = wrapped_original(sharing=sharing)
    x = images(wrapped)
    for _ in some(wrapped, 6):
        assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5


def test_images_of_any_size():
    wrapped = wrapped_original()
    x = torch.randn(1, 3, 61, 90)
    for subnet in some(wrapped, 4):
        export = export_subnet(wrapped)
        assert relative_error(export(x), wrapped(x)) <= 1e-5
        assert count_flops(wrapped, subnet, inputs=x).total == macs(export, x)


def test_a_subnet_is_the_slice_that_its_runs_say():
    """By hand: whole heads of q, k, v, and all parts of a stage on the same channels."""
    wrapped = wrapped_original()
    choices = {
        "stages.0.embed_dim": 8,
        "stages.1.embed_dim": 24,
        "stages.1.blocks.1.num_heads": 2,
        "stages.0.blocks.0.num_heads": 1,
    }
    subnet = search_space(wrapped).subnet(choices, fill="largest")
    with use_subnet(wrapped, subnet):
        export = export_subnet(wrapped)
        before, width = (wrapped._dims[word].channels() for word in ("w0", "w1"))
        attn = wrapped.blocks[1][1].attn
        inner = attn._dims["h d"].channels()
        assert len(set((inner // 8).tolist())) == 2  # two whole heads of 8
        got, state = export.state_dict(), wrapped.state_dict()

        def whole(name):
            return state[f"{name}.weight"]

        attention = "blocks.1.1.attn"
        kv = torch.cat([inner, 32 + inner])
        expected = {
            "patch_embeds.1.proj": whole("patch_embeds.1.proj")[width][:, before],
            "patch_embeds.1.norm": whole("patch_embeds.1.norm")[width],
            "pos_block.1.proj.0": whole("pos_block.1.proj.0")[width],
            f"{attention}.q": whole(f"{attention}.q")[inner][:, width],
            f"{attention}.kv": whole(f"{attention}.kv")[kv][:, width],
            f"{attention}.sr": whole(f"{attention}.sr")[width][:, width],
            f"{attention}.norm": whole(f"{attention}.norm")[width],
            f"{attention}.proj": whole(f"{attention}.proj")[width][:, inner],
        }
        for name, weight in expected.items():
            assert torch.equal(got[f"{name}.weight"], weight), name


def test_only_what_is_active_gets_gradient():
    wrapped = wrapped_original().double().train()
    x = images(wrapped).double()
    for _ in some(wrapped, 4):
        wrapped.zero_grad(set_to_none=True)
        export = export_subnet(wrapped)
        wrapped(x).square().sum().backward()
        export(x).square().sum().backward()
        for row, depth in zip(wrapped._modules["blocks"], wrapped.depths, strict=True):
            for slot, block in enumerate(row):
                assert (block.norm1._parameters["weight"].grad is None) == (slot >= depth)
        got = torch.cat([p.grad[p.grad != 0] for p in wrapped.parameters() if p.grad is not None])
        expected = torch.cat([p.grad[p.grad != 0] for p in export.parameters() if p.grad is not None])
        torch.testing.assert_close(got.sort().values, expected.sort().values, rtol=1e-9, atol=1e-12)


# -- choices -----------------------------------------------------------------------------------------------------------


def values_of(model, **options):
    return {name: choice.values for name, choice in search_space(wrap(model, **options)).choices.items()}


def test_names_and_values_of_choices():
    values = values_of(original(), embed_dim="auto", depth="auto")
    expected = {
        "stages.0.embed_dim": (8, 12, 16),
        "stages.1.embed_dim": (16, 24, 32),
        "stages.2.embed_dim": (24, 36, 48),
        "stages.0.depth": (2, 3),
        "stages.1.depth": (1, 2),
        "stages.2.depth": (2, 3, 4),
    }
    heads, hidden = ([(1, 2), (1, 2, 3, 4), (1, 2, 3)], [(16, 32, 48, 64), (16, 32, 48, 64), (36, 72, 108, 144)])
    for stage, slots in enumerate((3, 2, 4)):
        for slot in range(slots):
            expected[f"stages.{stage}.blocks.{slot}.num_heads"] = heads[stage]
            expected[f"stages.{stage}.blocks.{slot}.mlp_dim"] = hidden[stage]
    assert values == expected
    space = search_space(wrapped_original())
    assert space.size == math.prod(
        3 * sum((len(heads[stage]) * 4) ** m for m in range(least, most + 1))
        for stage, (least, most) in enumerate(((2, 3), (1, 2), (2, 4)))
    )


def test_wrap_alone_makes_heads_and_mlp_searchable():
    assert search_space(wrap(original())).size == (2 * 4) ** 3 * (4 * 4) ** 2 * (3 * 4) ** 4


def test_values_for_all_stages_and_for_each():
    values = values_of(
        original(),
        embed_dim=["50%", "100%"],
        num_heads=[None, [2, 4], "auto"],
        mlp_ratio=[None, None, [0.5, 3]],
        depth=[[1, 3], None, ["50%", 4]],
        blocks=[None, [1], range(2)],
    )
    assert values == {
        "stages.0.embed_dim": (8, 16),
        "stages.1.embed_dim": (16, 32),
        "stages.2.embed_dim": (24, 48),
        "stages.0.depth": (1, 3),
        "stages.2.depth": (2, 4),
        "stages.1.blocks.1.num_heads": (2, 4),
        "stages.2.blocks.0.num_heads": (1, 2, 3),
        "stages.2.blocks.1.num_heads": (1, 2, 3),
        "stages.2.blocks.0.mlp_dim": (24, 144),
        "stages.2.blocks.1.mlp_dim": (24, 144),
    }
    assert values_of(original(), num_heads=None, mlp_ratio=["25%", "100%"], blocks=[1]) == {
        "stages.0.blocks.1.mlp_dim": (16, 64),
        "stages.1.blocks.1.mlp_dim": (16, 64),
        "stages.2.blocks.1.mlp_dim": (36, 144),
    }


@pytest.mark.parametrize(
    ("once", "given"),
    [
        (lambda: iter(["25%", "100%"]), ["25%", "100%"]),
        (lambda: [None, iter(["25%", "100%"]), None], [None, ["25%", "100%"], None]),
        (lambda: iter([None, ["25%", "100%"], None]), [None, ["25%", "100%"], None]),
    ],
)
def test_an_iterator_serves_every_stage_and_every_block(once, given):
    assert values_of(original(), mlp_ratio=once()) == values_of(original(), mlp_ratio=given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": [None, "auto"]}, "embed_dim: expected one entry for each of the 3 stages, or values for all, got 2"),
        ({"num_heads": [[1, 2]] * 4}, "num_heads: expected one entry for each of the 3 stages"),
        ({"depth": ["auto"] * 2}, "depth: expected one entry"),
        ({"embed_dim": range(1, 10**9)}, r"stages\.0\.embed_dim: expected ints in 1\.\.16"),
        ({"blocks": [None, [0]]}, "blocks: expected one entry"),
        ({"embed_dim": [16, 32, 48]}, r"stages\.0\.embed_dim: expected ints in 1\.\.16.*got 32"),
        ({"num_heads": [[1], "auto", None]}, r"stages\.0\.num_heads|stages\.0\.blocks\.0\.num_heads: the largest has to be"),
        ({"num_heads": ["50%", "100%"]}, r"stages\.2\.blocks\.0\.num_heads: '50%' of 3 is no whole number"),
        ({"mlp_ratio": [2, 4]}, r"stages\.1\.blocks\.0\.mlp_dim: expected an mlp_ratio in \(0, 2\]"),
        ({"mlp_ratio": [None, [True], None]}, "got True"),
        ({"embed_dim": ["0%", "100%"]}, r"percentage in \(0, 100\]"),
        ({"depth": [None, None, [5]]}, r"stages\.2\.depth: expected ints in 1\.\.4"),
        ({"depth": [None, None, []]}, "got nothing"),
        ({"blocks": [2]}, r"stages\.1\.blocks: expected numbers in 0\.\.1, got 2"),
        ({"blocks": [None, 1, None]}, r"stages\.1\.blocks: expected several numbers"),
        ({"order": "random"}, "order: expected one of magnitude, activation, None"),
        ({"sharing": "fair"}, "sharing"),
    ],
)
def test_values_that_do_not_fit_are_refused(options, message):
    model = original()
    with pytest.raises(ChoiceError, match=message):
        wrap(model, **options, inplace=True)
    assert type(model) is timm.models.Twins  # untouched


def test_parts_of_another_kind_are_refused_by_name():
    model = original()
    model.blocks[1][0].attn = timm.layers.Attention(32)
    with pytest.raises(WrapError, match="does not run"):
        wrap(model)
    with torch.device("meta"):
        model = timm.create_model("twins_svt_small")
    with pytest.raises(WrapError, match="meta device"):
        wrap(model)
    with pytest.raises(WrapError, match="searchable already"):
        wrap(wrap(original()))
    with pytest.raises(WrapError, match="searchable already"):
        wrap(vitas.create_superformer("twins_micro", img_size=32))


def test_in_place():
    model = original()
    parameters, x = list(model.parameters()), images(model)
    expected = model(x)
    assert wrap(model, inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(x), expected)


# -- timm's methods ----------------------------------------------------------------------------------------------------


@every_kind
def test_features_and_intermediates_are_those_of_the_export(kind):
    wrapped = wrapped_original(kind)
    x = images(wrapped)
    for _ in some(wrapped, 3):
        export = export_subnet(wrapped)
        features = wrapped.forward_features(x)
        assert relative_error(export.forward_features(x), features) <= 1e-5
        for pre_logits in (False, True):
            got, expected = (one.forward_head(features, pre_logits=pre_logits) for one in (export, wrapped))
            assert relative_error(got, expected) <= 1e-5
        for options in ({}, {"indices": 1}, {"indices": [0], "stop_early": True}, {"norm": True}):
            last, several = wrapped.forward_intermediates(x, **options)
            wanted_last, wanted = export.forward_intermediates(x, **options)
            assert relative_error(last, wanted_last) <= 1e-5
            assert len(several) == len(wanted)
            assert all(relative_error(a, b) <= 1e-5 for a, b in zip(several, wanted, strict=True))
        maps = wrapped.forward_intermediates(x, intermediates_only=True)
        assert wrapped.feature_info == export.feature_info
        assert [info["num_chs"] for info in wrapped.feature_info] == [m.shape[1] for m in maps] == wrapped.embed_dims
        assert [info["reduction"] for info in wrapped.feature_info] == [x.shape[2] // m.shape[2] for m in maps]
        assert wrapped.num_features == export.num_features == wrapped.embed_dims[-1]


def test_a_new_classifier_is_searchable():
    wrapped = wrapped_original()
    x = images(wrapped)
    sample_subnet(wrapped, policy="smallest")
    wrapped.reset_classifier(7)
    assert wrapped.state_dict()["head.weight"].shape == (7, 48)
    assert wrapped.get_classifier().weight.shape == (7, 48)
    assert wrapped(x).shape == (2, 7)
    assert relative_error(export_subnet(wrapped)(x), wrapped(x)) <= 1e-5
    assert count_flops(wrapped).total == macs(export_subnet(wrapped), x[:1])
    wrapped.reset_classifier(7, "")
    assert wrapped(x).shape == (2, 9, 7)
    wrapped.reset_classifier(0, "avg")
    assert wrapped(x).shape == (2, 24)


def test_checkpoints_of_timm_load():
    wrapped, model = wrapped_original(), randomize(original(), seed=5)
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
    model.pretrained_cfg = timm.get_pretrained_cfg("twins_svt_small").to_dict()
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    assert resolve_model_data_config(wrapped) == resolve_model_data_config(model)
    assert wrapped.no_weight_decay() == model.no_weight_decay()
    for coarse in (False, True):
        assert wrapped.group_matcher(coarse) == model.group_matcher(coarse)
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


def test_drop_path_rates_are_stretched_over_the_blocks_that_run_in_all_stages():
    wrapped = wrap(original(drop_path_rate=0.4), depth=[[1, 3], None, [1, 2, 4]])

    def rates(**depths):
        subnet = search_space(wrapped).subnet(
            {f"stages.{stage[1:]}.depth": d for stage, d in depths.items()}, fill="largest"
        )
        export = export_subnet(wrapped, subnet)
        return [getattr(block.drop_path2, "drop_prob", 0.0) for row in export.blocks for block in row]

    assert rates() == pytest.approx([0.4 * i / 8 for i in range(9)])
    assert rates(s0=1, s2=2) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert rates(s0=3, s2=1) == pytest.approx([0.0, 0.08, 0.16, 0.24, 0.32, 0.4])


def test_copies_keep_their_own_active_subnet_and_their_own_layers():
    wrapped = wrapped_original()
    x = images(wrapped)
    sample_subnet(wrapped, policy="smallest")
    expected = wrapped(x)
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        sample_subnet(wrapped, policy="largest")
        assert torch.equal(twin(x), expected)
        sample_subnet(wrapped, policy="smallest")
        randomize(twin, seed=1)
        assert torch.equal(wrapped(x), expected)
        assert relative_error(export_subnet(twin)(x), twin(x)) <= 1e-5


def test_a_layer_that_takes_anothers_place_runs_in_every_subnet():
    """timm's code and ours are two ways through the same layers."""
    wrapped = wrapped_original()
    x = images(wrapped)

    class Doubled(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return 2 * self.layer(x)

    for policy in ("largest", "smallest"):
        sample_subnet(wrapped, policy=policy)
        changed = copy.deepcopy(wrapped)
        attn = changed.blocks[0][0].attn
        attn.proj = Doubled(attn.proj)
        twice = copy.deepcopy(wrapped)
        with torch.no_grad():
            for parameter in twice.blocks[0][0].attn.proj.parameters():
                parameter *= 2
        assert relative_error(changed(x), twice(x)) <= 1e-6
        assert relative_error(changed(x), wrapped(x)) > 1e-3


def test_dropout_follows_the_mode_in_every_subnet():
    wrapped = wrapped_original("dropout")
    x = images(wrapped)
    for policy in ("largest", "smallest"):
        sample_subnet(wrapped, policy=policy)
        assert torch.equal(wrapped.eval()(x), wrapped(x))
        assert not torch.equal(wrapped.train()(x), wrapped(x))
        outputs = []
        for one in (wrapped, export_subnet(wrapped)):
            torch.manual_seed(1)
            outputs.append(one(x))
        assert relative_error(*outputs) <= 1e-5


def test_pruning_by_hand_is_refused():
    with pytest.raises(VitasError, match="export a subnet"):
        wrap(original()).prune_intermediate_layers(1)


def test_an_export_has_the_methods_of_timm():
    wrapped, own = wrapped_original(), original()
    own.prune_intermediate_layers([0])
    left = len(own.forward_intermediates(images(own), intermediates_only=True))  # timm 1.0.23 leaves the other patches
    for _ in some(wrapped, 2):
        export = export_subnet(wrapped)
        export.reset_classifier(3)
        assert export(images(export)).shape == (2, 3)
        assert export.no_weight_decay() == wrapped.no_weight_decay()
        export.prune_intermediate_layers([0])
        assert len(export.forward_intermediates(images(export), intermediates_only=True)) == left


def test_budgets_counts_and_search_are_those_of_any_superformer(tmp_path):
    wrapped = wrapped_original()
    space, model = search_space(wrapped), vitas.cost_model(wrapped)
    largest = count_flops(wrapped, space.largest()).total
    for _ in range(5):
        subnet = sample_subnet(wrapped, flops=("40%", "60%"))
        assert 0.4 * largest <= count_flops(wrapped, subnet).total <= 0.6 * largest
        assert model.flops(subnet) == count_flops(wrapped, subnet).total
    result = vitas.evolve(
        wrapped, lambda one: -float(one.depths[2]), flops=("40%", "60%"), population=4, generations=2, progress=False
    )
    assert 0.4 * largest <= count_flops(wrapped, result.best).total <= 0.6 * largest
    vitas.save_superformer(wrapped, tmp_path / "weights")
    other = wrap(randomize(original(), seed=3), embed_dim="auto", depth="auto")
    vitas.load_superformer(other, tmp_path / "weights")
    assert torch.equal(other(images(other)), wrap(original())(images(other)))


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_it_makes_a_bounded_number_of_graphs():
    """For each stage merging, two kinds of block, position generator; head counts above 1, a case of its own."""
    from tests.test_compile import compare_over_subnets

    torch._dynamo.reset()
    two = {name: SMALL[name][:2] for name in KINDS["one stage"]}
    wrapped = wrap(original(**two).double(), embed_dim="auto", depth="auto", num_heads=[None, [2, 4]])
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        history = compare_over_subnets(wrapped, images(wrapped).double(), 4)
    assert history[-1] == history[2] <= 14


# -- order -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", ["ordinal", "bilateral", "cyclic"])
@pytest.mark.parametrize("kind", ["svt", "pcpvt", "one stage"])
def test_order_keeps_the_function(kind, sharing):
    model = original(kind)
    wrapped = wrapped_original(kind, order="magnitude", sharing=sharing)
    assert relative_error(wrapped(images(model)), model(images(model))) <= 1e-5
    state = model.state_dict()
    assert any(not torch.equal(value, state[name]) for name, value in wrapped.state_dict().items())


def test_the_heaviest_channels_and_heads_of_a_stage_come_first():
    model = original()
    with torch.no_grad():  # channels of stage 1 and its heads the heavier the later
        for name, parameter in model.named_parameters():
            if name.endswith("1.proj.0.weight") or (name.startswith("patch_embeds.1.") and parameter.ndim > 1):
                parameter *= torch.linspace(1, 50, 32)[:, None, None, None]
        model.blocks[1][0].attn.proj.weight *= torch.tensor([1.0, 3.0, 2.0, 9.0]).repeat_interleave(8)
    wrapped = wrap(model, embed_dim="auto", order="magnitude", sharing="ordinal")
    new, old = wrapped.state_dict(), model.state_dict()
    for name in ("patch_embeds.1.proj.weight", "pos_block.1.proj.0.weight"):
        squares = new[name].flatten(1).norm(dim=1)
        assert squares[:16].min() > squares[24:].max() * 0.2
        assert squares[:16].mean() > 1.5 * squares[16:].mean()
    heads, before = (
        state["blocks.1.0.attn.qkv.weight"].view(3, 4, 8, 32).square().sum(dim=(0, 2, 3)) for state in (new, old)
    )
    torch.testing.assert_close(heads, before[[3, 1, 2, 0]])


def test_channels_that_are_outputs_are_not_permuted():
    model = original("no classifier")
    with pytest.raises(ChoiceError, match="are the outputs"):
        wrap(model, embed_dim="auto", order="magnitude")
    wrapped = wrap(model, embed_dim=["auto", "auto", None], order="magnitude")
    assert relative_error(wrapped(images(model)), model(images(model))) <= 1e-5


# -- reports and files -------------------------------------------------------------------------------------------------


def test_a_report_says_what_timms_constructor_can_build():
    from timm.models.twins import Twins

    wrapped = wrapped_original()
    space = search_space(wrapped)
    widths = {"stages.0.embed_dim": 16, "stages.1.embed_dim": 24, "stages.2.embed_dim": 48}
    even = {f"stages.1.blocks.{i}.num_heads": 3 for i in range(2)}
    subnet = space.subnet({**widths, **even}, fill="largest")
    report = export_report(wrapped, subnet)
    assert report.of_class == "timm.models.twins.Twins"
    assert report.arguments == {
        "embed_dims": [16, 24, 48],
        "depths": [3, 2, 4],
        "num_heads": [2, 3, 3],
        "mlp_ratios": [4.0, pytest.approx(64 / 24), 3.0],
    }
    assert str(report).startswith("timm.models.twins.Twins(embed_dims=[16, 24, 48], depths=[3, 2, 4]")
    export = export_subnet(wrapped, subnet)
    built = Twins(**{**SMALL, **report.arguments}).eval()
    built.load_state_dict(export.state_dict())
    assert torch.equal(built(images(built)), export(images(built)))
    report = export_report(wrapped, space.subnet({**widths, **even, "stages.1.embed_dim": 32}, fill="largest"))
    assert report.arguments is None
    assert report.reasons == ("stages.1: 3 heads have 8 channels each and not embed_dim / num_heads = 10.6667",)
    assert report.of_plain == ("blocks.1.0.attn", "blocks.1.1.attn")
    assert "Of vitas.plain" in str(report)
    report = export_report(wrapped, space.subnet({**widths, **even, "stages.2.blocks.0.mlp_dim": 36}, fill="largest"))
    assert report.reasons == ("stages.2: the hidden width of the MLP differs from block to block: 36, 144, 144, 144",)
    assert report.of_plain == ()


def test_a_ratio_in_a_report_gives_back_the_hidden_width():
    """timm rounds embed_dim * mlp_ratio down, so the quotient alone is one short for some widths."""
    from vitas.wrapping.arguments import constructor_arguments as _arguments

    for dim in range(1, 200):
        for hidden in range(1, 4 * dim, 7):
            own = timm_sizes(dim, hidden)
            assert int(dim * _arguments(own)["mlp_ratio"]) == hidden


def timm_sizes(dim, hidden):
    from vitas.wrapping.constructor import Sizes

    return Sizes("", dim, 1, (1,), (dim,), (hidden,), (1,))


@every_kind
def test_what_is_saved_comes_back_bit_by_bit(kind, tmp_path):
    wrapped = wrapped_original(kind)
    x = images(wrapped)
    networks = [original(kind), *(export_subnet(wrapped) for _ in some(wrapped, 3))]
    for i, network in enumerate(networks):
        save_subnet(network, tmp_path / f"net{i}")
        loaded = load_subnet(tmp_path / f"net{i}").eval()
        assert type(loaded) is type(network)
        assert repr(loaded) == repr(network)
        assert torch.equal(loaded(x), network.eval()(x))
        assert loaded.feature_info == network.feature_info
        assert (list(loaded.depths), list(loaded.embed_dims)) == (list(network.depths), list(network.embed_dims))


def test_another_image_size_on_loading(tmp_path):
    wrapped = wrapped_original()
    sample_subnet(wrapped, policy="smallest")
    export = export_subnet(wrapped)
    save_subnet(export, tmp_path / "net")
    larger = load_subnet(tmp_path / "net", img_size=(64, 96)).eval()
    x = images(larger)
    assert x.shape == (2, 3, 64, 96)
    assert torch.equal(larger(x), export(x))
    again = wrap(larger)
    assert count_flops(again).total == macs(larger, x[:1])
    with pytest.raises(VitasError, match="img_size: expected multiples of 16 pixels, got 50 x 50"):
        load_subnet(tmp_path / "net", img_size=50)


def test_a_changed_network_is_not_saved(tmp_path):
    for change, message in (
        (lambda m: setattr(m.blocks[0][0].attn, "scale", 0.5), r"cannot express: blocks\.0\.0\.attn\.scale"),
        (lambda m: setattr(m.pos_drops[1], "p", 0.5), r"cannot express: pos_drops\.1\.p"),
        (lambda m: setattr(m.blocks[0][0].mlp, "act", nn.Hardswish()), "Hardswish is none of"),
        (lambda m: setattr(m, "embed_dims", [1, 2, 3]), r"cannot express: \.embed_dims"),
        (lambda m: m.patch_embeds.append(nn.Identity()), "config"),
    ):
        model = original()
        change(model)
        with pytest.raises(FileError, match=message):
            save_subnet(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(stages=[]), "stages: expected a list of 1 to 128, got"),
        (lambda m: m["stages"].pop(), "tensors that the network does not have"),
        (lambda m: m["stages"].clear(), "stages: expected a list of 1 to 128, got"),
        (
            lambda m: m["stages"][0].update(blocks=m["stages"][0]["blocks"] * 64),
            "expected a list of 0 to 128|at most 128 blocks",
        ),
        (lambda m: m.update(stages=m["stages"] * 40), "stages: expected at most 128 blocks, got"),
        (lambda m: m["stages"].extend([{}] * 128), "stages: expected a list of 1 to 128, got"),
        (lambda m: m.update(stages=[[]]), "stages.0: expected an object, got list"),
        (lambda m: m.update(stages={"blocks": 3}), "stages: expected a list of 1 to 128, got"),
        (lambda m: m["stages"][0].update(embed_dim=10**30), "stages.0.embed_dim: expected an int of at most"),
        (lambda m: m["stages"][0].update(embed_dim=10), "describes no network|expected shape"),
        (lambda m: m["stages"][1].pop("patch_norm"), "stages.1: missing patch_norm"),
        (
            lambda m: m["stages"][1]["blocks"][0]["attn"].update({"class": "os.system"}),
            "stages.1.blocks.0.attn.class: expected .*, got 'os.system'",
        ),
        (
            lambda m: m["stages"][1]["blocks"][0]["attn"].update(window_size=0),
            "attn.window_size: expected a positive int, got 0",
        ),
        (
            lambda m: m["stages"][1]["blocks"][0]["attn"].update(qkv_dim=2.5),
            "attn.qkv_dim: expected a positive int, got 2.5",
        ),
        (
            lambda m: m["stages"][0]["blocks"][1]["attn"].update(sr_ratio=-1),
            "attn.sr_ratio: expected a positive int, got -1",
        ),
        (lambda m: m["stages"][0]["blocks"][1]["attn"].update(surprise=1), "attn: unknown field, .* got 'surprise'"),
        (lambda m: m.update(patch_size=[4, 8]), "patch_size"),
        (lambda m: m.update(global_pool="max"), "global_pool: expected one of , avg, got 'max'"),
    ],
)
def test_a_config_that_describes_no_network_is_refused(tmp_path, change, message):
    import json

    from vitas.export.network import _hash

    wrapped = wrapped_original()
    sample_subnet(wrapped, policy="smallest")
    export = export_subnet(wrapped)
    del export.made_from  # so that the file says all sizes
    save_subnet(export, tmp_path / "net")
    file = tmp_path / "net" / "config.json"
    config = json.loads(file.read_text())
    change(config["model"])
    config["hash"] = _hash(config)
    file.write_text(json.dumps(config))
    with pytest.raises(FileError, match=message):
        load_subnet(tmp_path / "net")


def test_timm_builds_what_was_registered(tmp_path):
    wrapped = wrapped_original()
    for policy in ("largest", "smallest"):  # of timm's classes; with attention of vitas.plain
        sample_subnet(wrapped, policy=policy)
        export, name = export_subnet(wrapped), f"a_{policy}_twins"
        save_subnet(export, tmp_path / name)
        assert register(tmp_path / name) == name
        x = images(export)
        model = timm.create_model(name, pretrained=True).eval()
        assert torch.equal(model(x), export(x))
        fresh = timm.create_model(name).eval()
        assert not torch.equal(fresh(x), export(x))
        assert (fresh.head.bias == 0).all()  # drawn as timm draws them
        other = timm.create_model(name, pretrained=True, num_classes=9, img_size=64, global_pool="")
        assert other(torch.randn(2, 3, 64, 64)).shape == (2, 16, 9)
        again = wrap(model, embed_dim="auto", depth="auto")  # what was found can be searched further
        assert torch.equal(again(x), export(x))
        for _ in some(again, 4):
            assert relative_error(export_subnet(again)(x), again(x)) <= 1e-5
            assert count_flops(again).total == macs(export_subnet(again), x[:1])
        save_subnet(export_subnet(again), tmp_path / f"{name}_again")
        assert torch.equal(load_subnet(tmp_path / f"{name}_again").eval()(x), export_subnet(again)(x))


# -- whole models ------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
@pytest.mark.parametrize(("size", "number"), [(64, 30), ((96, 128), 19), (224, 1)])
@pytest.mark.parametrize("name", ["twins_svt_small", "twins_svt_base", "twins_pcpvt_small"])
def test_fifty_random_subnets_of_a_published_model(name, size, number):
    model = randomize(timm.create_model(name, img_size=size, num_classes=100)).eval()
    wrapped = wrap(model, embed_dim="auto", depth="auto", inplace=True)
    x = images(wrapped, 1)
    for _ in some(wrapped, number):
        export = export_subnet(wrapped)
        with torch.no_grad():
            assert relative_error(export(x), wrapped(x)) <= 1e-5
        assert count_flops(wrapped).total == macs(export.to("meta"), x.to("meta"))
        assert count_params(wrapped) == sum(parameter.numel() for parameter in export.parameters())


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["twins_svt_small", "twins_pcpvt_small", "twins_pcpvt_base"])
def test_the_largest_subnet_of_a_published_model_is_the_model(name):
    model = timm.create_model(name, drop_path_rate=0.2, img_size=96)
    wrapped = wrap(randomize(model), embed_dim="auto", depth="auto")
    x = images(model, 1)
    for training in (False, True):
        outputs = []
        for one in (model, wrapped):
            torch.manual_seed(0)
            outputs.append(one.train(training)(x))
        assert torch.equal(*outputs)

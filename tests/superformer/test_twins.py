import copy
import pickle
from itertools import product

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import vitas
from tests.contract import PATTERNS, is_plain, macs, randomize, relative_error
from vitas import (
    ChoiceError,
    activate_subnet,
    active_subnet,
    count_flops,
    count_params,
    create_superformer,
    export_subnet,
    sample_subnet,
    search_space,
    use_subnet,
)
from vitas.errors import ShapeError
from vitas.nn.subsampled import ElasticSubsampledAttention
from vitas.nn.window import ElasticWindowAttention
from vitas.superformer.twins import TwinsSuperformer


def small(img_size=(12, 10), **options):
    """Two stages with every kind of choice; maps of 6 x 5 and 3 x 2, which windows of 3 and 2 do not fill."""
    space = {
        "patch_size": 2,
        "in_chans": 2,
        "num_classes": 5,
        "embed_dims": [[4, 6], [6, 8, 10]],
        "depths": [range(1, 3), range(1, 5)],
        "num_heads": [[1, 2], [2, 4]],
        "qkv_dims": [[4, 8], [8, 12]],
        "mlp_dims": [[3, 6], [4, 8]],
        "sr_ratios": [2, 1],
        "wss": [3, 2],
    }
    return TwinsSuperformer(img_size, **{**space, **options})


def images(*size, seed=0):
    return torch.randn(2, 2, *(size or (12, 10)), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draws(model, number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [sample_subnet(model, generator=generator, activate=False) for _ in range(number)]


# -- the plain model -----------------------------------------------------------------------------------------------------

SHAPE = {"embed_dims": [8, 12], "num_heads": [2, 3], "depths": [2, 3], "mlp_ratios": [4, 2], "sr_ratios": [2, 1]}


@pytest.mark.extras
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"wss": None},
        {"wss": (2, 7)},
        {"global_pool": ""},
        {"num_classes": 0},
        {"in_chans": 1, "patch_size": 2},
        {"drop_path_rate": 0.3, "pos_drop_rate": 0.1, "proj_drop_rate": 0.2, "attn_drop_rate": 0.1, "drop_rate": 0.1},
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (37, 58)])
def test_with_ints_it_is_timms_twins(options, size):
    from timm.models.twins import Twins

    options = {"num_classes": 7, "wss": (3, 3), **options}
    theirs = randomize(Twins(32, **SHAPE, **options).double()).eval()
    ours = TwinsSuperformer(32, **SHAPE, **options).double().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, options.get("in_chans", 3), *size, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    plain = export_subnet(ours)
    assert list(plain.state_dict()) == list(theirs.state_dict())
    assert torch.equal(plain(x), ours(x))
    assert torch.equal(plain.forward_features(x), ours.forward_features(x))
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-12, atol=1e-12)
    assert ours.no_weight_decay() == plain.no_weight_decay() == theirs.no_weight_decay()
    if options.get("drop_path_rate"):
        rates = [block.drop_path1.drop_prob for row in ours.blocks for block in row]
        assert rates == pytest.approx(
            [getattr(block.drop_path1, "drop_prob", 0.0) for row in theirs.blocks for block in row]
        )


@pytest.mark.extras
@pytest.mark.parametrize("name", ["twins_svt_small", "twins_svt_base", "twins_svt_large"])
def test_named_twins_have_timms_keys_and_shapes(name):
    import timm

    with torch.device("meta"):
        ours, theirs = create_superformer(name), timm.create_model(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.extras
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("twins_svt_small", 224),
        pytest.param("twins_svt_base", 96, marks=pytest.mark.heavy),
        pytest.param("twins_svt_large", 96, marks=pytest.mark.heavy),
    ],
)
def test_named_twins_give_timms_logits(name, size):
    import timm

    theirs = randomize(timm.create_model(name, img_size=size).double()).eval()
    ours = create_superformer(name, img_size=size).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(ours(x), theirs(x)) <= 1e-12


@pytest.mark.extras
def test_fresh_weights_are_drawn_as_in_timm():
    from timm.models.twins import Twins

    shape = {"embed_dims": [96, 128], "num_heads": [2, 4], "depths": [2, 2], "sr_ratios": [2, 1], "wss": (3, 3)}
    torch.manual_seed(0)
    theirs, ours = Twins(32, **shape), TwinsSuperformer(32, **shape)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        sd, n = b.std(correction=0).item(), b.numel()
        assert a.mean().item() == pytest.approx(b.mean().item(), abs=5 * sd * (2 / n) ** 0.5), name
        assert a.std(correction=0).item() == pytest.approx(sd, rel=5 * (1 / n) ** 0.5), name


# -- subnets -------------------------------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"qkv_dims": None, "mlp_dims": None, "mlp_ratios": [[1, 2.5], [2, 3]], "embed_dims": [[4, 8], [8, 12]]},
    {"private": "qk"},
    {"private": "v"},
    {"shift": False},
    {"depths": [range(2, 5, 2), range(2, 7, 2)]},
    {"drop_path_rate": 0.3},
    {"wss": None},
    {"wss": [[2, 3], 4]},
    {"global_pool": ""},
    {"num_classes": 0},
]
IDS = [
    "own",
    "heads and ratios",
    "qk",
    "v",
    "no shifting",
    "pairs",
    "drop path",
    "no windows",
    "searched",
    "no pool",
    "no head",
]


@pytest.mark.parametrize("sharing", PATTERNS)
def test_every_subnet_equals_its_export(sharing):
    model = randomize(small(sharing=sharing).double()).eval()
    x = images()
    for subnet in draws(model, 12):
        for side in ("left", "right") if sharing == "bilateral" else (None,):
            activate_subnet(model, subnet, side=side)
            plain = export_subnet(model)
            assert is_plain(plain)
            assert relative_error(model(x), plain(x)) <= 1e-12


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_options_export_exactly_and_count_exactly(options):
    model = randomize(small(**options).double()).eval()
    x = images()
    for subnet in draws(model, 8):
        plain = export_subnet(model, subnet, verify=x)
        assert count_flops(model, subnet).total == macs(plain, x[:1])
        assert count_params(model, subnet) == sum(parameter.numel() for parameter in plain.parameters())


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (16, 8), (33, 17)])
def test_images_of_any_size(size):
    model = randomize(small().double()).eval()
    counted = small(img_size=size)
    x = images(*size)
    for subnet in draws(model, 5):
        plain = export_subnet(model, subnet, verify=x)
        assert count_flops(counted, subnet).total == macs(plain, x[:1])


@pytest.mark.parametrize("sharing", ["bilateral", "cyclic"])
def test_gradients_are_those_of_the_export(sharing):
    model = randomize(small(sharing=sharing).double())
    x = images()
    for subnet in draws(model, 6):
        activate_subnet(model, subnet)
        plain = export_subnet(model)
        model.zero_grad(set_to_none=True)
        for one in (model, plain):
            one(x).square().sum().backward()
        got = torch.cat([p.grad[p.grad != 0] for p in model.parameters() if p.grad is not None])
        expected = torch.cat([p.grad[p.grad != 0] for p in plain.parameters()])
        torch.testing.assert_close(got.sort().values, expected.sort().values, rtol=1e-9, atol=1e-12)
        for row in model.blocks:
            assert all(p.grad is None for block in list(row)[row.depth.active :] for p in block.parameters())


# -- the space -----------------------------------------------------------------------------------------------------------


def test_names_of_choices():
    names = set(search_space(small()).choices)
    stages = {f"stages.{k}.{word}" for k in range(2) for word in ("embed_dim", "depth")}
    places = [f"stages.{k}.blocks.{i}" for k, slots in enumerate((2, 4)) for i in range(slots)]
    assert names == stages | {f"{place}.{word}" for place in places for word in ("num_heads", "qkv_dim", "mlp_dim")}
    assert "stages.1.blocks.3.mlp_ratio" in search_space(small(mlp_dims=None, mlp_ratios=[[1, 2], [1, 2]])).choices
    assert "stages.0.window_size" in search_space(small(wss=[[2, 3], 2])).choices
    assert "stages.1.use.3" in search_space(small(shift=False)).choices


def test_the_size_of_the_space():
    q = 2 * 2 * 2
    assert search_space(small()).size == 2 * (q + q**2) * 3 * sum(q**m for m in range(1, 5))
    pairs = small(depths=[range(2, 5, 2), range(2, 7, 2)])
    assert search_space(pairs).size == 2 * (q**2 + q**4) * 3 * (q**2 + q**4 + q**6)
    assert search_space(pairs).choices["stages.1.depth"].values == (2, 4, 6)


def test_a_cost_table_is_about_one_block_or_one_merging():
    model = small()
    names = {choice: name for name, choice in search_space(model).choices.items()}
    for bases in model.cost().merged():
        stages = {names[base].split(".")[1] for base in bases}
        blocks = {names[base].split(".")[3] for base in bases if ".blocks." in names[base]}
        assert len(blocks) <= 1
        assert len(stages) == 1 or {names[base] for base in bases} == {"stages.0.embed_dim", "stages.1.embed_dim"}


def test_the_kind_of_attention_belongs_to_the_slot():
    model = small()
    for row in model.blocks:
        kinds = [type(block.attn) for block in row]
        assert kinds == [ElasticWindowAttention, ElasticSubsampledAttention] * (len(row) // 2)
    plain = export_subnet(model, search_space(model).subnet({"stages.1.depth": 3}, fill="largest"))
    kinds = [type(block.attn) for block in plain.blocks[1]]
    assert kinds == [vitas.plain.WindowAttention, vitas.plain.SubsampledAttention, vitas.plain.WindowAttention]
    assert not any(isinstance(part, ElasticWindowAttention) for part in small(wss=None).modules())


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_position_generator_runs_once_behind_the_first_block(depth):
    model = randomize(small())
    space = search_space(model)
    activate_subnet(model, space.subnet({"stages.1.depth": depth}, fill="largest"))
    for one in (model, export_subnet(model)):
        calls = []

        def note(part, inputs, output, calls=calls):
            calls.append((part, inputs[0], output))

        for part in (*one.blocks[1], one.pos_block[1]):
            part.register_forward_hook(note)
        one(images().float())
        first, position, *rest = calls
        assert [part for part, _, _ in calls] == [one.blocks[1][0], one.pos_block[1], *list(one.blocks[1])[1:depth]]
        assert torch.equal(position[1], first[2])
        assert all(torch.equal(after[1], before[2]) for before, after in zip([position, *rest], rest, strict=False))


def test_a_stage_without_blocks_still_makes_positions():
    model = randomize(small(shift=False).double()).eval()
    subnet = search_space(model).subnet({f"stages.1.use.{slot}": 0 for slot in range(4)}, fill="largest")
    plain = export_subnet(model, subnet, verify=images())
    assert len(plain.blocks[1]) == 0
    assert count_flops(model, subnet).total == macs(plain, images()[:1])


def test_drop_path_rises_over_the_blocks_that_run_in_all_stages():
    model = small(drop_path_rate=0.4)
    space = search_space(model)
    for depths in product((1, 2), range(1, 5)):
        activate_subnet(model, space.subnet({f"stages.{k}.depth": d for k, d in enumerate(depths)}, fill="smallest"))
        rates = [block.drop_path2.drop_prob for row in model.blocks for block in row.running()]
        last = sum(depths) - 1
        assert rates == pytest.approx([0.4 * i / last for i in range(last + 1)])
        exported = [getattr(block.drop_path2, "drop_prob", 0.0) for row in export_subnet(model).blocks for block in row]
        assert exported == pytest.approx(rates)


# -- state ---------------------------------------------------------------------------------------------------------------


def test_copies_keep_ties_and_their_own_active_subnet():
    model = randomize(small(drop_path_rate=0.1).double()).eval()
    subnet, other = draws(model, 2)
    x = images()
    with use_subnet(model, subnet):
        expected = model(x)
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), AveragedModel(model)]
    activate_subnet(model, other)
    for twin in twins:
        assert active_subnet(twin) == subnet
        assert torch.equal(twin.eval()(x), expected)
        assert search_space(twin).size == search_space(model).size


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.3])
def test_gradient_checkpointing_belongs_to_the_subnet_that_ran(drop_path_rate):
    model = randomize(small(drop_path_rate=drop_path_rate).double())
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    first, other = draws(model, 2)
    for one in (model, twin):
        activate_subnet(one, first)
        torch.manual_seed(0)
        out = one(images())
        if one is twin:
            activate_subnet(one, other)
        out.square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert torch.equal(a.grad, b.grad)
    assert export_subnet(twin).blocks[0].grad_checkpointing


def test_printing_shows_the_active_subnet():
    model = small()
    activate_subnet(model, search_space(model).smallest())
    text = repr(model)
    assert "active: Subnet of 10 choices" in text
    assert "num_heads=1 of 1..2, window_size=3" in text
    assert "multiply-adds (cheapest / median / costliest)" in repr(search_space(model))
    assert "blocks.1.0" in str(count_flops(model, search_space(model).largest()))


# -- dense features ------------------------------------------------------------------------------------------------------


@pytest.mark.extras
@pytest.mark.parametrize("size", [(32, 32), (37, 58)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 1},
        {"indices": [0, -1], "norm": True},
        {"indices": (0,), "stop_early": True},
        {"intermediates_only": True},
        {"indices": [1], "norm": True, "intermediates_only": True},
    ],
)
def test_features_are_timms(size, options):
    from timm.models.twins import Twins

    theirs = randomize(Twins(32, **SHAPE, wss=(3, 3)).double()).eval()
    ours = TwinsSuperformer(32, **SHAPE, wss=(3, 3)).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(
        ours.forward_intermediates(x, **options), theirs.forward_intermediates(x, **options), rtol=1e-12, atol=1e-12
    )
    for a, b in zip(ours.feature_info, theirs.feature_info, strict=True):
        assert (a["num_chs"], a["reduction"]) == (b["num_chs"], b["reduction"])


@pytest.mark.parametrize("size", [(12, 10), (21, 16)])
def test_features_are_those_of_the_active_subnet(size):
    model = randomize(small().double()).eval()
    x = images(*size)
    for subnet in draws(model, 5):
        activate_subnet(model, subnet)
        plain = export_subnet(model)
        assert model.feature_info == plain.feature_info
        final, maps = model.forward_intermediates(x, norm=True)
        expected_final, expected = plain.forward_intermediates(x, norm=True)
        assert relative_error(final, expected_final) <= 1e-12
        assert torch.equal(final, model.forward_features(x))
        for info, got, wanted in zip(model.feature_info, maps, expected, strict=True):
            assert relative_error(got, wanted) <= 1e-12
            assert got.is_contiguous()
            assert got.shape == (2, info["num_chs"], *(n // info["reduction"] for n in size))
        assert [info["num_chs"] for info in model.feature_info] == [subnet[f"stages.{k}.embed_dim"] for k in range(2)]


# -- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 12, 10), (2, 2, 3, 10), (2, 2, 12, 3), (2, 12, 10)])
def test_images_that_do_not_fit_are_refused(shape):
    model = small()
    for run in (model, model.forward_intermediates):
        with pytest.raises(ShapeError, match=r"expected shape \(batch, 2, height, width\), sides of at least 4, got"):
            run(torch.randn(shape))
    with pytest.raises(ValueError, match="sides of at least 4"):
        export_subnet(model)(torch.randn(shape))


@pytest.mark.parametrize("indices", [0, 3, [2], [-3], []])
def test_features_that_do_not_exist_are_refused(indices):
    model = small()
    with pytest.raises(ChoiceError, match="indices: expected"):
        model.forward_intermediates(images().float(), indices)
    with pytest.raises(ValueError, match="indices: expected"):
        export_subnet(model).forward_intermediates(images().float(), indices)
    with pytest.raises(ValueError, match="output_fmt: expected 'NCHW', got 'NLC'"):
        model.forward_intermediates(images().float(), output_fmt="NLC")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": [[1, 2]]}, "num_heads: expected one entry for each of the 2 stages \\(as embed_dims has\\), got 1"),
        ({"depths": [1, 2, 3]}, "depths: expected one entry for each of the 2 stages \\(as embed_dims has\\), got 3"),
        ({"wss": [7] * 4}, "wss: expected one entry for each of the 2 stages \\(as embed_dims has\\), got 4"),
        ({"embed_dims": range(1, 10**9)}, "embed_dims: expected one entry for each of at most 16 stages, got range"),
        ({"qkv_dims": range(1, 10**9)}, "qkv_dims: expected one entry for each of at most 16 stages, got range"),
        ({"mlp_dims": 8}, "mlp_dims: expected one entry for each stage, got 8"),
        ({"embed_dims": "ab"}, "embed_dims: expected one entry for each stage, got 'ab'"),
        ({"img_size": 3}, "img_size: the stages and sr_ratios need sides of at least 4 pixels, got 3 x 3"),
        ({"img_size": 0}, "img_size: expected a positive int"),
        ({"depths": [range(1, 3), [1, 2, 4]]}, r"stages.1.depth: expected positive ints without gaps, or in equal steps"),
        ({"depths": [0, 2]}, "stages.0.depth"),
        ({"num_heads": [[3], [2]]}, "stages.0.blocks.0.num_heads: 3 heads do not divide a qkv_dim of 4"),
        ({"wss": [3, 0]}, "window_size: expected a positive int, got 0"),
        ({"sr_ratios": [2, 0]}, "sr_ratio: expected a positive int, got 0"),
        ({"sr_ratios": None}, "sr_ratios: expected one entry for each stage, got None"),
        ({"patch_size": [2, 4]}, r"patch_size: expected a positive int, got \[2, 4\]"),
        ({"patch_size": 0}, "patch_size: expected a positive int, got 0"),
        ({"patch_size": 2**62}, "patch_size: expected an int of at most 16777216"),
        ({"in_chans": vitas.Dim([1, 2])}, "in_chans: expected a positive int, got Dim"),
        ({"num_classes": None}, "num_classes: expected an int of at least 0, got None"),
        ({"depths": [vitas.Choice([1, 2]), 2]}, "stages.0.depth: .*depth_p"),
        ({"global_pool": "token"}, "global_pool: expected one of avg, , got 'token'"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate: expected a number in \[0, 1\)"),
        ({"shift": None}, "shift: expected True or False, got None"),
        ({"private": "kv"}, "private: expected one of qk, v, got 'kv'"),
        ({"shift": False, "depths": [range(2, 5, 2), 2]}, "min_depth: without shifting|step: without shifting"),
    ],
)
def test_spaces_that_do_not_fit_are_refused_when_built(options, message):
    with pytest.raises(ChoiceError, match=message):
        small(**options)


def test_a_window_larger_than_the_map_is_one_window():
    model = randomize(small(wss=[9, 9]).double()).eval()
    export_subnet(model, verify=images())
    assert count_flops(model).total == macs(export_subnet(model), images()[:1])


# -- the named space -----------------------------------------------------------------------------------------------------


def test_twins_micro_learns_a_little():
    torch.manual_seed(0)
    model = create_superformer("twins_micro", num_classes=2, img_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.arange(16) % 2
    x = torch.randn(16, 3, 32, 32) + labels.view(-1, 1, 1, 1)
    losses = []
    for _ in range(12):
        sample_subnet(model)
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


@pytest.mark.heavy
def test_200_subnets_of_vitas_twins_export_and_count_exactly():
    sizes = [(224, 224), (96, 96), (128, 64)]
    weights = dict(randomize(create_superformer("vitas_twins", num_classes=10)).state_dict())  # for any pattern
    depths = {k: set() for k in range(4)}
    for number, (sharing, size) in enumerate(product(PATTERNS, sizes)):
        with torch.device("meta"):
            model = create_superformer("vitas_twins", num_classes=10, img_size=size, sharing=sharing)
        model.load_state_dict(weights, assign=True)
        model.eval()
        x = torch.randn(1, 3, *size)
        for subnet in draws(model, 6 if size == sizes[0] else 17, seed=number):
            side = "right" if sharing == "bilateral" else None
            activate_subnet(model, subnet, side=side)
            plain = export_subnet(model)
            with torch.no_grad():
                assert relative_error(model(x), plain(x)) <= 1e-5
            assert count_flops(model, subnet).total == macs(plain.to("meta"), x.to("meta"))
            assert count_params(model, subnet) == sum(parameter.numel() for parameter in plain.parameters())
            for k in range(4):
                depths[k].add(subnet[f"stages.{k}.depth"])
    assert all(depths[k] == set(range(1, most + 1)) for k, most in enumerate((4, 4, 18, 6)))


def test_the_least_image_has_a_position_for_the_keys_of_every_stage():
    stride = small().strides()[0]
    model = small(sr_ratios=[8, 1], img_size=8 * stride)
    assert model(torch.randn(1, 2, 8 * stride, 8 * stride)).shape == (1, 5)
    with pytest.raises(ShapeError, match=f"sides of at least {8 * stride}, got"):
        model(torch.randn(1, 2, 8 * stride, 8 * stride - 1))
    with pytest.raises(ChoiceError, match=f"sides of at least {8 * stride}"):
        small(sr_ratios=[8, 1], img_size=8 * stride - 1)

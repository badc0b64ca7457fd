import copy

import pytest
import torch

from tests.contract import is_plain, macs, randomize, relative_error
from vitas import (
    Choice,
    ChoiceError,
    Dim,
    activate_subnet,
    count_flops,
    count_params,
    create_superformer,
    export_subnet,
    sample_subnet,
    search_space,
    use_subnet,
)
from vitas.errors import ShapeError
from vitas.superformer.deit import DeiTSuperformer


def small(**options):
    """A superformer with every kind of choice that runs in a millisecond."""
    space = {
        "patch_size": [2, 4],
        "embed_dim": [4, 6, 8],
        "depth": range(1, 4),
        "num_heads": [1, 2],
        "qkv_dim": [4, 6],
        "mlp_dim": [3, 6, 8],
        "private": "qk",
        "num_classes": 5,
        "in_chans": 2,
    }
    return DeiTSuperformer(8, **{**space, **options})


TIMM = {"deit_tiny": "deit_tiny_patch16_224", "deit_small": "deit_small_patch16_224", "deit_base": "deit_base_patch16_224"}


@pytest.mark.extras
@pytest.mark.parametrize(
    ("options", "timm_options"),
    [
        ({}, {}),
        ({"global_pool": "avg"}, {"global_pool": "avg"}),
        ({"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg", "fc_norm": False}),
        ({"init_values": 0.1}, {"init_values": 0.1}),
        ({"qk_norm": True}, {"qk_norm": True}),
        ({"qkv_bias": False}, {"qkv_bias": False}),
        ({"num_classes": 0}, {"num_classes": 0}),
        ({"img_size": (32, 48), "in_chans": 1}, {"img_size": (32, 48), "in_chans": 1}),
    ],
)
def test_with_ints_it_is_timms_vision_transformer(options, timm_options):
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 7}
    theirs = randomize(VisionTransformer(**{**shape, **timm_options}).double()).eval()
    ours = DeiTSuperformer(**{**shape, **options}).double().eval()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    height, width = (32, 48) if "in_chans" in options else (32, 32)
    x = torch.randn(2, options.get("in_chans", 3), height, width, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    plain = export_subnet(ours)
    assert set(plain.state_dict()) == set(theirs.state_dict())
    assert torch.equal(plain(x), ours(x))


@pytest.mark.extras
def test_with_ints_and_distillation_it_is_timms_distilled_model():
    from timm.models.deit import VisionTransformerDistilled

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 7}
    theirs = randomize(VisionTransformerDistilled(**shape).double())
    ours = DeiTSuperformer(**shape, distilled=True).double()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model in (ours, theirs):
        model.set_distilled_training(True)
    for a, b in zip(ours.train()(x), theirs.train()(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.extras
@pytest.mark.parametrize("name", ["deit_tiny", "deit_small"])
def test_named_deits_have_timms_keys_and_shapes(name):
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(TIMM[name])
    ours = create_superformer(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ours.no_weight_decay() <= theirs.no_weight_decay()


@pytest.mark.parametrize("sharing", ["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"])
@pytest.mark.parametrize(
    "options",
    [{}, {"private": "v"}, {"private": None, "head_dim": 4, "qkv_dim": None}, {"mlp_dim": None, "mlp_ratio": [1, 2.5]}],
    ids=["private qk", "private v", "heads decide the width", "mlp ratio"],
)
def test_every_subnet_equals_its_export(sharing, options):
    model = randomize(small(sharing=sharing, **options).double()).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    for _ in range(12):
        subnet = sample_subnet(model, generator=generator)
        for side in ("left", "right") if sharing == "bilateral" else (None,):
            activate_subnet(model, subnet, side=side)
            plain = export_subnet(model)
            assert is_plain(plain)
            assert relative_error(model(x), plain(x)) <= 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"distilled": True},
        {"global_pool": "avg"},
        {"global_pool": "avg", "fc_norm": False},
        {"init_values": 0.5},
        {"num_classes": 0},
        {"drop_path_rate": 0.3},
        {"shift": False},
        {"private": None, "head_dim": 4, "qkv_dim": None, "qk_norm": True},
    ],
)
def test_options_export_exactly_and_count_exactly(options):
    model = randomize(small(**options).double()).eval()
    space = search_space(model)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    for _ in range(6):
        subnet = space.sample(generator)
        plain = export_subnet(model, subnet, verify=x)
        assert count_flops(model, subnet).total == macs(plain, x[:1])
        assert count_params(model, subnet) == sum(parameter.numel() for parameter in plain.parameters())


def test_one_choice_object_ties_all_blocks():
    heads, hidden = Choice([1, 2], name="num_heads"), Dim([4, 8], name="mlp_dim")
    model = small(num_heads=heads, qkv_dim=8, mlp_dim=hidden, private=None)
    assert set(search_space(model).choices) == {"embed_dim", "patch_size", "depth", "num_heads", "mlp_dim"}
    assert search_space(model).size == 3 * 2 * 3 * 2 * 2


def test_names_of_choices():
    names = set(search_space(small()).choices)
    per_block = {f"blocks.{i}.{word}" for i in range(3) for word in ("num_heads", "qkv_dim", "mlp_dim")}
    assert names == {"embed_dim", "patch_size", "depth"} | per_block
    assert "blocks.2.mlp_ratio" in search_space(small(mlp_dim=None, mlp_ratio=[1, 2])).choices


def test_distilled_training_returns_both_outputs_while_training():
    model = small(distilled=True)
    model.set_distilled_training()
    x = torch.randn(3, 2, 8, 8)
    a, b = model.train()(x)
    assert a.shape == b.shape == (3, 5)
    plain = export_subnet(model)
    torch.testing.assert_close(plain(x), (a, b))
    torch.testing.assert_close(model.eval()(x), (a + b) / 2)


def test_patch_sizes_have_private_projections_tokens_and_positions():
    model = randomize(small())
    x = torch.randn(2, 2, 8, 8)
    with use_subnet(model, {**search_space(model).largest(), "patch_size": 2}):
        model(x).sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"cls_token.2", "pos_embed.2", "patch_embed.proj.2.weight"} <= touched
    assert not {"cls_token.4", "pos_embed.4", "patch_embed.proj.4.weight"} & touched
    assert model.no_weight_decay() == {"cls_token.2", "cls_token.4", "pos_embed.2", "pos_embed.4"}


def test_every_position_of_the_table_is_used():
    model = randomize(small())
    model(torch.randn(2, 2, 8, 8)).square().sum().backward()
    assert (model.pos_embed["4"].grad.abs().sum(-1) > 0).all()


def test_gradient_checkpointing_keeps_outputs_and_gradients():
    model = randomize(small().double())
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    for one in (model, twin):
        one(x).square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert torch.equal(a.grad, b.grad)


def test_printing_shows_the_active_subnet():
    model = small()
    activate_subnet(model, search_space(model).smallest())
    text = repr(model)
    assert "active: Subnet of 6 choices" in text
    assert "4 of 4..8" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 3}, "patch_size: 3 does not divide an image of 8 x 8 pixels; these do: 1, 2, 4, 8"),
        ({"num_heads": [3]}, "blocks.0.num_heads: 3 heads do not divide a qkv_dim of 4"),
        ({"global_pool": "mean"}, "global_pool: expected one of token, avg, got 'mean'"),
        ({"distilled": True, "global_pool": "avg"}, "distilled model"),
        ({"distilled": "no"}, "distilled: expected True or False, got 'no'"),
        ({"qkv_bias": torch.zeros(3)}, "qkv_bias: expected True or False, got tensor of shape"),
        ({"fc_norm": 1}, "fc_norm: expected True or False, got 1"),
        ({"depth": [1, 3, 4]}, "without gaps"),
        ({"depth": 0}, "depth"),
        ({"embed_dim": [4, 4]}, "embed_dim: 4 is given twice"),
        ({"embed_dim": []}, "embed_dim: expected at least one value"),
        ({"mlp_dim": range(1, 10**9)}, "mlp_dim: expected at most 16384 values"),
        ({"mlp_dim": None, "mlp_ratio": range(1, 10**9)}, "mlp_ratio: expected at most 16384 values"),
        ({"embed_dim": [4, -8]}, "embed_dim: expected positive values"),
        ({"mlp_dim": None, "mlp_ratio": [1, 1.1]}, "1 and 1.1 give the same channel count"),
        ({"mlp_dim": None, "mlp_ratio": 1e308}, "expected at most 16777216 channels, got inf"),
        ({"sharing": "cycle"}, "sharing: .*cyclic"),
    ],
)
def test_spaces_that_do_not_fit_are_refused_when_built(options, message):
    with pytest.raises(ChoiceError, match=message):
        small(**options)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 8, 12), (2, 2, 8)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=r"images: expected shape \(batch, 2, 8, 8\)"):
        small()(torch.randn(shape))


def test_printing_never_fails_where_the_space_does():
    width = Dim([4, 8])
    first, second = small(embed_dim=width), small(embed_dim=width)
    assert "active" in repr(first)
    assert "stands in two models" in repr(second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distilled": True, "fc_norm": True}, "distilled"),
        ({"drop_path_rate": 1.5}, "drop_path_rate"),
        ({"proj_drop_rate": "a"}, "proj_drop_rate"),
        ({"patch_size": 4.0}, "patch_size"),
        ({"in_chans": Dim([1, 2])}, "in_chans: expected a positive int, got Dim"),
        ({"in_chans": True}, "in_chans: expected a positive int, got True"),
        ({"num_classes": -1}, "num_classes: expected an int of at least 0, got -1"),
        ({"num_classes": None}, "num_classes: expected an int of at least 0, got None"),
        ({"depth": 2.0}, r"depth: expected positive ints without gaps, or in equal steps, got \[2.0\]"),
        ({"depth": Choice([1, 2], p=[1, 3])}, "depth: expected an int or several, got Choice.*depth_p"),
        ({"private": "qk", "num_heads": 2}, "need more than one, got 2; give None"),
    ],
)
def test_more_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ChoiceError, match=message):
        small(**options)


def test_features_of_a_distilled_model_are_the_mean_of_both_tokens():
    model = small(distilled=True, num_classes=0)
    tokens = torch.randn(2, 6, 8)
    assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, :2].mean(dim=1))
    assert torch.equal(model.forward_head(tokens), tokens[:, :2].mean(dim=1))

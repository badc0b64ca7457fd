"""Which units and blocks a smaller subnet keeps: scores of every kind, and blocks that leave from anywhere."""

import pytest
import torch
from torch import nn

from tests.contract import macs, randomize, relative_error
from vitas import (
    ChoiceError,
    activate_subnet,
    check_records,
    count_flops,
    count_params,
    export_report,
    export_subnet,
    load_superformer,
    sample_subnet,
    save_superformer,
    search_space,
    use_subnet,
    wrap,
)
from vitas.errors import FileError

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras

WIDE = {"embed_dim": "auto", "sharing": "ordinal"}  # under ordinal sharing the order of importance is that of positions


def vit(**options):
    return randomize(
        timm.create_model("vit_tiny_patch16_224", **{"img_size": 32, "num_classes": 5, "depth": 2, **options})
    ).eval()


def x(n=2, seed=0):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def hidden_order(model, wrapped, block=0):
    """Return which of the model's MLP units stands where in the wrapped one."""
    old, new = (one.get_submodule(f"blocks.{block}.mlp.fc1").weight for one in (model, wrapped))
    order = [int((old == row).all(dim=1).nonzero()) for row in new]
    assert sorted(order) == list(range(len(order)))
    return order


# -- units -------------------------------------------------------------------------------------------------------------


def test_a_mapping_scores_the_units_of_the_choices_that_it_names():
    model = vit()
    scores = torch.rand(768, generator=torch.Generator().manual_seed(1))
    wrapped = wrap(model, sharing="ordinal", order={"blocks.0.mlp_dim": scores.tolist(), "blocks.1.num_heads": [1, 3, 2]})
    assert hidden_order(model, wrapped) == scores.argsort(descending=True).tolist()
    assert torch.equal(wrapped.get_parameter("blocks.1.mlp.fc1.weight"), model.blocks[1].mlp.fc1.weight)
    heads = model.blocks[1].attn.qkv.weight.unflatten(0, (3, 3, 64))
    assert torch.equal(wrapped.get_parameter("blocks.1.attn.qkv.weight").unflatten(0, (3, 3, 64)), heads[:, [1, 2, 0]])
    assert relative_error(wrapped(x()), model(x())) <= 1e-5
    sample_subnet(wrapped, policy="smallest")
    assert relative_error(export_subnet(wrapped)(x()), wrapped(x())) <= 1e-5


def test_a_mapping_of_widths():
    model = vit()
    scores = torch.rand(192, generator=torch.Generator().manual_seed(2))
    wrapped = wrap(model, **WIDE, order={"embed_dim": scores.numpy()})
    assert torch.equal(wrapped.get_parameter("norm.weight"), model.norm.weight[scores.argsort(descending=True)])
    assert relative_error(wrapped(x()), model(x())) <= 1e-5


def test_a_function_scores_weights_and_magnitude_is_one():
    model = vit()
    magnitude = wrap(model, **WIDE, order="magnitude")
    same = wrap(model, **WIDE, order=lambda layer: layer.weight.double() ** 2)
    assert all(torch.equal(a, b) for a, b in zip(magnitude.parameters(), same.parameters(), strict=True))
    assert not torch.equal(magnitude.get_parameter("norm.weight"), model.norm.weight)


def test_a_function_sees_the_models_own_layers_and_need_not_score_all():
    model, seen = vit(), []
    fc2 = model.blocks[1].mlp.fc2
    scores = torch.rand(768, generator=torch.Generator().manual_seed(3))

    def score(layer):
        seen.append(layer)
        return scores if layer is fc2 else None

    wrapped = wrap(model, sharing="ordinal", order=score)
    assert set(seen) == {part for part in model.modules() if isinstance(part, (nn.Linear, nn.Conv2d))}
    assert hidden_order(model, wrapped, 1) == scores.argsort(descending=True).tolist()
    assert hidden_order(model, wrapped, 0) == list(range(768))


def test_activations_weigh_what_a_layer_reads():
    model, images = vit(), x(3, seed=4)
    read = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: read.update({layer: inputs[0]}))
        for layer in (model.blocks[0].mlp.fc1, model.blocks[0].mlp.fc2)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    mlp = model.blocks[0].mlp
    energy = [layer.weight.double() ** 2 * read[layer].double().square().mean(dim=(0, 1)) for layer in (mlp.fc1, mlp.fc2)]
    units = energy[0].sum(dim=1) / energy[0].sum() + energy[1].sum(dim=0) / energy[1].sum()
    model.train()
    wrapped = wrap(model, **{**WIDE, "embed_dim": None}, order="activation", images=images)
    assert model.training
    assert hidden_order(model, wrapped) == units.argsort(descending=True, stable=True).tolist()
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "depths": (1, 1, 1, 1)}, 64),
        ("twins_svt_small", {"img_size": 64, "depths": (1, 1, 1, 1)}, 64),
        ("vit_small_patch16_dinov3", {"img_size": 32, "depth": 2}, 32),
    ],
)
def test_activation_order_keeps_the_function_of_other_classes(name, options, side):
    model = randomize(timm.create_model(name, num_classes=5, **options)).eval()
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    wrapped = wrap(model, embed_dim="auto", order="activation", images=images)
    assert relative_error(wrapped(images), model(images)) <= 1e-5
    sample_subnet(wrapped, policy="smallest")
    assert relative_error(export_subnet(wrapped)(images), wrapped(images)) <= 1e-5


def test_units_that_give_more_keep_more_of_the_function():
    model, images = vit(depth=3).double(), x(4).double()
    kept = []
    for order in ({}, {"order": "activation", "images": images}):
        wrapped = wrap(model, sharing="ordinal", num_heads=None, **order)
        activate_subnet(wrapped, {f"blocks.{i}.mlp_dim": 384 for i in range(3)})
        kept.append(relative_error(wrapped(images), model(images)))
    assert kept[1] < kept[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "size"}, r"order: expected one of magnitude, activation"),
        ({"order": 3}, r"order: expected one of magnitude, activation"),
        ({"order": "activation"}, r'images: order="activation" runs the model on a batch'),
        ({"order": "magnitude", "images": torch.zeros(1, 3, 32, 32)}, r'images: only order="activation" looks at them'),
        ({"order": "activation", "images": [1]}, r"expected a tensor"),
        ({"order": {"blocks.0.mlp": [1]}}, r"order: .*'blocks.0.mlp'"),
        ({"order": {"depth": [1, 2]}}, r"order: .*'depth'"),
        ({"order": {"blocks.0.num_heads": [1, 2]}}, r"order: blocks.0.num_heads: expected 3 scores, one for each unit"),
        ({"order": {"blocks.0.num_heads": 1}}, r"order: blocks.0.num_heads: expected 3 scores"),
        ({"order": {"blocks.0.num_heads": [1, 2, float("nan")]}}, r"order: blocks.0.num_heads: expected finite scores"),
        ({"order": {"blocks.0.num_heads": ["a", "b", "c"]}}, r"order: blocks.0.num_heads: expected scores"),
        ({"order": lambda layer: torch.ones(7)}, r"order: patch_embed.proj: expected scores of shape"),
        ({"order": lambda layer: -(layer.weight**2)}, r"order: patch_embed.proj: expected scores of at least 0"),
    ],
)
def test_scores_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ChoiceError, match=message):
        wrap(vit(), depth="auto", **options)


def test_only_a_mapping_that_names_the_width_is_refused_where_channels_are_outputs():
    model = vit(num_classes=0)
    wrap(model, embed_dim="auto", order={"blocks.0.num_heads": [1, 2, 3]})
    with pytest.raises(ChoiceError, match="order: without a classifier"):
        wrap(model, embed_dim="auto", order={"embed_dim": torch.ones(192)})


# -- blocks ------------------------------------------------------------------------------------------------------------

LEAVE = [2, 0]


def some(wrapped, n):
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        yield sample_subnet(wrapped, policy="random" if i else "smallest", generator=generator)


def test_blocks_from_anywhere_can_leave():
    model = vit(depth=5)
    wrapped = wrap(model, depth=[2, 3, 4, 5], leave=LEAVE, num_heads=None, mlp_ratio=None)
    assert list(wrapped.state_dict()) == list(model.state_dict())
    assert torch.equal(wrapped(x()), model(x()))
    for depth, slots in ((4, [0, 1, 3, 4]), (3, [1, 3, 4]), (2, [1, 3])):
        with use_subnet(wrapped, {"depth": depth}):
            whole = model.blocks
            model.blocks = nn.Sequential(*(whole[slot] for slot in slots))
            assert torch.equal(wrapped(x()), model(x()))
            features = wrapped.forward_intermediates(x(), indices=depth)[1]
            expected = model.forward_intermediates(x(), indices=depth)[1]
            assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))
            model.blocks = whole
            export = export_subnet(wrapped)
            for block, slot in zip(export.blocks, slots, strict=True):
                assert torch.equal(block.mlp.fc1.weight, whole[slot].mlp.fc1.weight)
            assert len(wrapped.feature_info) == len(wrapped.blocks) == depth
            assert list(wrapped.blocks) == [wrapped.get_submodule(f"blocks.{slot}") for slot in slots]


@pytest.mark.parametrize(
    ("name", "options", "leave", "side"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 5}, LEAVE, 32),
        ("vit_small_patch16_dinov3", {"img_size": 32, "depth": 4}, LEAVE, 32),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 4, "depths": (2, 1, 4, 2)},
            [[0], None, LEAVE, None],
            64,
        ),
        ("twins_svt_small", {"img_size": 64, "depths": (2, 1, 4, 2)}, [[0], None, LEAVE, None], 64),
    ],
)
def test_exports_counts_and_gradients_are_exact_whichever_blocks_run(name, options, leave, side):
    model = randomize(timm.create_model(name, num_classes=5, drop_path_rate=0.2, **options)).eval().double()
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).double()
    depth = "auto" if leave is LEAVE else [[1, 2], None, [1, 2, 3, 4], None]
    wrapped = wrap(model, embed_dim="auto", depth=depth, leave=leave)
    assert torch.equal(wrapped(images), model(images))
    assert check_records(wrapped, images) <= 1e-12
    for _ in some(wrapped, 4):
        export = export_subnet(wrapped)
        assert relative_error(export(images), wrapped(images)) <= 1e-12
        assert count_flops(wrapped).total == macs(export, images)
        assert count_params(wrapped) == sum(parameter.numel() for parameter in export.parameters())
        assert str(export_report(wrapped))
        outputs = []
        for one in (wrapped.train(), export.train()):
            torch.manual_seed(0)
            outputs.append(one(images.repeat(6, 1, 1, 1)))
        assert relative_error(*outputs) <= 1e-12  # stochastic depth drops the same samples: the rates are equal
        outputs[0].square().sum().backward()
        left = [part for path, part in wrapped.named_modules() if path.endswith(".norm1")]
        ran = sum(part._parameters["weight"].grad is not None for part in left)
        assert ran == len([part for path, part in export.named_modules() if path.endswith(".norm1")])
        wrapped.eval().zero_grad(set_to_none=True)


def test_stochastic_depth_is_stretched_over_the_blocks_that_run():
    wrapped = wrap(vit(depth=5, drop_path_rate=0.4), depth=[2, 3, 4, 5], leave=LEAVE)
    for depth in (5, 4, 3, 2):
        with use_subnet(wrapped, search_space(wrapped).subnet({"depth": depth}, fill="largest")):
            rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in wrapped.blocks]
            assert rates == pytest.approx([0.4 * i / (depth - 1) for i in range(depth)])


def test_a_file_of_another_order_of_leaving_is_refused(tmp_path):
    model, path = vit(depth=4), tmp_path / "wrapped.safetensors"
    save_superformer(wrap(model, depth="auto", leave=LEAVE), path)
    twin = wrap(vit(depth=4), depth="auto", leave=LEAVE)
    load_superformer(twin, path)
    with pytest.raises(FileError, match="another search space, different in depth"):
        load_superformer(wrap(model, depth="auto"), path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave": [1]}, "leave: depth is fixed, so no block leaves; give depth="),
        ({"depth": "auto", "leave": [4]}, r"leave: depth counts blocks 0\.\.3; expected different ones, got \[4\]"),
        ({"depth": "auto", "leave": [1, 1]}, "expected different ones"),
        ({"depth": "auto", "leave": 1}, "expected different ones, got 1"),
        ({"depth": "auto", "leave": "auto"}, "expected different ones, got 'auto'"),
    ],
)
def test_blocks_that_cannot_leave_are_refused(options, message):
    with pytest.raises(ChoiceError, match=message):
        wrap(vit(depth=4), **options)

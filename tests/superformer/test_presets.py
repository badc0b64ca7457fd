from math import prod

import pytest
import torch
from torch import nn

import vitas
from vitas import ChoiceError, count_flops, count_params, create_superformer, list_superformers, search_space
from vitas.errors import FileError


def test_vitas_deit_is_the_methods_space():
    model = create_superformer("vitas_deit")
    assert sum(parameter.numel() for parameter in model.parameters()) == 49_596_904
    space = search_space(model)
    assert space.size == 30 * sum(400**m for m in range(1, 17))
    assert space.choices["embed_dim"].values == (38, 77, 115, 154, 192, 230, 269, 307, 346, 384)
    assert space.choices["blocks.15.qkv_dim"].values == tuple(48 * i for i in range(1, 11))
    largest = {**space.largest(), "patch_size": 14}
    # METHOD: the authors' count of the largest networks, 8.712 G at patch 14, 6.503 G at 16, 1.559 G at 32.
    for patch, giga in ((14, 8.712), (16, 6.503), (32, 1.559)):
        count = count_flops(model, {**largest, "patch_size": patch}, convention="vitas")
        assert count.total / 1e9 == pytest.approx(giga, abs=5e-4)


def test_vitas_deit_large_is_the_methods_larger_space():
    space = search_space(create_superformer("vitas_deit_large", num_classes=2))
    assert space.size == 30 * 400**13
    assert space.choices["embed_dim"].values == (77, 154, 230, 307, 384, 461, 538, 614, 691, 768)


@pytest.mark.parametrize(
    ("name", "exact", "vitas", "params"),
    [
        ("deit_tiny", 1_253_683_200, 1_284_003_840, 5_717_416),
        ("deit_small", 4_598_882_304, 4_648_906_752, 22_050_664),
        ("deit_base", 17_563_828_224, 17_621_409_792, 86_567_656),
    ],
)
def test_deits_have_the_published_counts(name, exact, vitas, params):
    model = create_superformer(name)
    assert count_flops(model).total == exact
    assert count_flops(model, convention="vitas").total == vitas
    assert count_params(model) == params


def test_every_name_builds_at_another_size():
    for name in list_superformers():
        twins = "twins" in name
        options = (
            {"embed_dims": [[32, 48]] * 4, "num_heads": [[1, 2]] * 4}
            if twins
            else {"embed_dim": [32, 48], "num_heads": [1, 2]}
        )
        with torch.device("meta"):
            model = create_superformer(name, num_classes=3, img_size=(224, 448), **options)
        assert search_space(model).choices["stages.2.embed_dim" if twins else "embed_dim"].values == (32, 48)


def test_vitas_twins_is_the_methods_space():
    with torch.device("meta"):
        model = create_superformer("vitas_twins")
    space = search_space(model)
    assert space.size == prod(10 * sum(200**m for m in range(1, slots + 1)) for slots in (4, 4, 18, 6))
    assert space.choices["stages.0.embed_dim"].values == (13, 26, 38, 51, 64, 77, 90, 102, 115, 128)
    for stage in range(4):
        widths = space.choices[f"stages.{stage}.blocks.0.qkv_dim"].values
        assert widths == tuple(16 * 2**stage * i for i in range(1, 11))
        assert space.choices[f"stages.{stage}.blocks.0.mlp_dim"].values[-1] == 512 * 2**stage
    # The largest network with 12 slots in stage 3, by METHOD 1.2: 17.6 G and 141 M.
    subnet = space.subnet({"stages.2.depth": 12}, fill="largest")
    assert count_flops(model, subnet).total / 1e9 == pytest.approx(17.6, abs=0.05)
    assert count_params(model, subnet) / 1e6 == pytest.approx(141, abs=0.5)


@pytest.mark.parametrize(
    ("name", "exact", "params"),
    [
        ("twins_svt_small", 2_927_353_344, 24_060_776),
        ("twins_svt_base", 8_562_612_480, 56_070_952),
        ("twins_svt_large", 15_111_777_280, 99_271_400),
    ],
)
def test_twins_svt_have_the_known_counts(name, exact, params):
    with torch.device("meta"):
        model = create_superformer(name)
    assert count_flops(model).total == exact
    assert count_params(model) == params
    # Chu et al. (Twins), table 2, leave out the two products inside attention: 2.8, 8.3 and 14.8 G.
    published = {"twins_svt_small": 2.8, "twins_svt_base": 8.3, "twins_svt_large": 14.8}[name]
    assert round((exact - count_flops(model).by_operator["matmul"]) / 1e9, 1) == published


def test_unknown_names_and_arguments_are_refused_with_the_nearest():
    with pytest.raises(ChoiceError, match=r"unknown superformer .*did you mean 'vitas_deit'"):
        create_superformer("vitas_diet")
    with pytest.raises(ChoiceError, match=r"unknown argument .*did you mean 'embed_dim'"):
        create_superformer("deit_micro", embed_dims=[4])


def test_an_override_replaces_what_says_the_same_in_another_way():
    options = {"num_classes": 2, "img_size": 8}
    ratios = create_superformer("deit_micro", mlp_ratio=[1, 2], **options)
    assert search_space(ratios).choices["blocks.0.mlp_ratio"].values == (1, 2)
    assert not any("mlp_dim" in name for name in search_space(ratios).choices)
    heads = create_superformer("deit_micro", head_dim=8, private=None, **options)
    assert heads.blocks[0].attn.qkv_dim.values == tuple(8 * n for n in heads.blocks[0].attn.num_heads.values)
    widths = create_superformer("autoformer_tiny", qkv_dim=[12, 24], embed_dim=8, depth=1, patch_size=4, **options)
    assert search_space(widths).choices["blocks.0.qkv_dim"].values == (12, 24)
    stages = create_superformer("twins_micro", mlp_ratios=[1, 2, 3, [1, 2]], num_classes=2, img_size=32)
    ratios = [
        row[0].mlp.fc1.out_dim.largest / dim.largest for row, dim in zip(stages.blocks, stages.embed_dims, strict=True)
    ]
    assert ratios == [1, 2, 3, 2]
    with pytest.raises(ChoiceError, match="deit_micro: give mlp_dim or mlp_ratio, not both"):
        create_superformer("deit_micro", mlp_dim=8, mlp_ratio=[1, 2])


@pytest.mark.parametrize("name", ["deit_micro", "twins_micro"])
@pytest.mark.parametrize("shift", [True, False])
def test_names_do_not_depend_on_what_stands_around(name, shift, tmp_path):
    """A subnet and a file that were made with a module around the model fit the model, and the other way round."""
    options = {"num_classes": 3, "img_size": 32, **({} if name == "twins_micro" else {"shift": shift})}
    model = create_superformer(name, **options)
    around = nn.Sequential(nn.Identity(), nn.ModuleDict({"backbone": model}))
    subnet = vitas.sample_subnet(around, generator=torch.Generator().manual_seed(0))
    assert list(vitas.search_space(around).choices) == list(vitas.search_space(model).choices)
    assert vitas.export_subnet(model, subnet)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert vitas.build_subnet(name, subnet, **options)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert vitas.active_subnet(model) == subnet

    vitas.save_superformer(around, tmp_path / "around")
    vitas.save_superformer(model, tmp_path / "model")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for file in ("around", "model"):
        other = create_superformer(name, **options)
        vitas.load_superformer(other, tmp_path / file)
        assert all(torch.equal(value, weights[key]) for key, value in other.state_dict().items())
    again = nn.Sequential(nn.Identity(), nn.ModuleDict({"backbone": create_superformer(name, **options)}))
    vitas.load_superformer(again, tmp_path / "around")
    assert all(torch.equal(value, weights[key]) for key, value in again[1]["backbone"].state_dict().items())
    with pytest.raises(FileError, match=r"written of '', here is '1\.backbone'"):
        vitas.load_superformer(again, tmp_path / "model")
    elsewhere = nn.Sequential(create_superformer(name, **options))
    with pytest.raises(FileError, match=r"written of '1\.backbone', here is '0'"):
        vitas.load_superformer(elsewhere, tmp_path / "around")


def test_positions_of_a_file_of_a_module_around_the_model_follow_the_image_size(tmp_path):
    def around(img_size):
        model = create_superformer("deit_micro", num_classes=3, img_size=img_size)
        return nn.Sequential(nn.Conv2d(3, 3, 1), model)

    small = around(32)
    vitas.save_superformer(small, tmp_path / "around")
    vitas.save_superformer(small[1], tmp_path / "model")
    expected, whole, inside = around(64), around(64), around(64)
    vitas.load_superformer(expected[1], tmp_path / "model")
    vitas.load_superformer(whole, tmp_path / "around")
    vitas.load_superformer(inside[1], tmp_path / "around")
    assert torch.equal(whole[0].weight, small[0].weight)
    assert not torch.equal(inside[0].weight, small[0].weight)
    for key, value in expected[1].state_dict().items():
        assert torch.equal(value, whole[1].state_dict()[key])
        assert torch.equal(value, inside[1].state_dict()[key])


class Around(nn.Module):
    """A layer whose heads are not searched, beside a part that is."""

    def __init__(self, heads):
        super().__init__()
        hidden = vitas.Dim([8, 16], name="hidden")
        self.attention = vitas.nn.ElasticAttention(16, num_heads=heads)
        self.body = nn.Sequential(vitas.nn.CyclicLinear(16, hidden), nn.ReLU(), vitas.nn.CyclicLinear(hidden, 8))


def test_what_is_not_searched_beside_the_part_that_is_has_to_be_equal_too(tmp_path):
    model = Around(2)
    vitas.save_superformer(model, tmp_path / "model")
    vitas.save_superformer(nn.ModuleDict({"inner": model}), tmp_path / "around")
    with pytest.raises(FileError, match=r"model: attention\.num_heads: expected 4, got 2"):
        vitas.load_superformer(Around(4), tmp_path / "model")
    with pytest.raises(FileError, match=r"around: inner\.attention\.num_heads: expected 4, got 2"):
        vitas.load_superformer(Around(4), tmp_path / "around")
    for file in ("model", "around"):
        other = Around(2)
        vitas.load_superformer(other, tmp_path / file)
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))

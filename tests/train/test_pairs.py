import pytest
import torch

from tests.contract import randomize
from tests.superformer.test_deit import small
from vitas import ChoiceError, Dim, activate_subnet, active_subnet, search_space
from vitas.train.pairs import bilateral, complement, complementary


def test_bilateral_runs_both_sides_with_half_weight_and_adds_the_gradients():
    model = randomize(small(sharing="bilateral").double())
    subnet = search_space(model).smallest()
    activate_subnet(model, subnet)
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    seen = []
    for side, weight in bilateral(model):
        assert (active_subnet(model), search_space(model).side) == (subnet, side)
        seen.append((side, weight))
        (weight * model(x).square().sum()).backward()
    assert seen == [("left", 0.5), ("right", 0.5)]
    got = model.head.weight.grad.clone()
    expected = torch.zeros_like(got)
    for side in ("left", "right"):
        model.zero_grad()
        activate_subnet(model, subnet, side=side)
        model(x).square().sum().backward()
        expected += model.head.weight.grad / 2
    torch.testing.assert_close(got, expected)
    assert (got != 0).any(dim=0).tolist() == [True] * 8  # widths 4 of 8 on both sides: all channels


def test_bilateral_refuses_models_without_sides():
    with pytest.raises(ChoiceError, match="no Dim of this DeiTSuperformer has two sides; build it with sharing='bilateral'"):
        bilateral(small())


@pytest.mark.parametrize("sharing", ["bilateral", "cyclic-paired"])
def test_a_width_and_its_complement_use_every_channel_once(sharing):
    dim = Dim(range(1, 10 + 1), sharing=sharing)
    paired = 0
    for width in dim.values:
        other = complement(dim, width)
        if other is None:
            continue
        dim.active = width
        used = dim.channels().tolist()
        dim.active = other
        if sharing == "bilateral":
            dim.side = "right"
        used += dim.channels().tolist()
        if sharing == "bilateral":
            dim.side = "left"
        assert sorted(used) == list(range(10))
        paired += 1
    assert paired == (9 if sharing == "bilateral" else 8)  # 10 has no partner, nor under one run has 5
    assert complement(dim, 10) is None


def test_cyclic_widths_have_a_complement_only_where_the_runs_happen_to_tile():
    assert complement(Dim([2, 3, 10], sharing="cyclic"), 3) is None  # 7 is no width
    assert complement(Dim([3, 7, 10], sharing="ordinal"), 3) is None  # both start at 0


def test_a_complementary_pair_updates_each_channel_once_and_with_bilateral_inside_twice():
    model = randomize(small(embed_dim=[2, 4, 6, 8], sharing="bilateral", num_heads=1, private=None, qkv_dim=4))
    space = search_space(model)
    subnet = space.subnet({"embed_dim": 2, "depth": 2, "patch_size": 4}, fill="smallest")

    def uses(inside):
        activate_subnet(model, subnet)
        counts = torch.zeros(8)
        for number, one in enumerate(complementary(model)):
            assert one["embed_dim"] == (2, 6)[number]
            assert {name: one[name] for name in ("depth", "patch_size")} == {"depth": 2, "patch_size": 4}
            for _ in bilateral(model) if inside else [None]:
                model.zero_grad()
                model(torch.randn(2, 2, 8, 8)).square().sum().backward()
                counts += (model.head.weight.grad != 0).any(dim=0)
        return counts.tolist()

    assert uses(inside=False) == [1] * 8
    assert uses(inside=True) == [2] * 8


def test_complementary_refuses_models_without_pairs():
    with pytest.raises(ChoiceError, match="use sharing='bilateral' or 'cyclic-paired'"):
        complementary(small(sharing="ordinal"))

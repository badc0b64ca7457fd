"""Arguments of superformers, before anything is built of them."""

import itertools

import numpy as np
import pytest
import torch

from tests.contract import randomize, relative_error
from tests.superformer import test_deit, test_twins
from vitas import ChoiceError, Dim, create_superformer, export_subnet, plain, sample_subnet, search_space
from vitas.checks import MOST_VALUES, check_flags, check_numbers
from vitas.nn import DropPath
from vitas.superformer.arguments import MOST_BLOCKS, depths_of, patterns_of, reusable


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (3, (3, 3, 1)),
        ([2], (2, 2, 1)),
        (range(1, 4), (1, 3, 1)),
        ([6, 2, 4], (2, 6, 2)),
        (iter([4, 7]), (4, 7, 3)),
        (range(1, MOST_BLOCKS + 1), (1, MOST_BLOCKS, 1)),
    ],
)
def test_depths_are_the_smallest_the_largest_and_the_step(depth, expected):
    assert depths_of(depth) == expected


def of_the_end(values, largest, p):
    """A rule of one's own that computes by tensors."""
    return (largest - torch.tensor(values)).tolist()


@pytest.mark.filterwarnings("ignore:unfair sharing")
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_rule_that_computes_by_tensors_shares_channels_wherever_the_model_is(device):
    with torch.device(device):
        model = test_deit.small(embed_dim=[8, 16, 24], sharing=of_the_end)
    assert model.embed_dim.sides == (((16, 8), (8, 16), (0, 24)),)


@pytest.mark.parametrize("depth", [MOST_BLOCKS + 1, [1, MOST_BLOCKS + 1]])
def test_more_blocks_than_networks_have_are_refused(depth):
    with pytest.raises(ChoiceError, match=f"depth: expected at most {MOST_BLOCKS} blocks, got {MOST_BLOCKS + 1}"):
        depths_of(depth)


@pytest.mark.parametrize("name", ["embed_dim", "mlp_dim", "num_heads", "mlp_ratio", "patch_size"])
def test_text_is_no_size(name):
    with pytest.raises(ChoiceError, match=f"{name}: expected (an int|a number).*, got '64'"):
        test_deit.small(**{"mlp_dim": None, name: "64"})


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (test_deit.small, {"num_heads": [2, 4], "qkv_dim": [8, 12], "mlp_dim": [4, 6]}),
        (test_deit.small, {"mlp_dim": None, "mlp_ratio": [1, 2]}),
        (test_twins.small, {"num_heads": [[1, 2], [2, 4]], "qkv_dims": [[4, 8], [8, 12]], "mlp_dims": [[3, 6], [4, 8]]}),
    ],
)
def test_an_iterator_serves_every_block(build, options):
    def once(values):
        if isinstance(values, list):
            return [iter(each) for each in values] if isinstance(values[0], list) else iter(values)
        return values

    lists, iterators = build(**options), build(**{name: once(values) for name, values in options.items()})
    assert search_space(iterators).description() == search_space(lists).description()


def test_one_value_and_text_stay_as_they_are_and_an_endless_iterator_ends():
    assert reusable(2) == 2
    assert reusable("25%") == "25%"
    assert len(reusable(itertools.count())) == MOST_VALUES + 1  # one more than a choice takes, so that it is refused


def test_numbers_that_float32_holds_are_taken_and_others_refused():
    check_numbers(init_values=-0.5, norm_eps=1e-6, final_norm_eps=None)
    for number in (1e31, -1e31):
        with pytest.raises(ChoiceError, match="init_values: expected a number that float32 holds"):
            check_numbers(norm_eps=1e-6, init_values=number)


def test_flags_are_true_or_false_of_python_or_numpy():
    check_flags(shift=True, qk_norm=np.False_)
    for flag in ("no", 1, None):
        with pytest.raises(ChoiceError, match="shift: expected True or False, got "):
            check_flags(qk_norm=False, shift=flag)


# -- a pattern for each kind of choice


KINDS = ["embed_dim", "qkv_dim", "num_heads", "mlp_dim"]


def patterns(model):
    """The pattern of every Dim of a space, by the last word of its name."""
    found = {}
    for name, choice in search_space(model).choices.items():
        if isinstance(choice, Dim):
            found.setdefault(name.split(".")[-1], set()).add(choice.sharing)
    return found


@pytest.mark.parametrize("build", [test_deit.small, test_twins.small])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_named_has_its_pattern_and_others_stay_cyclic(build, kind):
    assert patterns(build(sharing={kind: "ordinal"})) == {k: {"ordinal" if k == kind else "cyclic"} for k in KINDS}


@pytest.mark.parametrize("build", [test_deit.small, test_twins.small])
@pytest.mark.parametrize("pattern", ["ordinal", "bilateral", "cyclic-chain"])
def test_one_pattern_and_a_mapping_of_all_kinds_to_it_make_the_same_space(build, pattern):
    one, mapping = build(sharing=pattern), build(sharing=dict.fromkeys(KINDS, pattern))
    assert search_space(one).description() == search_space(mapping).description()
    assert search_space(build(sharing={})).description() == search_space(build()).description()


@pytest.mark.parametrize("build", [test_deit.small, test_twins.small])
@pytest.mark.parametrize(
    "sharing", [{"embed_dim": "ordinal"}, {"embed_dim": "bilateral", "mlp_dim": "ordinal"}, {"qkv_dim": "cyclic-paired"}]
)
def test_every_subnet_of_a_mixture_equals_its_export(build, sharing):
    model = randomize(build(sharing=sharing).double()).eval()
    images = (
        torch.randn(2, 2, 12, 10, dtype=torch.float64) if build is test_twins.small else torch.randn(2, 2, 8, 8).double()
    )
    for seed in range(6):
        sample_subnet(model, generator=torch.Generator().manual_seed(seed))
        assert relative_error(export_subnet(model)(images), model(images)) < 1e-12


def test_a_named_space_takes_a_mapping_and_derived_widths_follow_what_they_are_derived_from():
    model = create_superformer("autoformer_tiny", num_classes=4, img_size=32, depth=2, sharing={"num_heads": "ordinal"})
    block = model.blocks[0]
    assert block.attn.num_heads.sharing == block.attn.qkv_dim.sharing == "ordinal"
    assert model.embed_dim.sharing == block.mlp.fc1.out_dim.sharing == "cyclic"
    model = create_superformer("autoformer_tiny", num_classes=4, img_size=32, depth=2, sharing={"embed_dim": "ordinal"})
    assert model.embed_dim.sharing == model.blocks[0].mlp.fc1.out_dim.sharing == "ordinal"
    assert model.blocks[0].attn.qkv_dim.sharing == "cyclic"


def test_a_rule_of_ones_own_serves_one_kind_and_a_dim_keeps_its_pattern():
    dim = Dim([4, 6, 8], sharing="cyclic-chain", name="embed_dim")
    model = test_deit.small(embed_dim=dim, sharing={"embed_dim": "ordinal", "mlp_dim": lambda values, largest, p: [0, 3, 1]})
    assert model.embed_dim is dim
    assert model.blocks[0].mlp.fc1.out_dim.sides == (((7, 3), (2, 6), (0, 8)),)


@pytest.mark.parametrize("build", [test_deit.small, test_twins.small])
@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        (
            {"embed_dims": "ordinal"},
            r"sharing: unknown kind of choice, expected one of embed_dim, .* \(nearest: embed_dim\)",
        ),
        ({"mlp_ratio": "ordinal"}, r"unknown kind of choice, .* got 'mlp_ratio'"),
        ({None: "ordinal"}, "unknown kind of choice, .* got None"),
        ({0: "ordinal"}, "unknown kind of choice, .* got 0"),
        ({"mlp_dim": "ordinary"}, r"sharing: expected one of .* got 'ordinary' \(nearest: ordinal\)"),
        ({"num_heads": None}, "sharing: expected one of .* got None"),
    ],
)
def test_unknown_kinds_and_patterns_are_refused(build, sharing, message):
    with pytest.raises(ChoiceError, match=message):
        build(sharing=sharing)


def test_a_kind_that_follows_another_has_no_pattern_of_its_own():
    assert patterns_of({"embed_dim": "ordinal"}, None, None)["mlp_dim"] == "cyclic"
    with pytest.raises(
        ChoiceError, match="qkv_dim follows num_heads where it is not given; name num_heads, or give qkv_dim"
    ):
        create_superformer("autoformer_tiny", sharing={"qkv_dim": "ordinal"})
    with pytest.raises(
        ChoiceError, match="mlp_dim follows embed_dim where it is not given; name embed_dim, or give mlp_dim"
    ):
        create_superformer("vitas_twins", mlp_ratios=4.0, sharing={"mlp_dim": "ordinal"})


def test_numpys_numbers_are_pythons_in_what_is_built_and_exported():
    rates = {"drop_path_rate": np.float32(0.5), "proj_drop_rate": np.float64(0.25), "attn_drop_rate": np.float16(0.125)}
    model = test_deit.small(norm_eps=np.float32(2**-20), init_values=np.float64(0.5), **rates)
    described = plain.VisionTransformerConfig.of(export_subnet(model)).as_json()
    block = described["blocks"][-1]
    found = [block[name] for name in ("drop_path", "proj_drop", "attn_drop", "norm_eps", "init_values")]
    assert found == [0.5, 0.25, 0.125, 2**-20, 0.5]
    assert {type(value) for value in found} == {float}
    drop = DropPath(np.float32(0.5))
    assert (drop.drop_prob, type(drop.drop_prob)) == (0.5, float)
    assert type(drop.export().drop_prob) is float


@pytest.mark.parametrize("name", ["drop_path_rate", "proj_drop_rate", "attn_drop_rate", "norm_eps"])
def test_an_option_of_blocks_is_refused_under_the_name_of_its_argument(name):
    with pytest.raises(ChoiceError, match=rf"^{name}: expected a number in \[0, .*\), got -0.5"):
        test_deit.small(**{name: -0.5})

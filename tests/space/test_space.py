import copy
import gc
import math
import pickle
import random
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from tests.superformer.test_deit import small
from vitas import Choice, ChoiceError, Dim, Subnet, create_superformer, export_subnet, search_space
from vitas.nn.depth import ShiftableIdentity
from vitas.nn.linear import CyclicLinear
from vitas.nn.mlp import ElasticMlp
from vitas.nn.norm import ElasticLayerNorm
from vitas.nn.private import Private
from vitas.space.table import readable_amount, readable_size

MICRO_BLOCK = ("num_heads", "qkv_dim", "mlp_dim")


def micro(**overrides):
    return create_superformer("deit_micro", img_size=8, num_classes=3, **overrides)


RAN = []


class Leaf(nn.Module):
    """Notes that it ran, and with which values."""

    def __init__(self, name, *choices, inside=None):
        super().__init__()
        self.label, self.held = name, list(choices)
        self.inside = nn.Identity() if inside is None else inside

    def forward(self, x):
        RAN.append((self.label, *(choice.active for choice in self.held)))
        return self.inside(x)


def what_runs(model):
    RAN.clear()
    model(torch.zeros(1))
    return tuple(RAN)


def everything_active(space):
    return [(choice.active, getattr(choice, "side", None)) for choice in space.choices.values()]


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_of_a_superformer():
    space = search_space(micro())
    blocks = [f"blocks.{i}.{word}" for i in range(6) for word in MICRO_BLOCK]
    assert set(space.choices) == {"embed_dim", "patch_size", "depth", *blocks}
    assert len(space) == 3 + 6 * 3
    assert space.choices["depth"].values == tuple(range(1, 7))
    assert space.choices["blocks.3.qkv_dim"].values == (32, 64, 96)


def test_names_of_a_superformer_with_mlp_ratios_and_fixed_parts():
    space = search_space(micro(mlp_dim=None, mlp_ratio=[2, 3], qkv_dim=None, depth=2, patch_size=4))
    blocks = [f"blocks.{i}.{word}" for i in range(2) for word in ("num_heads", "mlp_ratio")]
    assert set(space.choices) == {"embed_dim", *blocks}


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1 = CyclicLinear(3, width)
        self.tail = nn.Sequential(ElasticLayerNorm(width), ElasticMlp(width, Dim([4, 8], name="hidden")))


def test_a_choice_without_a_name_is_called_by_the_shortest_path_to_a_holder():
    net = Net(Dim([2, 4]))
    assert set(search_space(net).choices) == {"fc1.out_dim", "hidden"}
    net.width = net.fc1.out_dim
    assert set(search_space(net).choices) == {"width", "hidden"}
    assert set(search_space(net.tail).choices) == {"0.dim", "hidden"}


def test_choices_are_found_in_attributes_lists_tuples_and_dicts():
    module = nn.Module()
    module.one, module.several, module.pair = Choice([1, 2]), [Choice([1, 3]), 5, Choice([1, 4])], (Choice([1, 5]), "x")
    module.table, module.none = {"a": Choice([1, 6]), "b": None}, None
    space = search_space(module)
    assert {name: choice.largest for name, choice in space.choices.items()} == {
        "one": 2,
        "several.0": 3,
        "several.2": 4,
        "pair.0": 5,
        "table.a": 6,
    }


def test_products_and_fixed_choices_add_no_choice():
    heads, width = Choice([2, 4], name="heads"), Dim([8], name="fixed")
    space = search_space(nn.Sequential(CyclicLinear(width, heads * 4), CyclicLinear(heads * 4, heads * 2)))
    assert list(space.choices) == ["heads"]
    space.activate({"heads": 2})
    assert heads.active == 2


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch.compile imports what torch itself has deprecated
@pytest.mark.parametrize(
    "wrap",
    [
        Wrapper,
        DistributedDataParallel,
        nn.DataParallel,
        torch.compile,
        AveragedModel,
        lambda model: torch.compile(Wrapper(torch.compile(model))),
    ],
)
def test_wrappers_leave_no_trace_in_names(wrap):
    model = micro(depth=range(1, 3))
    expected = list(search_space(model).choices)
    wrapped = wrap(model)
    assert list(search_space(wrapped).choices) == expected


def test_a_wrapper_inside_a_model_leaves_no_trace_either():
    inner = Net(Dim([2, 4]))
    assert set(search_space(nn.Sequential(Wrapper(inner))).choices) == {"0.fc1.out_dim", "hidden"}


class Residual(nn.Module):
    """Looks like a wrapper and is none: it computes something, with a choice of its own."""

    def __init__(self, module, width):
        super().__init__()
        self.module, self.width = module, width
        self.gain = nn.Parameter(torch.randn(width.largest))

    def forward(self, x):
        return x * self.width.take(self.gain) + self.module(x)


def test_a_module_of_ones_own_whose_only_child_is_called_module_keeps_its_choices():
    space = search_space(Residual(nn.Linear(2, 2), Dim([2, 4], name="width")))
    assert list(space.choices) == ["width"]


def test_a_module_of_ones_own_whose_only_child_is_called_module_is_exported_whole():
    width = Dim([2, 4])
    model = nn.Sequential(CyclicLinear(3, width), Residual(CyclicLinear(width, width), width))
    width.active = 2
    x = torch.randn(5, 3)
    torch.testing.assert_close(export_subnet(model)(x), model(x))
    x = torch.randn(5, 2)
    torch.testing.assert_close(export_subnet(model[1])(x), model[1](x))


def test_an_averaged_copy_has_an_active_subnet_of_its_own():
    model = micro()
    search_space(model).activate(search_space(model).smallest())
    average = AveragedModel(model)
    search_space(model).activate(search_space(model).largest())
    assert search_space(average).active() == search_space(model).smallest()
    search_space(average).activate(search_space(model).sample())
    assert search_space(model).active() == search_space(model).largest()


# -- canonical subnets -------------------------------------------------------------------------------------------------


def micro_genes(depth, **others):
    genes = {"embed_dim": 64, "patch_size": 4, "depth": depth}
    for i in range(6):
        genes |= {f"blocks.{i}.num_heads": 2, f"blocks.{i}.qkv_dim": 64, f"blocks.{i}.mlp_dim": 96}
    return {**genes, **others}


def test_genes_of_blocks_that_do_not_run_are_dropped():
    space = search_space(micro())
    subnet = space.subnet(micro_genes(2))
    blocks = [f"blocks.{i}.{word}" for i in range(2) for word in MICRO_BLOCK]
    assert set(subnet) == {"embed_dim", "patch_size", "depth", *blocks}
    assert subnet == space.subnet(micro_genes(2, **{"blocks.5.mlp_dim": 48}))
    assert subnet != space.subnet(micro_genes(2, **{"blocks.1.mlp_dim": 48}))
    assert space.subnet(subnet) == subnet


def test_a_canonical_subnet_is_in_the_order_of_the_space():
    space = search_space(micro())
    turned = dict(reversed(micro_genes(6).items()))
    assert list(space.subnet(turned)) == list(space.choices)


@pytest.mark.parametrize("seed", range(20))
def test_canonical_form_is_idempotent_and_survives_every_round_trip(seed):
    space = search_space(micro())
    subnet = space.sample(torch.Generator().manual_seed(seed))
    assert subnet in space
    assert space.subnet(subnet) == subnet
    assert space.decode(space.encode(subnet)) == subnet
    assert Subnet.from_json(subnet.to_json()) == subnet
    for fill in ("largest", "smallest"):
        assert space.subnet(subnet, fill=fill) == subnet
    space.activate(subnet)
    assert space.active() == subnet
    live = {name: value for name, value in subnet.items() if name.startswith("blocks")}
    assert len(live) == 3 * subnet["depth"]


def test_a_glob_stands_for_many_names_and_a_name_counts_more():
    space = search_space(micro(depth=[1, 2]))
    subnet = space.subnet({"blocks.1.mlp_dim": 192, "blocks.*.mlp_dim": 96, "depth": 2}, fill="smallest")
    assert {name: value for name, value in subnet.items() if name.endswith("mlp_dim")} == {
        "blocks.0.mlp_dim": 96,
        "blocks.1.mlp_dim": 192,
    }
    with pytest.raises(ChoiceError, match=r"no choice matches this glob: .* \(nearest: blocks\.\*\.mlp_dim\)"):
        space.subnet({"blocks.*.mlp": 96}, fill="smallest")


def test_fill_gives_live_choices_that_are_not_named_a_value():
    space = search_space(micro())
    assert space.subnet({}, fill="largest") == space.largest()
    assert space.subnet({}, fill="smallest") == space.smallest()
    assert set(space.smallest()) == {"embed_dim", "patch_size", "depth", *(f"blocks.0.{word}" for word in MICRO_BLOCK)}
    assert all(value == space.choices[name].largest for name, value in space.largest().items())
    assert len(space.largest()) == len(space)
    block = {"blocks.1.num_heads": 2, "blocks.1.qkv_dim": 32, "blocks.1.mlp_dim": 144}
    subnet = space.subnet({"depth": 2, "blocks.1.mlp_dim": 144}, fill="smallest")
    assert subnet == {**space.smallest(), "depth": 2, **block}
    with pytest.raises(ChoiceError, match=r"fill: expected one of largest, smallest, got 'larges' \(nearest: largest\)"):
        space.subnet({}, fill="larges")


@pytest.mark.parametrize("fill", [None, "largest", "smallest"])
@pytest.mark.parametrize("blank", [None, math.nan, np.float32("nan")])
def test_a_live_choice_that_is_said_not_to_be_live_is_not_filled(fill, blank):
    space = search_space(micro())
    subnet = space.subnet(micro_genes(2))
    row = {**dict.fromkeys(space.choices, blank), **subnet}
    assert space.subnet(row, fill=fill) == subnet
    with pytest.raises(ChoiceError, match=r"^missing choices: blocks\.1\.mlp_dim; "):
        space.subnet({**row, "blocks.1.mlp_dim": blank}, fill=fill)
    with pytest.raises(ChoiceError, match=r"^missing choices: depth"):
        space.subnet({**row, "depth": blank}, fill=fill)


BAD_SUBNETS = [
    ({"embed_dim": 64}, "missing choices: patch_size, depth, .* and .* more; complete them by .*fill='largest'"),
    (
        micro_genes(6, embed_dims=64),
        r"^unknown choice 'embed_dims'; did you mean 'embed_dim'\? \(\d+ choices: search_space\(model\)\.choices\)$",
    ),
    (micro_genes(6, embed_dim=60), r"embed_dim: expected one of 32, 48, 64, 80, 96, got 60 \(nearest: 64\)"),
    (
        micro_genes(2, **{"blocks.5.mlp_dim": 7}),
        r"blocks.5.mlp_dim: expected one of 48, 96, 144, 192, got 7 \(nearest: 48\)",
    ),
    (micro_genes(7), r"depth: expected one of 1, 2, 3, 4, 5, 6, got 7 \(nearest: 6\)"),
    (micro_genes(6, patch_size=True), "patch_size: expected an int or a float, got True"),
    (micro_genes(6, patch_size=math.nan), "missing choices: patch_size"),
    (micro_genes(6, patch_size="4"), "patch_size: expected an int or a float, got '4'"),
    (micro_genes(6, patch_size=None), "missing choices: patch_size"),
    ({}, "missing choices: embed_dim"),
    (None, "subnet: expected a mapping of names to numbers, got None"),
    ("largest", "subnet: expected a mapping of names to numbers, got 'largest'"),
]


@pytest.mark.parametrize(("values", "message"), BAD_SUBNETS)
def test_a_bad_subnet_is_refused_and_leaves_everything_as_it_was(values, message):
    space = search_space(micro(sharing="bilateral"))
    space.activate(space.sample(torch.Generator().manual_seed(1)), side="right")
    before = everything_active(space)
    for use in (space.subnet, space.activate, space.encode):
        with pytest.raises(ChoiceError, match=message):
            use(values)
    assert values not in space
    assert everything_active(space) == before


def test_genes_of_blocks_that_do_not_run_are_not_activated_but_refused():
    space = search_space(micro())
    space.activate(space.smallest())
    before = everything_active(space)
    for use in (space.activate, space.encode):
        with pytest.raises(ChoiceError, match=r"not live in this subnet: blocks\.2\.num_heads, .*; space\.subnet"):
            use(micro_genes(2))
    assert micro_genes(2) not in space
    assert everything_active(space) == before


@pytest.mark.parametrize(
    ("side", "message"),
    [("rigth", r"expected one of left, right, got 'rigth' \(nearest: right\)"), (1, "expected one of left, right, got 1")],
)
def test_a_bad_side_leaves_everything_as_it_was(side, message):
    space = search_space(micro(sharing="bilateral"))
    space.activate(space.smallest(), side="right")
    before = everything_active(space)
    with pytest.raises(ChoiceError, match=f"side: {message}"):
        space.activate(space.largest(), side=side)
    assert everything_active(space) == before


def test_a_side_where_no_dim_has_two_leaves_everything_as_it_was():
    space = search_space(micro())
    space.activate(space.smallest())
    before = everything_active(space)
    for side in ("left", "right"):
        with pytest.raises(ChoiceError, match=f"side: got '{side}', but no Dim of this model is bilateral"):
            space.activate(space.largest(), side=side)
    assert everything_active(space) == before
    assert (space.bilateral, space.side) == (False, None)


def test_activation_sets_every_dim_and_its_side():
    space = search_space(micro(sharing="bilateral"))
    subnet = space.sample(torch.Generator().manual_seed(2))
    for side in ("right", "left"):
        space.activate(subnet, side=side)
        assert {name: space.choices[name].active for name in subnet} == subnet
        assert {choice.side for choice in space.choices.values() if isinstance(choice, Dim)} == {side} == {space.side}
    space.activate(subnet, side="right")
    space.activate(subnet)
    assert space.side == "left"


def small_space():
    blocks = [Leaf(i, Choice([1, 3], name=f"gene{i}")) for i in range(2)]
    return search_space(nn.Sequential(Leaf("stem", Dim([4, 8, 12], name="width")), ShiftableIdentity(blocks)))


def test_encode_numbers_the_values_and_marks_choices_that_are_not_live():
    space = small_space()
    assert list(space.choices) == ["width", "1.depth", "gene0", "gene1"]
    assert space.encode({"width": 8, "1.depth": 1, "gene0": 3}).tolist() == [1, 0, 1, -1]
    assert space.decode([1, 0, 1, -1]) == space.decode(np.array([1, 0, 1, 7])) == {"width": 8, "1.depth": 1, "gene0": 3}


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([0, 0, 0], "vector: expected 4 ints, got"),
        ([[0, 0, 0, 0]], "vector: expected 4 ints, got"),
        ([0.0, 0, 0, 0], "vector: expected 4 ints, got"),
        ([True, False, True, True], "vector: expected 4 ints, got"),
        ([3, 0, 0, 0], r"width: expected a number in 0\.\.2, got 3"),
        ([-1, 0, 0, 0], r"width: expected a number in 0\.\.2, got -1"),
        ([0, 1, 0, -1], r"gene1: expected a number in 0\.\.1, got -1"),
    ],
)
def test_a_bad_vector_is_refused(vector, message):
    space = small_space()
    with pytest.raises(ChoiceError, match=message):
        space.decode(vector)


def test_membership():
    space = search_space(micro())
    assert space.largest() in space
    assert dict(space.smallest()) in space
    for other in ({}, None, 3, "depth", micro_genes(2), {**space.largest(), "extra": 1}, {**space.largest(), "depth": 9}):
        assert other not in space


# -- size --------------------------------------------------------------------------------------------------------------


@st.composite
def models(draw, most=250):
    """A model of at most `most` assignments; its forward pass notes what ran, whatever the space thinks."""
    made, left = [Choice([1, 2])], [most // 2]

    def fresh():
        n = draw(st.integers(1, min(3, left[0])))
        left[0] //= n
        made.append(Choice(range(1, n + 1)))
        return made[-1]

    def choice():
        return draw(st.sampled_from(made)) if draw(st.booleans()) else fresh()  # one may stand in several places

    def row(level):
        slots = draw(st.integers(1, 3))
        shift = draw(st.booleans())
        cost = slots if shift else 2**slots
        if cost > left[0]:
            return leaf()
        left[0] //= cost
        blocks = [block(level + 1) for _ in range(slots)]
        if shift and not _repeats(blocks[0]) and draw(st.booleans()):
            blocks[-1] = blocks[0]  # one block in two slots
        return ShiftableIdentity(blocks, min_depth=draw(st.integers(1, slots)) if shift else 1, shift=shift)

    def private(level):
        heads = fresh()
        return Leaf(next(labels), heads, inside=Private(heads, lambda value: block(level + 1) if value > 1 else leaf()))

    def leaf():
        return Leaf(next(labels), *(choice() for _ in range(draw(st.integers(0, 2)))))

    def block(level):
        kinds = [leaf, lambda: row(level), lambda: private(level)] if level < 3 else [leaf]
        return draw(st.sampled_from(kinds))()

    labels = iter(range(1000))
    stem = Leaf(next(labels), made[0])
    return nn.Sequential(stem, *(block(0) for _ in range(draw(st.integers(1, 2)))))


def _repeats(block):
    """Say whether some row runs a block twice: in a row that repeats it, two subnets are one network."""
    rows = [module for module in block.modules() if isinstance(module, ShiftableIdentity)]
    return any(len(set(map(id, row))) < len(row) for row in rows)


@given(models())
@settings(max_examples=60, deadline=None)
def test_size_and_canonical_form_agree_with_running_every_assignment(model):
    space = search_space(model)
    choices = list(space.choices.values())
    ran = {}
    for values in product(*(choice.values for choice in choices)):
        for choice, value in zip(choices, values, strict=True):
            choice.active = value
        subnet = space.active()
        assert space.subnet(dict(zip(space.choices, values, strict=True))) == subnet
        ran.setdefault(what_runs(model), set()).add(subnet)
    assert space.size == len({subnet for subnets in ran.values() for subnet in subnets})
    assert all(subnet in space for subnets in ran.values() for subnet in subnets)
    rows = [module for module in model.modules() if isinstance(module, ShiftableIdentity)]
    if all(row.shift for row in rows):
        assert all(len(subnets) == 1 for subnets in ran.values())  # one network, one subnet
        assert space.size == len(ran)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("q", [1, 2, 3])
def test_shifting_leaves_the_sum_of_powers_and_slots_of_their_own_one_power(n, q):
    def space(shift):
        blocks = [Leaf(i, Choice(range(q))) for i in range(n)]
        return search_space(nn.Sequential(Leaf("stem", Choice([0, 1])), ShiftableIdentity(blocks, shift=shift)))

    assert space(shift=True).size == 2 * sum(q**m for m in range(1, n + 1))
    assert space(shift=False).size == 2 * (q + 1) ** n


def meta(name, **overrides):
    with torch.device("meta"):
        return create_superformer(name, **overrides)


def test_sizes_of_the_named_spaces():
    stem = 30  # 3 patch sizes, 10 widths
    deit, large = search_space(meta("vitas_deit")), search_space(meta("vitas_deit_large"))
    assert deit.size == stem * sum(400**m for m in range(1, 17))
    assert large.size == stem * 400**13
    assert search_space(meta("vitas_deit", shift=False)).size == stem * 401**16
    assert search_space(micro()).size == 2 * 5 * sum(24**m for m in range(1, 7))


def test_one_block_in_two_slots_is_one_choice():
    block = Leaf("block", Choice([1, 2, 3]))
    row = ShiftableIdentity([block, Leaf("other", Choice([1, 2])), block])
    space = search_space(row)
    assert list(space.choices) == ["depth", "0.held.0", "1.held.0"]
    assert space.size == 3 + 3 * 2 + 3 * 2
    space.activate({"depth": 3, "0.held.0": 2, "1.held.0": 1})
    assert what_runs(row) == (("block", 2), ("other", 1), ("block", 2))


def test_a_private_copy_may_hold_the_choice_that_chose_it():
    heads = Choice([1, 2], name="heads")
    row = ShiftableIdentity([Leaf("first"), Private(heads, lambda value: Leaf(value, heads))])
    space = search_space(row)
    assert space.size == 1 + 2
    assert [set(space.subnet({"depth": depth, "heads": 1})) for depth in (1, 2)] == [{"depth"}, {"depth", "heads"}]


def test_a_choice_is_live_if_any_holder_runs():
    shared = Choice([1, 2], name="shared")
    row = ShiftableIdentity([Leaf("a"), Leaf("b", shared), Leaf("c", shared)])
    space = search_space(row)
    assert [set(space.subnet({"depth": d, "shared": 1})) for d in (1, 2, 3)] == [{"depth"}, *[{"depth", "shared"}] * 2]
    assert set(search_space(nn.Sequential(row, Leaf("d", shared))).smallest()) == {"0.depth", "shared"}


# -- sampling ----------------------------------------------------------------------------------------------------------


def probabilities(model, space):
    """The prior of each subnet: the product of the probabilities of what it names."""
    subnets = {space.decode(code) for code in product(*(range(len(c.values)) for c in space.choices.values()))}

    def probability(subnet):
        chosen = ((space.choices[name], value) for name, value in subnet.items())
        return math.prod(choice.p[choice.values.index(value)] for choice, value in chosen)

    return {subnet: probability(subnet) for subnet in subnets}


def chi_square_bound(freedom):
    """Exceeded by one in 10,000 (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


def test_draws_follow_the_prior():
    blocks = [Leaf(i, Choice([1, 2, 3], p=[1, 2, 5]), Choice([1, 2], p=[1, 0])) for i in range(2)]
    model = nn.Sequential(Leaf("stem", Choice([1, 2], p=[3, 7])), ShiftableIdentity(blocks, p=[0.4, 0.6]))
    space = search_space(model)
    prior = {subnet: p for subnet, p in probabilities(model, space).items() if p > 0}
    assert sum(prior.values()) == pytest.approx(1)
    assert len(prior) == 2 * (3 + 9)

    n, generator = 6000, torch.Generator().manual_seed(0)
    drawn = dict.fromkeys(prior, 0)
    for _ in range(n):
        drawn[space.sample(generator)] += 1  # a value of probability 0 would be a KeyError
    chi_square = sum((drawn[subnet] - n * p) ** 2 / (n * p) for subnet, p in prior.items())
    assert chi_square < chi_square_bound(len(prior) - 1)


def test_one_generator_gives_the_same_subnets_again():
    space = search_space(micro())
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    drawn = [[space.sample(generator) for _ in range(20)] for generator in generators]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 10


def test_torchs_default_generator_is_used_without_one_and_nothing_global_with_one():
    space = search_space(micro())
    torch.manual_seed(3)
    first = space.sample()
    torch.manual_seed(3)
    assert space.sample() == first

    before = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    active = space.active()
    space.sample(torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (repr(np.random.get_state()), random.getstate()) == before[1:]
    assert space.active() == active


# -- models that are refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [nn.Linear(2, 2), CyclicLinear(2, 3), Wrapper(nn.Sequential())])
def test_a_model_without_choices_is_refused(model):
    with pytest.raises(ChoiceError, match=r"has no choices: build it from vitas\.nn layers with Choices and Dims"):
        search_space(model)


def test_a_plain_superformer_has_no_choices():
    with pytest.raises(ChoiceError, match="DeiTSuperformer has no choices"):
        search_space(meta("deit_tiny"))


def test_two_choices_of_one_name_are_refused():
    model = nn.Sequential(CyclicLinear(3, Dim([2, 4], name="width")), CyclicLinear(3, Dim([2, 4], name="width")))
    with pytest.raises(
        ChoiceError, match=r"two choices are called 'width', at 0\.out_dim and at 1\.out_dim; give one another name="
    ):
        search_space(model)


def test_a_name_that_is_another_choices_path_is_refused():
    model = nn.Sequential(CyclicLinear(3, Dim([2, 4])), CyclicLinear(3, Dim([2, 4], name="0.out_dim")))
    with pytest.raises(ChoiceError, match=r"two choices are called '0\.out_dim'"):
        search_space(model)


@pytest.mark.parametrize("name", [3, True, ("a",), b"width"])
def test_a_name_that_is_no_string_is_refused_at_once(name):
    with pytest.raises(ChoiceError, match="name: expected a string, got"):
        Choice([1, 2], name=name)


@pytest.mark.parametrize("name", ["", "x" * 501, "a\0b", "a\ud800", "\udfffa"], ids=ascii)
def test_a_name_that_some_file_or_database_cannot_take_is_refused_at_once(name):
    with pytest.raises(ChoiceError, match=r"name: expected a string (of 1 to 500 char|that UTF-8 can write, without NUL)"):
        Choice([1, 2], name=name)
    assert Choice([1, 2], name="größe \ud7ff\ue000💥" + "x" * 480).name


def pickled(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_part_that_was_copied_alone_lost_its_tie(copied):
    model = micro()
    space = search_space(model)
    space.activate(space.smallest())
    model.blocks[1] = copied(model.blocks[1])
    with pytest.raises(ChoiceError, match=r"embed_dim: .* hold two copies of what was one Dim; copy the whole model"):
        search_space(model)
    assert space.active() == space.smallest()


def test_a_copy_of_the_whole_model_is_a_model_of_its_own():
    model = micro()
    space = search_space(model)
    space.activate(space.smallest())
    for other in (copy.deepcopy(model), pickled(model), copy.deepcopy(copy.deepcopy(model))):
        assert search_space(other).active() == space.smallest()
        search_space(other).activate(space.largest())
        assert space.active() == space.smallest()


def two_models(name="width"):
    width = Dim([2, 4], name=name)
    return nn.Sequential(CyclicLinear(3, width)), nn.Sequential(CyclicLinear(width, 3))


def test_one_dim_in_two_models_is_refused_until_the_other_is_gone():
    one, other = two_models()
    search_space(one)
    with pytest.raises(ChoiceError, match=r"width stands in two models \(Sequential and Sequential\).*copy\.deepcopy"):
        search_space(other)
    search_space(one)
    del one
    gc.collect()
    assert list(search_space(other).choices) == ["width"]


def test_one_dim_in_two_models_is_fine_if_one_contains_the_other():
    one, other = two_models()
    search_space(one)
    whole = nn.Sequential(one, other)
    for model in (whole, one, other, whole, Wrapper(whole), other):
        assert list(search_space(model).choices) == ["width"]


def test_part_of_a_model_in_another_is_refused():
    model = micro()
    search_space(model)
    with pytest.raises(ChoiceError, match=r"stands in two models \(DeiTSuperformer and Sequential\)"):
        search_space(nn.Sequential(model.blocks, nn.Identity()))


def test_it_prints_what_can_be_chosen():
    text = repr(search_space(micro()))
    assert text.startswith("SearchSpace of 21 choices, 1.994e+9 networks")
    assert "  embed_dim           32, 48, 64, 80, 96\n" in text
    assert text.endswith("  blocks.*.mlp_dim    48, 96, 144, 192  (x6)")


def test_things_that_are_no_modules_or_generators_are_refused():
    with pytest.raises(ChoiceError, match=r"expected a torch.nn.Module, got str"):
        search_space("model")
    with pytest.raises(ChoiceError, match=r"generator: expected a torch.Generator"):
        search_space(nn.Sequential(CyclicLinear(2, Dim([2, 4])))).sample(generator=0)


def test_printing_a_space_of_a_model_with_another_cost_or_a_huge_size_works():
    class Priced(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = [Choice(range(1, 11), name=f"choice{i}") for i in range(310)]

        def cost(self):
            return 3

    assert "1.000e+310" in repr(search_space(Priced())).replace("E", "e")


def test_choices_that_are_not_live_go_to_their_largest_value():
    model = small()
    space = search_space(model)
    space.activate(space.subnet({"depth": 1}, fill="smallest"))
    assert space.choices["blocks.0.mlp_dim"].active == space.choices["blocks.0.mlp_dim"].smallest
    assert space.choices["blocks.2.mlp_dim"].active == space.choices["blocks.2.mlp_dim"].largest


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 K"),
        (999_499, "999 K"),
        (999_500, "1 M"),
        (1_304_000_000, "1.3 G"),
        (10**13, "10,000 G"),
    ],
)
def test_amounts_in_words(amount, words):
    assert readable_amount(amount) == words


def test_sizes_in_words():
    sizes = [999_999, 10**6, 3 * 10**9000]  # Python writes out no int of 9,000 digits
    assert [readable_size(size) for size in sizes] == ["999,999", "1.000e+6", "3.000e+9000"]

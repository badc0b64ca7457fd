import itertools
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vitas
from tests.contract import macs, randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import (
    Choice,
    ChoiceError,
    Dim,
    VitasError,
    active_subnet,
    cost_model,
    count_flops,
    count_params,
    create_superformer,
    export_subnet,
    list_published_subnets,
    plain,
    published_subnet,
    search_space,
)
from vitas.cost.expression import Cost, product_of
from vitas.cost.stated import cost_of, params_of
from vitas.nn import CyclicLinear, ElasticConv2d, ElasticLayerNorm, ElasticMlp, Private

SIZES = {  # images that the patches of a space divide
    "vitas_deit": [224, 448, (224, 672)],
    "vitas_deit_large": [224],
    "autoformer_tiny": [224, 160, 384],
    "autoformer_small": [224, 160, 384],
    "autoformer_base": [224, 160],
    "deit_micro": [224, 160, 32, (8, 24)],
}


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


# -- expressions -------------------------------------------------------------------------------------------------------


def a_random_expression(rng, choices, depth):
    """Return a Cost and a function that computes the same from the active values in Python ints."""
    kind = rng.choice(["int", "choice", "above", "table"] if depth == 0 else ["sum", "product", "built-in sum"])
    if kind == "int":
        number = rng.randrange(4)
        return Cost(number), lambda: number
    if kind == "choice":
        choice = rng.choice(choices)
        return Cost(choice), lambda: choice.active
    if kind == "above":
        choice, threshold = rng.choice(choices[:3]), rng.randrange(6)
        return Cost.above(choice, threshold), lambda: int(choice.active > threshold)
    if kind == "table":
        choice = rng.choice(choices[:3])
        numbers = [rng.randrange(9) for _ in choice.values]
        return Cost.table(choice, numbers), lambda: numbers[choice.values.index(choice.active)]
    parts = [a_random_expression(rng, choices, depth - 1) for _ in range(2)]
    costs, values = zip(*parts, strict=True)
    if kind == "product":
        return costs[0] * costs[1], lambda: values[0]() * values[1]()
    if kind == "sum":
        return costs[0] + costs[1], lambda: values[0]() + values[1]()
    return sum(costs), lambda: sum(value() for value in values)


@pytest.mark.parametrize("seed", range(40))
def test_expressions_are_what_python_computes(seed):
    rng = random.Random(seed)
    depth, width, heads, fixed = Choice([1, 2, 4]), Dim([2, 3, 5]), Choice([1, 3]), Dim([7])
    choices = [depth, width, heads, fixed, heads * 4, width * heads, fixed * 3]
    cost, value = a_random_expression(rng, choices, 4)
    for values in itertools.product(depth.values, width.values, heads.values):
        depth.active, width.active, heads.active = values
        numbers = {choice: choice.values.index(choice.active) for choice in (depth, width, heads)}
        assert cost.active() == cost.at(numbers) == value()
        assert sum(int(t[tuple(numbers[b] for b in bases)]) for bases, t in cost.merged().items()) == value()
        assert type(cost.at(numbers)) is int


def test_ints_choices_and_costs_mix_on_both_sides():
    width, ratio = Dim([2, 4]), Choice([1, 2.5])
    hidden = ratio * width
    cost = 3 * Cost(width) * hidden + 5 + width + product_of(2, width, hidden)
    assert cost.active() == 3 * 4 * 10 + 5 + 4 + 2 * 4 * 10
    ratio.active = 1
    assert cost.active() == 3 * 4 * 4 + 5 + 4 + 2 * 4 * 4
    assert (0 + cost).active() == cost.active()
    assert Cost().active() == (Cost() * width).active() == (0 * Cost(width)).active() == 0


def test_the_same_choice_in_both_factors_stands_once():
    width = Dim([2, 3])
    assert [table.shape for table in (Cost(width) * width).merged().values()] == [(2,)]
    width.active = 2
    assert (Cost(width) * width).active() == 4


def test_tables_and_thresholds_of_products():
    heads, width = Choice([1, 2]), Dim([2, 3])
    both = heads * width
    for h, w in itertools.product(heads.values, width.values):
        heads.active, width.active = h, w
        assert Cost.above(both, 3).active() == int(h * w > 3)
        assert Cost.table(both, [10 * value for value in both.values]).active() == 10 * h * w


def test_parts_keep_their_place_and_operator():
    width = Dim([2, 4])
    cost = (Cost(width) * 3).named("linear").under("fc") + Cost(width).under("fc") + Cost(1).under("inner").under("outer")
    parts = {(path, operator): amount for path, operator, amount in cost.parts({width: 1})}
    assert parts == {("fc", "linear"): 12, ("fc", ""): 4, ("outer.inner", ""): 1}
    assert cost.at({width: 0}) == 9


# -- exact counts ------------------------------------------------------------------------------------------------------


def dividing(name, size):
    """Return the patch sizes of a space that divide an image, where not all do."""
    return {"patch_size": [16, 32]} if name.startswith("vitas") and size != 224 else {}


def assert_counts_are_torchs(name, subnets, size, seed, **options):
    """Compare with torch's counter on the meta device."""
    with torch.device("meta"):
        model = create_superformer(name, img_size=size, num_classes=11, **options)
    space, counts, generator = search_space(model), cost_model(model), generator_of(seed)
    for _ in range(subnets):
        subnet = space.sample(generator)
        network = export_subnet(model, subnet)
        x = torch.empty(1, 3, *((size, size) if isinstance(size, int) else size), device="meta")
        count = count_flops(model, subnet)
        assert count.total == macs(network, x) == counts.flops(subnet), (name, size, subnet)
        assert count.total == sum(count.by_operator.values()) == sum(count.by_module.values())
        params = sum(parameter.numel() for parameter in network.parameters())
        assert params == count_params(model, subnet) == counts.params(subnet), (name, size, subnet)


@pytest.mark.parametrize("name", SIZES)
def test_counts_are_torchs(name):
    for seed, size in enumerate(SIZES[name][:3]):
        assert_counts_are_torchs(name, 1, size, seed)


@pytest.mark.heavy
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [224, 160, 384])
def test_counts_are_torchs_on_many_subnets(name, size):
    assert_counts_are_torchs(name, 17, size, 7, **dividing(name, size))


PUBLISHED = {  # METHOD 7.2: authors' count, exact, parameters
    "vitas_a": (858_652_480, 833_487_568, 3_679_478),
    "vitas_b": (990_624_768, 958_618_176, 4_400_248),
    "vitas_c": (1_303_042_496, 1_265_114_864, 6_048_414),
    "vitas_e": (2_706_797_632, 2_653_906_672, 12_550_598),
    "vitas_f": (4_930_994_656, 4_898_506_168, 22_540_277),
}


def test_published_networks_have_the_published_counts():
    assert set(PUBLISHED) == set(list_published_subnets())
    models = {}
    for name, (authors, exact, params) in PUBLISHED.items():
        home = list_published_subnets()[name]
        if home not in models:
            with torch.device("meta"):
                models[home] = create_superformer(home)
        model = models[home]
        subnet = published_subnet(name)
        assert count_flops(model, subnet).total == exact
        assert count_flops(model, subnet, convention="vitas").total == authors
        assert count_params(model, subnet) == params
        network = export_subnet(model, subnet)
        assert macs(network, torch.empty(1, 3, 224, 224, device="meta")) == exact
        assert sum(parameter.numel() for parameter in network.parameters()) == params
        for convention, total in (("exact", exact), ("vitas", authors)):
            assert cost_model(model, convention=convention).flops(subnet) == total


@pytest.mark.parametrize(
    ("name", "exact", "authors"),
    [
        ("deit_tiny", 1_253_683_200, 1_284_003_840),
        ("deit_small", 4_598_882_304, 4_648_906_752),
        ("deit_base", 17_563_828_224, 17_621_409_792),
    ],
)
def test_deits_have_the_published_counts(name, exact, authors):
    with torch.device("meta"):
        model = create_superformer(name)
    assert count_flops(model).total == count_flops(model, {}).total == exact
    assert count_flops(model, convention="vitas").total == authors
    assert macs(export_subnet(model), torch.empty(1, 3, 224, 224, device="meta")) == exact
    by_module = count_flops(model).by_module
    assert by_module["head"] == 1000 * model.embed_dim.active


@pytest.mark.parametrize("name", ["autoformer_tiny", "autoformer_small", "autoformer_base"])
def test_autoformer_spaces_follow_the_closed_form(name):
    with torch.device("meta"):
        model = create_superformer(name)
    space = search_space(model)
    generator = generator_of(0)
    for subnet in [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(10))]:
        width, total = subnet["embed_dim"], 0
        for i in range(subnet["depth"]):
            heads, hidden = subnet[f"blocks.{i}.num_heads"], int(width * subnet[f"blocks.{i}.mlp_ratio"])
            total += 197 * (width * 192 * heads + 2 * 197 * 64 * heads + 64 * heads * width + 2 * width * hidden)
        assert count_flops(model, subnet).total == total + 768 * width * 196 + width * 1000


def test_the_count_does_not_depend_on_the_attention_kernel():
    model = randomize(small()).eval()
    expected = count_flops(model).total
    x = torch.randn(1, 2, 8, 8)
    for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(kernel):
            assert count_flops(model).total == expected
            assert count_flops(model, inputs=x).total == expected
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                export_subnet(model)(x)
            assert counter.get_total_flops() // 2 in (expected, expected - count_flops(model).by_operator["matmul"])


# -- vectorised --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["exact", "vitas"])
@pytest.mark.parametrize("options", [{}, {"shift": False}, {"distilled": True}, {"mlp_dim": None, "mlp_ratio": [1, 2.5]}])
def test_vectorised_counts_are_the_single_ones(options, convention):
    model = small(**options)
    space, counts, generator = search_space(model), cost_model(model, convention=convention), generator_of(0)
    before = active_subnet(model)
    subnets = [space.sample(generator) for _ in range(60)] + [space.smallest(), space.largest()]
    codes = np.stack([space.encode(subnet) for subnet in subnets])
    flops, params = counts.flops(codes), counts.params(codes)
    assert flops.dtype == params.dtype == np.int64
    assert flops.shape == params.shape == (62,)
    assert flops.tolist() == [count_flops(model, subnet, convention=convention).total for subnet in subnets]
    assert params.tolist() == [count_params(model, subnet) for subnet in subnets]
    assert flops.tolist() == [counts.flops(subnet) for subnet in subnets]
    assert params.tolist() == [counts.params(dict(subnet)) for subnet in subnets]
    assert flops.tolist() == counts.flops(codes.tolist()).tolist() == counts.flops(codes.astype(np.int8)).tolist()
    by_columns, one = np.asfortranarray(codes), codes[:1].copy()
    assert flops.tolist() == counts.flops(by_columns).tolist()
    assert flops[0] == counts.flops(one)[0]
    assert (by_columns == codes).all()  # the caller's arrays are left alone
    assert (one == codes[:1]).all()
    assert active_subnet(model) == before


def test_choices_that_are_not_live_count_nothing_whatever_their_code():
    model = small()
    space, counts = search_space(model), cost_model(model)
    names = list(space.choices)
    code = space.encode({**space.smallest()})
    expected = counts.flops(code[None]).item(), counts.params(code[None]).item()
    assert (code == -1).any()
    for number in (0, 1):
        filled = np.where(code == -1, number, code)
        assert (counts.flops(filled[None]).item(), counts.params(filled[None]).item()) == expected
        assert space.decode(filled) == space.smallest(), names


def test_more_codes_than_a_chunk():
    model = small()
    space, counts = search_space(model), cost_model(model)
    codes = np.stack([space.encode(space.sample(generator_of(seed))) for seed in range(30)])
    many = np.tile(codes, (700, 1))
    assert counts.flops(many).tolist() == counts.flops(codes).tolist() * 700
    assert counts.params(many[:0]).shape == (0,)


def test_counts_of_large_networks_do_not_overflow():
    with torch.device("meta"):
        model = create_superformer("vitas_deit", img_size=224 * 16, embed_dim=[384, 65536], mlp_dim=[144, 2**20])
    space = search_space(model)
    largest = {**space.largest(), "patch_size": 14}
    assert count_flops(model, largest).total == cost_model(model).flops(space.encode(largest)[None]).item() > 2**53


def bad_codes():
    return {
        "one vector": (lambda good: good[0], "shape"),
        "another width": (lambda good: good[:, :-1], "shape"),
        "floats": (lambda good: good.astype(float), "float64"),
        "bools": (lambda good: good > 0, "bool"),
        "above": (lambda good: good + 50, "out of range"),
        "far below": (lambda good: good - 50, "out of range"),
        "not live though it always is": (lambda good: np.full_like(good, -1), "out of range"),
        "strings": (lambda good: good.astype(str), "ints"),
    }


@pytest.mark.parametrize("case", bad_codes())
def test_bad_codes_are_refused(case):
    model = small()
    space, counts = search_space(model), cost_model(model)
    spoil, message = bad_codes()[case]
    codes = spoil(np.stack([space.encode(space.largest())] * 2))
    for count in (counts.flops, counts.params):
        with pytest.raises(ChoiceError, match=message):
            count(codes)


def test_bad_subnets_are_refused():
    model = small()
    counts = cost_model(model)
    for subnet, message in (({"embed_dim": 5}, "embed_dim"), ({}, "missing"), ({"width": 1}, "width")):
        for count in (counts.flops, counts.params, lambda s: count_flops(model, s), lambda s: count_params(model, s)):
            with pytest.raises(ChoiceError, match=message):
                count(subnet)


# -- users' own models -------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A user's model: an elastic MLP that states no cost of its own, with a convolution before it."""

    def __init__(self):
        super().__init__()
        width, hidden = Dim([2, 4], name="width"), Dim([3, 6], name="hidden")
        self.stem = nn.Conv2d(2, 4, 2, stride=2)
        self.entry = CyclicLinear(4, width)
        self.norm = ElasticLayerNorm(width)
        self.body = nn.Sequential(CyclicLinear(width, hidden), nn.ReLU(), CyclicLinear(hidden, width))
        self.head = CyclicLinear(width, 3)

    def forward(self, x, scale=1.0):
        x = self.entry(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.body(self.norm(x)).mean(1) * scale)


def own_count(width, hidden, tokens, images=1):
    return images * (tokens * (8 * 4 + 4 * width + 2 * width * hidden) + width * 3)


def test_a_model_of_ones_own_is_counted_by_running_it():
    model = Own().train()
    model.norm.eval()
    space = search_space(model)
    space.activate({"width": 4, "hidden": 3})
    for width, hidden in itertools.product([2, 4], [3, 6]):
        count = count_flops(model, {"width": width, "hidden": hidden}, inputs=torch.randn(3, 2, 4, 6))
        assert count.total == own_count(width, hidden, 6, images=3)
        assert count.by_operator["conv"] == 3 * 6 * 8 * 4
        assert count.total == sum(count.by_operator.values()) == sum(count.by_module.values())
        assert count.by_module["stem"] == 3 * 6 * 8 * 4
        assert count.by_module["body.2"] == 3 * 6 * width * hidden
    assert active_subnet(model) == {"width": 4, "hidden": 3}
    assert model.training
    assert not model.norm.training
    assert count_flops(model, inputs=(torch.randn(1, 2, 2, 2), 2.0)).total == own_count(4, 3, 1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_count_by_running_that_fails_leaves_the_model_as_it_was():
    model = Own().train()
    search_space(model).activate({"width": 4, "hidden": 3})
    with pytest.raises(RuntimeError):
        count_flops(model, {"width": 2, "hidden": 6}, inputs=torch.randn(1, 5, 4, 4))
    with pytest.raises(ChoiceError):
        count_flops(model, {"width": 3, "hidden": 6}, inputs=torch.randn(1, 2, 4, 4))
    assert active_subnet(model) == {"width": 4, "hidden": 3}
    assert model.training


class Either(nn.Module):
    """One of two MLPs; only the hidden width of the first, beside the smaller value, is searched."""

    def __init__(self):
        super().__init__()
        hidden = Dim([4, 8], name="hidden")
        self.mlp = Private(Choice([1, 2], name="which"), lambda which: ElasticMlp(8, hidden if which == 1 else 16))

    def cost(self):
        return self.mlp.cost(Cost(3))


def test_a_choice_that_lives_only_beside_a_smaller_value_is_counted():
    model = Either()
    space, counts = search_space(model), cost_model(model)
    subnets = [{"which": 1, "hidden": 4}, {"which": 1, "hidden": 8}, {"which": 2}]
    codes = np.array([space.encode(subnet) for subnet in subnets])
    assert counts.flops(codes).tolist() == [3 * 2 * 8 * hidden for hidden in (4, 8, 16)]
    assert counts.params(codes).tolist() == [count_params(model, subnet) for subnet in subnets]
    assert vitas.SubnetSampler(model, flops="100%").contains(codes).all()


@pytest.mark.parametrize("options", [{}, {"distilled": True}, {"global_pool": "avg"}, {"init_values": 0.1}])
def test_running_counts_what_the_model_states(options):
    model = randomize(small(**options)).train()
    space, generator = search_space(model), generator_of(3)
    for _ in range(5):
        subnet = space.sample(generator)
        stated, run = count_flops(model, subnet), count_flops(model, subnet, inputs=torch.randn(1, 2, 8, 8))
        assert run.total == stated.total
        assert run.by_operator == stated.by_operator
    assert all(part.training for part in model.modules())
    assert count_flops(nn.DataParallel(model), subnet).total == stated.total


def test_a_model_that_states_no_cost_is_told_how():
    with pytest.raises(VitasError, match=r"Own states no cost: give it a method cost\(\).* inputs="):
        count_flops(Own())
    with pytest.raises(VitasError, match=r"Own states no cost"):
        cost_model(Own())
    with pytest.raises(VitasError, match=r"Bilinear states no cost"):
        cost_of(nn.Bilinear(2, 2, 2), Cost(1))


def test_plain_parts_count_as_they_are():
    mlp = plain.Mlp(nn.Linear(4, 8), nn.Linear(8, 4, bias=False), nn.GELU())
    assert cost_of(mlp, Cost(3)).active() == 3 * (4 * 8 + 8 * 4)
    assert params_of(mlp).active() == 4 * 8 + 8 + 8 * 4
    assert count_params(Own(), {"width": 2, "hidden": 3}) == 36 + 10 + 4 + 9 + 8 + 9
    assert count_params(nn.Linear(2, 3)) == 9


def test_unknown_conventions_are_refused():
    model = small()
    with pytest.raises(ChoiceError, match=r"convention: expected one of exact, vitas, got 'vita' .nearest: vitas"):
        count_flops(model, convention="vita")
    with pytest.raises(ChoiceError, match=r"convention"):
        cost_model(model, convention="fvcore")
    with pytest.raises(ChoiceError, match=r"convention"):
        model.cost(convention="fvcore")
    with pytest.raises(ChoiceError, match=r"convention: TwinsSuperformer states its cost as 'exact' only, got 'vitas'"):
        count_flops(small_twins(), convention="vitas")

    class Broken(nn.Module):
        conventions = ("exact", "vitas")

        def cost(self, *, convention="exact"):
            return Cost(len(3))

    for convention in ("exact", "vitas"):  # a mistake inside is not taken for a convention that is not known
        with pytest.raises(TypeError, match=r"^object of type 'int' has no len"):
            count_flops(Broken(), convention=convention)
    with pytest.raises(ChoiceError, match=r"convention: a count by running is exact"):
        count_flops(model, inputs=torch.randn(1, 2, 8, 8), convention="vitas")


@pytest.mark.parametrize("subnet", [np.zeros((2, 2)), torch.zeros(3), [], "smallest", 3])
def test_what_is_no_subnet_is_not_counted(subnet):
    for count in (count_flops, count_params):
        with pytest.raises(ChoiceError):
            count(small(), subnet)


@pytest.mark.parametrize("inputs", ["images", 3, (), [None], (None,)])
def test_inputs_to_count_by_running_hold_a_tensor(inputs):
    with pytest.raises(
        VitasError,
        match=f"inputs: expected a tensor, .* with a tensor among them, got {re.escape(repr(inputs))}",
    ):
        count_flops(small(), inputs=inputs)


# -- display -----------------------------------------------------------------------------------------------------------


def test_a_count_prints_as_a_table_with_a_row_for_each_block():
    model = small()
    count = count_flops(model)
    *rows, total, rest = str(count).splitlines()
    assert [row.split()[0] for row in rows] == ["patch_embed.proj", "blocks.0", "blocks.1", "blocks.2", "head"]
    amounts = {row.split()[0]: int(row.split()[1].replace(",", "")) for row in rows}
    for block in range(3):
        inside = (n for path, n in count.by_module.items() if path.startswith(f"blocks.{block}."))
        assert amounts[f"blocks.{block}"] == sum(inside)
    assert sum(amounts.values()) == count.total == int(count)
    assert sum(float(row.split()[2].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.3)
    assert total.split() == ["total", f"{count.total:,}", "multiply-adds"]
    assert rest.startswith("not counted: bias, layer norm, softmax")
    assert set(count.not_counted) >= {"bias", "layer norm", "softmax", "activation"}
    assert len({len(row) for row in rows}) == 1


def test_a_count_shows_as_html():
    count = count_flops(small())
    html = count._repr_html_()
    assert html.startswith("<table>")
    assert html.endswith("</table>")
    assert "blocks.2" in html
    assert f"{count.total:,}" in html
    odd = vitas.FlopCount(2, {"linear": 2}, {"<b>": 2}, ())
    assert "<b>" not in odd._repr_html_()


def test_a_count_of_nothing_prints():
    count = count_flops(nn.Sequential(nn.ReLU()), inputs=torch.randn(1, 2))
    assert count.total == 0
    assert "total" in str(count)
    assert "total" in count._repr_html_()


def test_the_displayed_range_of_a_space_is_exact():
    model = small(patch_size=[2, 4], embed_dim=[4, 8], depth=range(1, 3), mlp_dim=[3, 8])
    space = search_space(model)
    every = itertools.product(*(choice.values for choice in space.choices.values()))
    counts = [count_flops(model, space.subnet(dict(zip(space.choices, values, strict=True)))).total for values in every]
    assert space.costs()[::2] == (min(counts), max(counts))
    assert "(cheapest / median / costliest)" in repr(space)


def test_a_layer_that_stands_twice_in_a_row_counts_twice():
    width = vitas.Dim([3, 6])
    layer = CyclicLinear(width, width)
    row = nn.Sequential(layer, nn.GELU(), layer)
    for channels in (3, 6):
        width.active = channels
        assert cost_of(row, Cost(2)).active() == macs(row, torch.randn(2, channels)) == 2 * 2 * channels**2


def stem(width, stride):
    return nn.Sequential(ElasticConv2d(3, width, 4, stride=4), nn.GELU(), ElasticConv2d(width, width, stride, stride=stride))


def test_layers_behind_or_before_a_stride_see_other_tokens_and_state_no_cost():
    model = small()
    model.patch_embed.proj = stem(model.embed_dim, 2)
    with pytest.raises(VitasError, match="Sequential states no cost: 0 has a stride, so 2 sees other tokens; give it"):
        count_flops(model)
    width = Dim([4, 8])
    for row in (stem(width, 1), stem(width, 2), nn.Sequential(CyclicLinear(4, 4), nn.Sequential(nn.MaxPool2d(2)))):
        with pytest.raises(VitasError, match=r"Sequential states no cost: \d has a stride"):
            cost_of(row, Cost(4))
    alone = nn.Sequential(stem(width, 1)[0], nn.GELU(), ElasticLayerNorm(width))
    assert cost_of(alone, Cost(4)).active() == 4 * 3 * 8 * 16


class Pooled(nn.Module):
    """Products with vectors, of which the channels in use follow a Dim."""

    def __init__(self):
        super().__init__()
        self.width = Dim([4, 8], name="width")
        self.fc, self.query, self.bias = (
            CyclicLinear(6, self.width),
            nn.Parameter(torch.randn(8)),
            nn.Parameter(torch.zeros(10)),
        )

    def active_weights(self):
        return {"query": self.width.take(self.query)}

    def forward(self, x):
        x, query = self.fc(x), self.active_weights()["query"]
        return torch.addmv(self.bias, x[0], query), x @ query, query.dot(query)


@pytest.mark.parametrize("channels", [4, 8])
def test_products_with_vectors_are_counted(channels):
    model, x = Pooled(), torch.randn(2, 10, 6)
    count = count_flops(model, {"width": channels}, inputs=x)
    assert count.by_operator == {"linear": 20 * 6 * channels + 10 * channels + 20 * channels, "matmul": channels}


def test_active_weights_of_ones_own_are_counted_by_a_param_count_of_ones_own():
    with pytest.raises(VitasError, match=r"Pooled: its active_weights\(\) are counted by param_count\(\)"):
        count_params(Pooled())

    class Counted(Pooled):
        def param_count(self):
            return params_of(self.fc) + self.width + 10

    model = Counted()
    for channels in (4, 8):
        model.width.active = channels
        assert count_params(model) == sum(parameter.numel() for parameter in export_subnet(model).parameters())


@pytest.mark.parametrize("seed", range(5))
def test_extremes_are_those_of_all_combinations(seed):
    rng = np.random.default_rng(seed)
    a, b, c = vitas.Choice([1, 2, 3]), vitas.Choice([1, 2]), vitas.Choice([1, 2, 3, 4])
    tables = [[Cost.table(choice, rng.integers(0, 50, len(choice.values))) for choice in (a, b, c)] for _ in range(3)]
    cost = tables[0][0] * tables[0][1] + tables[1][0] * tables[1][2] + tables[2][1] * tables[2][2]
    totals = [cost.at({a: i, b: j, c: k}) for i, j, k in itertools.product(range(3), range(2), range(4))]
    assert cost.extremes() == (min(totals), max(totals))


class ReadsActive(nn.Module):
    """Two layers whose cost is that of the active subnet, stated as if it were that of all."""

    def __init__(self):
        super().__init__()
        width = Dim([2, 50], name="width")
        self.first = CyclicLinear(width, Dim([1, 4], name="hidden"))

    def cost(self):
        return Cost(self.first.in_dim.active) * self.first.out_dim.active


class CountsActive(ElasticLayerNorm):
    def param_count(self):
        return Cost(self.dim.active)


def test_a_cost_of_the_active_values_is_refused():
    message = re.escape("ReadsActive: cost() reads the active value: state the choice, Cost(dim), not Cost(dim.active)")
    model = ReadsActive()
    for count in (count_flops, cost_model, lambda model: vitas.count_subnets(model, flops=20)):
        with pytest.raises(VitasError, match=message):
            count(model)
    inside = nn.Sequential(CountsActive(Dim([2, 4], name="width")))
    with pytest.raises(VitasError, match=re.escape("Sequential.0: param_count() reads the active value")):
        count_params(inside)


def test_a_count_leaves_the_active_subnet_as_it_was():
    model = small()
    subnet = search_space(model).sample(generator_of(0))
    vitas.activate_subnet(model, subnet)
    count_flops(model)
    count_params(model)
    assert active_subnet(model) == subnet

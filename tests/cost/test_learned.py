"""Costs that a model does not state, learned from a few passes: against torch's counter, subnet by subnet."""

import itertools

import pytest
import torch
from torch import nn

import vitas
from vitas import (
    BudgetError,
    Choice,
    Dim,
    SubnetSampler,
    VitasError,
    count_flops,
    count_subnets,
    sample_subnet,
    search_space,
)
from vitas.cost import learned_cost
from vitas.nn import (
    CyclicLinear,
    ElasticAttention,
    ElasticConv2d,
    ElasticLayerNorm,
    ElasticMlp,
    ElasticPatchEmbed,
    ShiftableIdentity,
)


class OwnHead(nn.Module):
    """Elastic layers with blocks that may be left out, and a plain head."""

    def __init__(self):
        super().__init__()
        width, hidden = Dim([4, 8, 12], name="width"), Dim([4, 8], name="hidden")
        self.stem = CyclicLinear(3, width)
        self.attn = ElasticAttention(width, Choice([1, 2, 4], name="heads"), qkv_dim=8)
        self.blocks = ShiftableIdentity([ElasticMlp(width, hidden) for _ in range(3)])
        self.norm, self.neck = ElasticLayerNorm(width), CyclicLinear(width, 6)
        self.table, self.act, self.head = nn.Embedding(5, 6), nn.GELU(), nn.Linear(6, 2)

    def forward(self, x):
        x = self.neck(self.norm(self.blocks(self.attn(self.stem(x)))))
        return self.head(self.act(x)) + self.head(self.table.weight[:1]).mean()  # a leaf that is called twice


class Lightning(nn.Module):
    """As a LightningModule: a normalised backbone, a head and a loss."""

    def __init__(self):
        super().__init__()
        backbone = vitas.create_superformer("deit_micro", num_classes=6, img_size=16)
        self.model = nn.Sequential(nn.BatchNorm2d(3), backbone)
        self.head, self.loss = nn.Linear(6, 3), nn.CrossEntropyLoss()

    def forward(self, x):
        return self.head(self.model(x))


class Detector(nn.Module):
    """An elastic backbone on images of another size than its own, a pyramid of one level each, and a plain tower."""

    def __init__(self):
        super().__init__()
        self.body = vitas.create_superformer("twins_micro", num_classes=0, img_size=32)
        self.lateral = nn.ModuleList(ElasticConv2d(dim, 8, 1) for dim in self.body.embed_dims)
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def forward(self, images):
        maps = self.body.forward_intermediates(torch.stack(images), intermediates_only=True)
        return [self.tower(layer(features)) for layer, features in zip(self.lateral, maps, strict=True)]


def equals_the_counter(model, inputs, subnets):
    cost, space = learned_cost(model, inputs), search_space(model)
    for subnet in subnets:
        assert cost.at(space.indices(subnet)) == count_flops(model, subnet, inputs=inputs).total


def every_subnet(model):
    space, found = search_space(model), {}
    for values in itertools.product(*space.values.values()):
        given = dict(zip(space.choices, values, strict=True))
        code = [choice.values.index(given[name]) for name, choice in space.choices.items()]
        found[space.decode(space.encode(space.decode(code)))] = None
    return list(found)


def test_elastic_layers_and_a_plain_head_by_enumeration():
    model = OwnHead()
    subnets = every_subnet(model)
    assert len(subnets) == search_space(model).size
    equals_the_counter(model, torch.randn(3, 5, 3), subnets)


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (Lightning, torch.randn(2, 3, 16, 16)),
        (
            lambda: nn.Sequential(nn.Identity(), vitas.create_superformer("deit_micro", img_size=16)),
            torch.randn(1, 3, 16, 16),
        ),
        (Detector, ([torch.randn(3, 64, 32)] * 2,)),
    ],
    ids=["lightning", "sequential", "detector"],
)
def test_whole_models_by_draws(build, inputs):
    torch.manual_seed(0)
    model, generator = build(), torch.Generator().manual_seed(1)
    before = vitas.active_subnet(model)
    random = torch.get_rng_state()
    equals_the_counter(model, inputs, [search_space(model).sample(generator) for _ in range(6)])
    assert vitas.active_subnet(model) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_budgets_are_exact_and_counted():
    model, x = OwnHead(), torch.randn(1, 5, 3)
    costs = {subnet: count_flops(model, subnet, inputs=x).total for subnet in every_subnet(model)}
    low, high = sorted(costs.values())[len(costs) // 3], sorted(costs.values())[len(costs) // 3 + 4]
    inside = {subnet for subnet, cost in costs.items() if low <= cost <= high}
    assert count_subnets(model, flops=(low, high), inputs=x) == len(inside)
    sampler = SubnetSampler(model, flops=(low, high), inputs=x)
    assert {sampler.sample(step) for step in range(300)} == inside
    assert sampler.costs(search_space(model).encode(sampler.sample(0))[None])["flops"] == costs[sampler.sample(0)]
    with pytest.raises(BudgetError, match=f"can be reached|nearest.*{min(costs.values()):,}"):
        sample_subnet(model, flops=min(costs.values()) - 1, inputs=x)
    model.head = nn.Linear(6, 9)
    with pytest.raises(VitasError, match="make a new SubnetSampler"):
        sampler.sample(0)


@pytest.mark.extras  # Optuna
def test_a_search_under_a_budget():
    model, x = OwnHead(), torch.randn(1, 5, 3)
    result = vitas.evolve(
        model,
        lambda m: float(vitas.active_subnet(m)["width"]),
        flops="60%",
        inputs=x,
        population=4,
        generations=3,
        progress=False,
    )
    most = 0.6 * count_flops(model, search_space(model).largest(), inputs=x).total
    assert all(count_flops(model, found.subnet, inputs=x).total <= most for found in result.history)


class Patches(nn.Module):
    """The size of the patches decides how many positions all other layers see."""

    def __init__(self):
        super().__init__()
        width = Dim([4, 8], name="width")
        self.embed = ElasticPatchEmbed(16, Choice([4, 8, 16], name="patch_size"), 3, width)
        self.mlp, self.neck, self.head = ElasticMlp(width, 16), CyclicLinear(width, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.neck(self.mlp(self.embed(x))))


def test_a_choice_that_decides_how_many_positions_there_are():
    model = Patches()
    subnets = every_subnet(model)
    assert len(subnets) == search_space(model).size == 6
    equals_the_counter(model, torch.randn(2, 3, 16, 16), subnets)
    inside = sample_subnet(model, flops="50%", inputs=torch.randn(1, 3, 16, 16), only={"patch_size": [4, 8]})
    assert inside["patch_size"] == 8


class Together(nn.Module):
    """The sizes of images and patches decide together how many positions the other layers see."""

    def __init__(self):
        super().__init__()
        self.width, self.size = Dim([4, 8], name="width"), Choice([8, 16], name="img_size")
        self.embed = ElasticPatchEmbed(self.size, Choice([2, 4, 8], name="patch_size"), 3, self.width)
        self.mlp, self.head = ElasticMlp(self.width, 16), CyclicLinear(self.width, 2)

    def forward(self, x):
        return self.head(self.mlp(self.embed(self.embed.resized(x))))


def test_choices_that_decide_together_how_many_positions_there_are():
    model = Together()
    assert search_space(model).size == 12
    equals_the_counter(model, torch.randn(2, 3, 16, 16), every_subnet(model))
    vitas.narrow(model, only={"patch_size": [4, 8]})
    x = torch.randn(1, 3, 16, 16)
    costs = [count_flops(model, subnet, inputs=x).total for subnet in every_subnet(model)]
    assert len(costs) == 8
    assert count_subnets(model, flops=sorted(costs)[4], inputs=x) == sum(cost <= sorted(costs)[4] for cost in costs)


# -- what depends on more than the parts -------------------------------------------------------------------------------


class Finds(nn.Module):
    """As a detector: how often the head runs depends on what the network found."""

    def __init__(self):
        super().__init__()
        hidden = Dim(range(1, 65), name="hidden")
        self.fc1, self.fc2, self.head = CyclicLinear(3, hidden), CyclicLinear(hidden, 1), nn.Linear(1, 100)

    def forward(self, x):
        found = self.fc2(self.fc1(x).relu())
        return self.head(found[found[:, 0] > 0])


class Two(nn.Module):
    """Two choices decide how many positions there are."""

    def __init__(self):
        super().__init__()
        self.row = ElasticPatchEmbed(16, Choice([4, 8], name="first"), 3, 4)
        self.column = ElasticPatchEmbed(16, Choice([4, 8], name="second"), 3, 4)
        self.head = nn.Linear(4, 50)

    def forward(self, x):
        return self.head(torch.cat([self.row(x), self.column(x)], dim=1))


@pytest.mark.parametrize("build", [Two, Finds])
def test_what_runs_do_not_tell_is_not_told(build):
    torch.manual_seed(0)
    model, x = build(), torch.randn(1, 3, 16, 16) if build is Two else torch.randn(32, 3)
    assert learned_cost(model, x) is None
    with pytest.raises(VitasError, match="depends on more than its parts"):
        count_subnets(model, flops=1000, inputs=x)


def test_a_network_is_given_whenever_one_was_seen():
    torch.manual_seed(0)
    model, x = Finds(), torch.randn(32, 3)
    costs = {n: count_flops(model, {"hidden": n}, inputs=x).total for n in range(1, 65)}
    rare = costs[64]
    sampler = SubnetSampler(model, flops=(rare, rare), inputs=x)
    for step in range(3):
        assert costs[sampler.sample(step)["hidden"]] == rare
    low, high = min(costs.values()), max(costs.values())
    with pytest.raises(BudgetError, match=rf"none of 64 networks that were run; they reach flops from {low:,} to {high:,}"):
        sample_subnet(model, flops=(high + 1, high + 2), inputs=x)


def test_a_window_that_the_prior_hardly_meets_is_found_between_those_that_miss_it():
    class Wide(nn.Module):
        """Eight layers of any width, and a head whose runs follow from what came out."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(CyclicLinear(4, Dim(range(1, 33), name=f"dim{i}")) for i in range(8))
            self.head = nn.Linear(4, 50)

        def forward(self, x):
            sizes = [layer(x).shape[-1] for layer in self.layers]
            return self.head(x[: sum(sizes) % 7])

    model, x = Wide(), torch.randn(8, 4)
    low = int(0.9 * count_flops(model, search_space(model).largest(), inputs=x).total)  # 4 standard deviations off
    subnet = sample_subnet(model, flops=(low, int(1.03 * low)), inputs=x)
    assert low <= count_flops(model, subnet, inputs=x).total <= 1.03 * low

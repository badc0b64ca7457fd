"""How budgets are read; exact draws and counts inside them."""

import itertools
import math
import re
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from tests.superformer.test_deit import small
from vitas import (
    BudgetError,
    Choice,
    ChoiceError,
    Dim,
    SubnetSampler,
    VitasError,
    active_subnet,
    cost_model,
    count_flops,
    count_params,
    count_subnets,
    create_superformer,
    sample_subnet,
    search_space,
)
from vitas.cost.expression import Cost
from vitas.cost.stated import params_of
from vitas.nn.depth import ShiftableIdentity, binomial_law
from vitas.nn.layer import Elastic
from vitas.nn.linear import CyclicLinear
from vitas.sample.budget import Window, window_of
from vitas.sample.chain import Chain
from vitas.sample.conditional import Conditional
from vitas.sample.counting import _estimate, count_inside
from vitas.sample.outermost import DOWN, UP, outermost

# -- spelling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "low", "high"),
    [
        (500, 0, 500),
        (499.5, 0, 499),
        (np.int32(500), 0, 500),
        ((100, 500), 100, 500),
        ([100, 500], 100, 500),
        ((100.5, None), 101, 1000),
        ((None, 500), 0, 500),
        ("60%", 0, 600),
        (" 60 %", 0, 600),
        (("40%", "60%"), 400, 600),
        (("12.55%", 700), 126, 700),
        ((0, math.inf), 0, 1000),
        (1, 0, 1),
        (0, 0, 0),
        (5000, 0, 5000),
        ((5000, None), 5000, 5000),
        ("1.3k", 0, 1300),
        ("1.3G", 0, 1_300_000_000),
        ("1.3 b", 0, 1_300_000_000),
        (("50M", "0.29T"), 50_000_000, 290_000_000_000),
        ("5e6", 0, 5_000_000),
        ("1e999", 0, 2**63 - 1),
    ],
)
def test_budgets_read_as_people_type_them(budget, low, high):
    assert window_of(budget, "flops", 1000) == Window(low, high)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (0.6, r"flops: got 0\.6; .* '60%'"),
        ((0.4, "60%"), "'40%'"),
        (1.0, "'100%'"),
        (1.3, "1.3e9 or '1.3G' for 1.3 billion"),
        (-1, "at least 0, got -1"),
        (math.nan, "at least 0, got nan"),
        ((500, 100), r"lower bound 500 is above the upper bound 100"),
        (("60%", "40%"), "lower bound"),
        ((None, None), "bounds nothing"),
        ((1, 2, 3), r"expected \(low, high\)"),
        ((), r"expected \(low, high\)"),
        ("60", "a share of the costliest subnet is written '60%'"),
        ("1.3X", "expected a number, '1.3G' or a share such as '60%', got '1.3X'"),
        ("8 ms", "got '8 ms'"),
        ("140%", "got '140%'"),
        ("-5%", "got '-5%'"),
        ("many%", "got 'many%'"),
        (True, "got True"),
        ({}, "got {}"),
        (torch.tensor(5), "got tensor"),
    ],
)
def test_a_malformed_budget_is_refused(budget, words):
    with pytest.raises(BudgetError, match=words):
        window_of(budget, "flops", 1000)


def test_a_percentage_is_of_the_costliest_subnet():
    """Which is not the subnet of the largest values: large patches are cheap."""
    model = two_blocks()
    codes, _ = everything(model)
    costs = cost_model(model).flops(codes)
    sampler = SubnetSampler(model, flops=("40%", "60%"), params="50%")
    assert sampler.windows["flops"] == (math.ceil(max(costs) * 0.4), math.floor(max(costs) * 0.6))
    assert count_flops(model, search_space(model).largest()).total < max(costs)
    assert sampler.windows["params"].high == max(cost_model(model).params(codes)) // 2


# -- exactness against enumeration -------------------------------------------------------------------------------------


def subnets_of(model):
    """Every subnet of a small DeiT superformer, by plain loops."""
    space = search_space(model)
    values = {name: choice.values for name, choice in space.choices.items()}
    shared = [name for name in values if not name.startswith("blocks.")]
    found = []
    for outer in itertools.product(*(values[name] for name in shared)):
        given = dict(zip(shared, outer, strict=True))
        inside = [name for name in values if name.startswith("blocks.") and int(name.split(".")[1]) < given.get("depth", 99)]
        for inner in itertools.product(*(values[name] for name in inside)):
            found.append(space.subnet({**given, **dict(zip(inside, inner, strict=True))}))
    assert len(set(found)) == len(found) == space.size
    return found


def prior_of(model, subnet):
    """The product of the probabilities of the live choices."""
    choices = search_space(model).choices
    return math.prod(choices[name].p[choices[name].index_of(value)] for name, value in subnet.items())


def everything(model):
    space, subnets = search_space(model), subnets_of(model)
    codes = np.array([space.encode(subnet) for subnet in subnets])
    return codes, np.array([prior_of(model, subnet) for subnet in subnets])


def two_blocks(**options):
    return small(**{"depth": [1, 2], "mlp_dim": [3, 8], "embed_dim": [4, 6, 8], **options})


SPACES = {
    "uniform depth": {},
    "binomial depth": {"depth_p": binomial_law(2, 0.7)},
    "explicit depth": {"depth_p": [0.05, 0.95]},
    "a depth that is never drawn": {"depth_p": [1.0, 0.0]},
    "unequal priors": {
        "embed_dim": Dim([4, 6, 8], p=[0.7, 0.1, 0.2]),
        "patch_size": Choice([2, 4], p=[0.2, 0.8]),
        "mlp_dim": Dim([3, 8], p=[0.9, 0.1]),
    },
    "one choice for all blocks": {"mlp_dim": Dim([3, 6, 8]), "num_heads": Choice([1, 2])},
    "no shifting": {"shift": False, "depth": [1, 2], "depth_p": 0.3, "qkv_dim": 4},
    "heads set the width": {"qkv_dim": None, "head_dim": 2, "private": None, "mlp_dim": None, "mlp_ratio": [1, 2.5]},
}


@pytest.mark.filterwarnings("ignore:depth law")
@pytest.mark.parametrize("measures", [("flops",), ("params",), ("flops", "params")], ids="+".join)
@pytest.mark.parametrize("space", SPACES)
def test_draws_follow_the_conditioned_prior_and_counts_equal_enumeration(space, measures):
    options = dict(SPACES[space])
    if space == "no shifting":
        model = small(**options)
        codes, priors = without_shifting(model)
    else:
        model = two_blocks(**options)
        codes, priors = everything(model)
    costs = {"flops": cost_model(model).flops(codes), "params": cost_model(model).params(codes)}
    middle = {name: (int(np.quantile(costs[name], 0.3)), int(np.quantile(costs[name], 0.75))) for name in measures}
    inside = np.all([(costs[name] >= low) & (costs[name] <= high) for name, (low, high) in middle.items()], axis=0)
    assert 0 < inside.sum() < len(codes)
    assert count_subnets(model, **middle) == inside.sum()
    assert count_subnets(model, **middle).exact

    sampler = SubnetSampler(model, **middle)
    draws = sampler.draw(100_000, np.random.default_rng(5))
    assert sampler.contains(draws).all()
    expected = {code.tobytes(): p for code, p in zip(codes[inside], priors[inside] / priors[inside].sum(), strict=True) if p}
    seen = dict.fromkeys(expected, 0)
    for code in draws:
        seen[code.tobytes()] += 1  # a KeyError is a draw outside the window, or one that is not canonical
    assert abs(deviations(list(seen.values()), [100_000 * p for p in expected.values()])) < 4


def without_shifting(model):
    """Every subnet and its prior where each slot has a gene of its own."""
    space = search_space(model)
    found = {}
    for values in itertools.product(*(choice.values for choice in space.choices.values())):
        try:
            subnet = space.subnet(dict(zip(space.choices, values, strict=True)))
        except VitasError:
            continue
        found[subnet] = prior_of(model, subnet)
    assert len(found) == space.size
    assert sum(found.values()) == pytest.approx(1)
    return np.array([space.encode(subnet) for subnet in found]), np.array(list(found.values()))


def deviations(seen, expected):
    """Pearson's chi-square as standard normal deviations (Wilson and Hilferty); cells of under 8 expected draws as one."""
    rare = [pair for pair in zip(seen, expected, strict=True) if pair[1] < 8]
    cells = [pair for pair in zip(seen, expected, strict=True) if pair[1] >= 8]
    if rare:
        cells.append(tuple(map(sum, zip(*rare, strict=True))))
    seen, expected = map(np.array, zip(*cells, strict=True))
    k = len(cells) - 1
    chi_square = ((seen - expected) ** 2 / expected).sum()
    return ((chi_square / k) ** (1 / 3) - (1 - 2 / (9 * k))) / (2 / (9 * k)) ** 0.5 if k else 0.0


# -- spaces and costs made at random -----------------------------------------------------------------------------------


class Slot(nn.Module):
    """A block with one choice of its own."""

    def __init__(self, own):
        super().__init__()
        self.own = own


class Made(nn.Module):
    """Free choices, up to two stages with a depth, unequal priors, and costs that are sums of random tables."""

    def __init__(self, rng):
        super().__init__()
        self.rng, self.scale = rng, int(rng.choice([1, 7, 1000, 10**6]))
        self.free = [self.choice(f"free{i}") for i in range(rng.integers(1, 4))]
        self.stages = nn.ModuleList()
        for s in range(rng.integers(0, 3)):
            slots = [Slot(self.choice(f"stages.{s}.blocks.{i}.own")) for i in range(rng.integers(2, 5 - s))]
            law = rng.random(len(slots)) + 0.05
            self.stages.append(ShiftableIdentity(slots, p=list(law), name=f"stages.{s}.depth"))
        self.costs = {name: self.random_cost() for name in ("flops", "params")}

    def choice(self, name):
        p = self.rng.random(self.rng.integers(2, 4)) + 0.05
        if len(p) == 3 and self.rng.random() < 0.3:
            p[self.rng.integers(3)] = 0
        return Choice(range(1, len(p) + 1), p=list(p), name=name)

    def table(self, *choices):
        cost = Cost(1)
        for choice in choices:
            cost = cost * Cost.table(choice, (int(n) for n in self.rng.integers(0, 50, len(choice.values))))
        return cost * self.scale + self.rng.integers(0, 3).item()  # without the addition all costs have a common divisor

    def random_cost(self):
        total = self.table(*self.free[:2])
        for stage in self.stages:
            for i, slot in enumerate(stage):
                runs = Cost.above(stage.depth, i)
                total += runs * (self.table(slot.own) + self.table(self.free[-1], slot.own))
            total += self.table(stage.depth, self.free[0])
        return total

    def cost(self):
        return self.costs["flops"]

    def param_count(self):
        return self.costs["params"]


def made_by(model):
    """Every subnet of such a space and its prior."""
    space = search_space(model)
    sizes = [len(choice.values) for choice in space.choices.values()]
    codes = np.unique(space.canonical(np.indices(sizes).reshape(len(sizes), -1).T), axis=0)
    assert len(codes) == space.size
    priors = np.ones(len(codes))
    for column, choice in zip(codes.T, space.choices.values(), strict=True):
        priors *= np.where(column < 0, 1, np.array(choice.p)[column])
    assert priors.sum() == pytest.approx(1)
    return codes, priors


@pytest.mark.filterwarnings("ignore:depth law")
@pytest.mark.parametrize("seed", range(12))
def test_draws_and_counts_of_spaces_made_at_random(seed):
    rng = np.random.default_rng(seed)
    model = Made(rng)
    space, (codes, priors) = search_space(model), made_by(model)
    costs = {"flops": cost_model(model).flops(codes), "params": cost_model(model).params(codes)}
    for measures in (("flops",), ("params",), ("flops", "params")):
        chosen = codes[priors > 0][rng.integers((priors > 0).sum())]  # so that a window is never empty
        windows, inside = {}, np.ones(len(codes), dtype=bool)
        for name in measures:
            (here,) = costs[name][(codes == chosen).all(axis=1)]
            windows[name] = (int(rng.integers(costs[name].min(), here + 1)), int(rng.integers(here, costs[name].max() + 1)))
            inside &= (costs[name] >= windows[name][0]) & (costs[name] <= windows[name][1])
        count = count_subnets(model, **windows)
        assert (count, count.exact) == (inside.sum(), True)
        if len(measures) == 1 and model.scale < 10**6:
            (name,) = measures
            cost, chain = costs[name][priors > 0], Chain(space, [model.costs[name]])
            within = cost[(cost >= windows[name][0]) & (cost <= windows[name][1])]
            assert outermost(chain, Window(*windows[name]), UP) == within.min()
            assert outermost(chain, Window(*windows[name]), DOWN) == within.max()
            above = cost[cost > windows[name][1]]
            end = int(costs[name].max())
            assert outermost(chain, Window(windows[name][1] + 1, end), UP) == (above.min() if len(above) else None)
        draws = SubnetSampler(model, **windows).draw(5000, rng)
        expected = dict(zip((code.tobytes() for code in codes[inside]), priors[inside] / priors[inside].sum(), strict=True))
        seen = {key: 0 for key, p in expected.items() if p}
        for code in draws:
            seen[code.tobytes()] += 1
        assert deviations(list(seen.values()), [5000 * expected[key] for key in seen]) < 4


# -- the full-size space -----------------------------------------------------------------------------------------------

G = 10**9


@pytest.fixture(scope="module")
def deit():
    return create_superformer("vitas_deit")


def ways(dice):
    """In how many ways `dice` dice of 1..10 add up to each sum."""
    sums = {0: 1}
    for _ in range(dice):
        further = {}
        for total, n in sums.items():
            for face in range(1, 11):
                further[total + face] = further.get(total + face, 0) + n
        sums = further
    return sums


def networks_between(low, high):
    """The published count (multiply-adds) of the space, block by block, added up over sums of dice."""
    total = 0
    for patch in (14, 16, 32):
        tokens = (224 // patch) ** 2
        n = tokens + 1
        for width in (38, 77, 115, 154, 192, 230, 269, 307, 346, 384):
            fixed = 3 * width * tokens * patch**2 + 1000 * width
            qkv = 48 * (4 * n * width + 2 * n * n)
            mlp = 144 * 2 * n * width
            for depth in range(1, 17):
                sums = ways(depth)
                up_to = dict(
                    zip(range(depth, 10 * depth + 1), itertools.accumulate(sums[k] for k in sorted(sums)), strict=True)
                )

                def at_most(sum_of_mlps, depth=depth, up_to=up_to):
                    return 0 if sum_of_mlps < depth else up_to[min(sum_of_mlps, 10 * depth)]

                for sum_of_qkv, n_qkv in sums.items():
                    rest = fixed + qkv * sum_of_qkv
                    inside = at_most((high - rest) // mlp) - at_most((low - rest - 1) // mlp)
                    total += 4**depth * n_qkv * inside
    return total


@pytest.mark.heavy
def test_the_number_of_networks_in_the_one_gigamac_window_is_exact(deit):
    expected = networks_between(9 * G // 10, G)
    count = count_subnets(deit, flops=(9 * G // 10, G))
    assert count == expected > 10**41
    assert count.exact
    assert repr(count) == f"{expected:,}"


def test_all_networks(deit):
    assert networks_between(0, 10 * G) == search_space(deit).size == count_subnets(deit, flops=10 * G)
    assert count_subnets(deit, flops=(None, "100%"), params=(0, 10**9)) == count_subnets(deit)


WINDOWS = {
    "a tenth": {"flops": (9 * G // 10, G)},
    "1e-20 of the space": {"flops": (8_200_000_000, 8_250_000_000)},
    "1e-4 of the cost": {"flops": (950_000_000, 950_100_000)},
    "params": {"params": (4_000_000, 4_400_000)},
    "both": {"flops": (9 * G // 10, G), "params": (4_000_000, 4_400_000)},
    "the cheapest": {"flops": 6_910_064},
}


@pytest.mark.parametrize("name", WINDOWS)
def test_every_draw_lies_in_the_window(deit, name):
    sampler = SubnetSampler(deit, **WINDOWS[name])
    codes = sampler.draw(1000, np.random.default_rng(0))
    space = search_space(deit)
    subnets = [space.decode(code) for code in codes]
    assert (space.encode(subnets[0]) == codes[0]).all()
    for measure, (low, high) in sampler.windows.items():
        costs = sampler.costs(codes)[measure]
        count = {"flops": count_flops, "params": count_params}[measure]
        assert low <= costs.min() <= costs.max() <= high
        assert [int(count(deit, subnet)) for subnet in subnets[:5]] == costs[:5].tolist()
    if name == "the cheapest":
        assert len(set(subnets)) == 4  # one of the four head counts
    else:
        assert len(set(subnets)) == 1000


def test_the_tail_holds_the_share_that_it_is_said_to(deit):
    low, high = WINDOWS["1e-20 of the space"]["flops"]
    assert 0 < networks_between(low, high) < search_space(deit).size / 10**20


def test_memory_stays_small(deit):
    sampler = None
    tracemalloc.start()
    sampler = SubnetSampler(deit, flops=(9 * G // 10, G))
    sampler.draw(1000, np.random.default_rng(0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 10**6


def test_a_choice_of_many_values_takes_no_table_of_their_pairs():
    model = CyclicLinear(4, Dim(range(1, 2**12 + 1)))  # 5 n parameters for a width of n
    space, params = search_space(model), params_of(model)
    tracemalloc.start()
    try:
        chain = Chain(space, [params], counting=True)
        count = count_inside(chain, [Window(100, 1002)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (count, count.exact) == (181, True)
    assert peak < 2**23  # pairs of 4,096 values take 2**27 bytes


def test_where_only_an_estimate_is_possible_it_says_so(deit):
    """Checked on one measure, where the number is known."""
    space = search_space(deit)
    chain = Chain(space, [deit.cost()], counting=True)
    window = Window(9 * G // 10, G)
    estimate = count_inside(chain, [window], work=0)
    exact = networks_between(*window)
    assert not estimate.exact
    assert 0 < estimate.standard_error < 0.01 * exact
    assert abs(estimate - exact) < 5 * estimate.standard_error
    assert "estimated, standard error" in str(estimate)


@pytest.mark.heavy
def test_two_measures_are_counted_exactly_too(deit):
    """About 20 s; compared with the estimate."""
    chain = Chain(search_space(deit), [deit.cost(), params_of(deit)], counting=True)
    windows = [Window(*WINDOWS["both"][name]) for name in ("flops", "params")]
    exact, estimate = count_inside(chain, windows), _estimate(chain, windows, 0)
    assert exact.exact
    assert not estimate.exact
    assert abs(exact - estimate) < 5 * estimate.standard_error < 0.25 * exact


# -- windows that hold little or nothing -------------------------------------------------------------------------------


def test_windows_of_one_network_and_of_all():
    model = small(depth=2, patch_size=2, private=None, num_heads=2, mlp_dim=[3, 8])
    codes, _ = everything(model)
    costs = cost_model(model).flops(codes)
    for cost in np.unique(costs):
        alike = codes[costs == cost]
        assert count_subnets(model, flops=(int(cost), int(cost))) == len(alike)
        draws = SubnetSampler(model, flops=(int(cost), int(cost))).draw(40, np.random.default_rng(0))
        assert {code.tobytes() for code in draws} <= {code.tobytes() for code in alike}
    assert (np.bincount(np.unique(costs, return_inverse=True)[1]) == 1).any()  # some of those windows hold one network
    assert count_subnets(model, flops=(0, 10**9), params="100%") == len(codes)
    assert len(np.unique(SubnetSampler(model, flops=(0, 10**9)).draw(4000, np.random.default_rng(0)), axis=0)) == len(codes)


@pytest.mark.parametrize("measure", ["flops", "params"])
def test_an_empty_window_names_the_range_and_the_nearest_costs(measure):
    model = two_blocks()
    costs = np.unique(getattr(cost_model(model), measure)(everything(model)[0]))
    gaps = np.flatnonzero(np.diff(costs) > 2)
    for gap in gaps[:: len(gaps) // 8]:
        below, above = int(costs[gap]), int(costs[gap + 1])
        with pytest.raises(BudgetError) as error:
            sample_subnet(model, **{measure: (below + 1, above - 1)})
        assert f"reach from {costs[0]:,} to {costs[-1]:,}" in str(error.value)
        assert f"nearest: {below:,} below and {above:,} above" in str(error.value)
        assert count_subnets(model, **{measure: (below + 1, above - 1)}) == 0
    with pytest.raises(BudgetError, match=f"nearest: {costs[0]:,} above$"):
        SubnetSampler(model, **{measure: int(costs[0]) - 1})
    with pytest.raises(BudgetError, match=f"of at least {costs[-1] + 1:,}: the subnets .* nearest: {costs[-1]:,} below$"):
        SubnetSampler(model, **{measure: (int(costs[-1]) + 1, None)})


@pytest.mark.parametrize("far", [2**20, 2**50])
def test_between_costs_that_lie_far_apart(far):
    model = two_blocks()
    space, (codes, _) = search_space(model), everything(model)
    steps = [far * number for number in range(len(space.choices["embed_dim"].values))]
    chain = Chain(space, [params_of(model) + Cost.table(space.choices["embed_dim"], steps)])
    place = list(space.choices).index("embed_dim")
    costs = np.unique(cost_model(model).params(codes) + np.array(steps)[codes[:, place]])
    gaps = np.flatnonzero(np.diff(costs) > far // 2)
    assert len(gaps) == len(steps) - 1
    for below, above in zip(costs[gaps].tolist(), costs[gaps + 1].tolist(), strict=True):
        assert outermost(chain, Window(below + 1, above), UP) == above
        assert outermost(chain, Window(below, above - 1), DOWN) == below
        assert outermost(chain, Window(below + 1, above - 1), UP) is None


def test_two_windows_that_exclude_each_other():
    model = two_blocks()
    codes, _ = everything(model)
    flops, params = cost_model(model).flops(codes), cost_model(model).params(codes)
    low = int(np.quantile(flops, 0.9))
    inside = params[flops >= low]
    with pytest.raises(BudgetError) as error:
        SubnetSampler(model, flops=(low, None), params=int(inside.min()) - 1)
    assert f"inside the other budget, near: {inside.min():,} above" in str(error.value)


def test_two_windows_that_exclude_each_other_are_told_of_soon(monkeypatch):
    from vitas.sample import nearest, sampler

    made, real = [], sampler.Conditional
    for module in (nearest, sampler):
        monkeypatch.setattr(module, "Conditional", lambda *args, **options: made.append(1) or real(*args, **options))
    model = create_superformer("deit_micro", num_classes=3, img_size=8)
    with pytest.raises(BudgetError, match=r"near: .* below; .* near: .* above"):
        SubnetSampler(model, flops=(7_000_000, None), params=8_700)
    assert len(made) <= 15  # they take the time: set-ups of two budgets at once


@pytest.mark.parametrize("low", [5_000_000_001, 8_600_000_001])
def test_nearest_costs_of_the_full_size_space(deit, low):
    """No draw finds those below 5 G, which are 1e-20 of the space."""
    with pytest.raises(BudgetError) as error:
        SubnetSampler(deit, flops=(low, low + 2))
    found = re.search(r"nearest: ([\d,]+) below and ([\d,]+) above$", str(error.value))
    below, above = (int(number.replace(",", "")) for number in found.groups())
    assert networks_between(below, below) > 0
    assert networks_between(above, above) > 0
    assert networks_between(below + 1, above - 1) == 0


def test_an_empty_window_that_no_bound_proves_empty_is_found_out(deit):
    """Bins hold many of the costs here, so that the bound stays above 0."""
    with pytest.raises(BudgetError, match=r"nearest: 3,999,996 below and 4,000,010 above$"):
        SubnetSampler(deit, params=(4_000_001, 4_000_002))


@pytest.mark.heavy
def test_nothing_lies_between_the_nearest_costs(deit):
    """About 15 s."""
    chain = Chain(search_space(deit), [params_of(deit)], counting=True)
    assert count_inside(chain, [Window(3_999_997, 4_000_009)]) == 0


# -- the sampler -------------------------------------------------------------------------------------------------------


def test_a_budgeted_sampler_is_a_function_of_seed_and_step():
    model = two_blocks(sharing="bilateral")
    make = lambda seed=3: SubnetSampler(model, flops=("30%", "70%"), seed=seed)  # noqa: E731
    sampler = make()
    first = [sampler.sample(step, activate=False) for step in range(150)]
    assert active_subnet(model) == search_space(model).largest()
    again = make()
    sides = []
    for step in (149, 3, 64, 63, 0):
        assert again.sample(step) == first[step] == active_subnet(model)
        sides.append(search_space(model).side)
    other = make()
    assert [other.sample(step) and search_space(model).side for step in (149, 3, 64, 63, 0)] == sides
    three, four = ([search_space(model).side for step in range(20) if it.sample(step)] for it in (make(3), make(4)))
    assert set(three) == {"left", "right"}
    assert three != four
    assert [make(4).sample(step) for step in range(20)] != first[:20]
    assert len(set(first)) > 50
    costs = sampler.costs(np.array([sampler.space.encode(subnet) for subnet in first]))["flops"]
    assert (costs >= sampler.windows["flops"].low).all()


def test_sample_subnet_takes_a_budget_and_a_generator():
    model = two_blocks()
    generator = torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    drawn = [sample_subnet(model, flops=("40%", "60%"), params="80%", generator=generator) for _ in range(5)]
    assert active_subnet(model) == drawn[-1]
    assert torch.equal(torch.get_rng_state(), before)
    generator.manual_seed(1)
    assert drawn[0] == sample_subnet(model, flops=("40%", "60%"), params="80%", generator=generator, activate=False)
    assert active_subnet(model) == drawn[-1]
    with pytest.raises(BudgetError, match="takes no budget"):
        sample_subnet(model, flops="50%", policy="largest")


def test_without_a_budget_draw_follows_the_prior():
    model = two_blocks()
    codes, priors = everything(model)
    draws = SubnetSampler(model).draw(100_000, np.random.default_rng(0))
    seen = {code.tobytes(): 0 for code in codes}
    for code in draws:
        seen[code.tobytes()] += 1
    assert abs(deviations(list(seen.values()), 100_000 * priors)) < 4


@pytest.mark.parametrize("n", [-1, 1.5, True, "3"])
def test_draw_refuses_bad_numbers(n):
    sampler = SubnetSampler(two_blocks(), flops="50%")
    with pytest.raises(ChoiceError, match="expected an int of at least 0"):
        sampler.draw(n, np.random.default_rng(0))
    with pytest.raises(ChoiceError, match="a numpy"):
        sampler.draw(1, 0)


# -- models that no chain of decisions describes -----------------------------------------------------------------------


class Pair(nn.Module):
    """A user's own model that states no cost."""

    def __init__(self):
        super().__init__()
        hidden = Dim([2, 4, 6, 8])
        self.fc1, self.fc2 = CyclicLinear(3, hidden), CyclicLinear(hidden, 5)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


def test_a_container_that_states_a_cost_for_tokens_only_is_counted_by_running():
    class Row(Elastic, Pair):
        """Two layers whose cost depends on the tokens that they are given."""

    x = torch.randn(1, 3)
    sampler, plain = (SubnetSampler(kind(), flops=(20, 50), inputs=x) for kind in (Row, Pair))
    for step in range(12):
        assert list(sampler.sample(step).values()) == list(plain.sample(step).values())
        assert 20 <= count_flops(sampler.model, inputs=x).total <= 50
    with pytest.raises(VitasError, match="Row states no cost for one image, only for a number of tokens"):
        SubnetSampler(Row(), flops=50)


def test_a_cost_that_is_not_stated_is_learned_by_running():
    model, x = Pair(), torch.randn(1, 3)
    sampler = SubnetSampler(model, flops=(20, 50), inputs=x)  # 8 multiply-adds a hidden unit
    values = {next(iter(sampler.sample(step).values())) for step in range(12)}
    assert values == {4, 6}
    assert next(iter(sample_subnet(model, flops="50%", inputs=x).values())) in (2, 4)
    with pytest.raises(BudgetError, match=r"flops.*33 to 34.*32 .*48"):
        sample_subnet(model, flops=(33, 34), inputs=x)
    with pytest.raises(VitasError, match="states no cost"):
        sample_subnet(model, flops=50)
    params = sample_subnet(model, params=(30, 45))  # 8 weights and a bias a hidden unit, 5 biases
    assert next(iter(params.values())) == 4
    assert count_subnets(model, params=(30, 45)) == 1


class Tangle(nn.Module):
    """Every choice meets every other one in one product."""

    def __init__(self):
        super().__init__()
        self.sizes = [Choice(range(1, 13)) for _ in range(6)]

    def cost(self):
        return Cost(1) * self.sizes[0] * self.sizes[1] * self.sizes[2] * self.sizes[3] * self.sizes[4] * self.sizes[5]


def test_choices_that_all_interact_are_drawn_by_a_bounded_number_of_proposals():
    model = Tangle()
    sampler = SubnetSampler(model, flops=(1000, 2000))
    codes = sampler.draw(50, np.random.default_rng(0))
    assert ((np.prod(codes + 1, axis=1) >= 1000) & (np.prod(codes + 1, axis=1) <= 2000)).all()
    with pytest.raises(BudgetError, match="proposals"):
        SubnetSampler(model, flops=(12**6 - 1, 12**6 - 1)).draw(1, np.random.default_rng(0))
    with pytest.raises(VitasError, match="interact"):
        count_subnets(model, flops=1000)


@pytest.mark.filterwarnings("ignore:depth law")
@pytest.mark.parametrize("seed", [None, 56, 137, 263])
def test_draws_are_exact_with_coarse_bins_too(seed):
    """Where a bin holds many costs, what is missing to its bound rejects the draw; exact bins would hide that.

    The bins of neighbouring rows do not fit into one another in the spaces of these seeds.
    """
    model = two_blocks() if seed is None else Made(np.random.default_rng(seed))
    codes, priors = everything(model) if seed is None else made_by(model)
    costs = cost_model(model).flops(codes)
    window = Window(*(int(costs.min() + share * np.ptp(costs)) for share in (0.3, 0.5)))
    inside = (costs >= window.low) & (costs <= window.high)
    chain = Chain(search_space(model), [model.cost()])
    conditional = Conditional(chain, [window], bins=8)
    proposed = 60_000
    drawn, _ = conditional.propose(proposed, np.random.default_rng(3))
    assert len(drawn) < 0.97 * proposed
    assert len(drawn) / proposed == pytest.approx(priors[inside].sum() / conditional.bound, abs=0.01)
    drawn = search_space(model).encoding.completed(drawn, chain.free, np.random.default_rng(4))
    expected = dict(zip((code.tobytes() for code in codes[inside]), priors[inside] / priors[inside].sum(), strict=True))
    seen = {key: 0 for key, p in expected.items() if p}
    for code in drawn:
        seen[code.tobytes()] += 1
    assert abs(deviations(list(seen.values()), [len(drawn) * expected[key] for key in seen])) < 4

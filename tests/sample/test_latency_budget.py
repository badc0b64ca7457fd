"""A latency is a budget like any other, exact as to its table."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from tests.clock import count_for_time
from tests.sample.test_budget import deviations, everything, two_blocks
from vitas import (
    BudgetError,
    SubnetSampler,
    VitasError,
    cost_model,
    count_subnets,
    create_superformer,
    evolve,
    latency_table,
    sample_subnet,
    search_space,
    suggest_subnet,
)
from vitas.cost import Cost
from vitas.nn import CyclicLinear
from vitas.sample.budget import Window, window_of


class Times:
    """A table that was not measured: random times of each block, by its own choices and the width of the model."""

    def __init__(self, model, seed=0):
        rng = np.random.default_rng(seed)
        space = search_space(model)
        width, depth = space.choices["embed_dim"], space.choices["depth"]
        self.parts = [(width, rng.integers(10**5, 10**6, len(width.values)), None)]
        for name, choice in space.choices.items():
            if name.startswith("blocks."):
                slot = int(name.split(".")[1])
                self.parts.append((choice, rng.integers(10**5, 10**6, len(choice.values)), (depth, slot)))

    def nanoseconds(self, space):
        cost = Cost(12_345)
        for choice, times, gate in self.parts:
            part = Cost.table(choice, times.tolist())
            cost += part if gate is None else part * Cost.above(*gate)
        return cost

    def of(self, subnet):
        """The nanoseconds of a subnet, by plain look-ups."""
        total = 12_345
        for choice, times, gate in self.parts:
            if gate is None or subnet["depth"] > gate[1]:
                name = next(name for name in subnet if choice.label == name)
                total += int(times[choice.index_of(subnet[name])])
        return total


@pytest.mark.parametrize(
    ("budget", "low", "high"),
    [
        (8, 0, 8_000_000),
        (8.1, 0, 8_100_000),
        (0.5, 0, 500_000),
        ("8 ms", 0, 8_000_000),
        ("8", 0, 8_000_000),
        (("500us", "0.002 s"), 500_000, 2_000_000),
        (("7 ns", None), 7, 10_000_000),
        ("50%", 0, 5_000_000),
        ((None, math.inf), None, None),
        ((1, math.inf), 1_000_000, 10_000_000),
    ],
)
def test_milliseconds_read_as_people_type_them(budget, low, high):
    if low is None:
        with pytest.raises(BudgetError, match="bounds nothing"):
            window_of(budget, "latency", 10_000_000)
    else:
        assert window_of(budget, "latency", 10_000_000) == Window(low, high)


@pytest.mark.parametrize("budget", ["8 G", "fast", "-8 ms", "", -1, True, math.nan, {}])
def test_what_is_no_time_is_refused(budget):
    with pytest.raises(BudgetError, match=r"^latency: ") as caught:
        window_of(budget, "latency", 10**7)
    assert len(str(caught.value)) <= 160


@pytest.mark.parametrize("measures", [("latency",), ("flops", "latency"), ("flops", "params", "latency")], ids="+".join)
def test_draws_follow_the_conditioned_prior_and_counts_equal_enumeration(measures):
    model = two_blocks()
    table = Times(model)
    codes, priors = everything(model)
    space = search_space(model)
    costs = {
        "flops": cost_model(model).flops(codes),
        "params": cost_model(model).params(codes),
        "latency": np.array([table.of(space.decode(code)) for code in codes]),
    }
    windows = {name: tuple(int(np.quantile(costs[name], share)) for share in (0.2, 0.8)) for name in measures}
    inside = np.all([(costs[name] >= low) & (costs[name] <= high) for name, (low, high) in windows.items()], axis=0)
    assert 0 < inside.sum() < len(codes)
    low, high = windows["latency"]
    budgets = {**windows, "latency": (table, (low / 1e6, f"{high} ns"))}
    count = count_subnets(model, **budgets)
    assert count == inside.sum()
    assert count.exact
    sampler = SubnetSampler(model, **budgets)
    assert sampler.windows == windows
    draws = sampler.draw(50_000, np.random.default_rng(5))
    assert sampler.contains(draws).all()
    np.testing.assert_array_equal(sampler.costs(codes)["latency"], costs["latency"])
    expected = {code.tobytes(): p for code, p in zip(codes[inside], priors[inside] / priors[inside].sum(), strict=True)}
    seen = dict.fromkeys(expected, 0)
    for code in draws:
        seen[code.tobytes()] += 1
    assert abs(deviations(list(seen.values()), [50_000 * p for p in expected.values()])) < 4


def test_together_with_what_is_held():
    model = two_blocks()
    table = Times(model)
    space = search_space(model)
    codes, _ = everything(model)
    subnets = [space.decode(code) for code in codes]
    most = int(np.median([table.of(subnet) for subnet in subnets]))
    held = {"fixed": {"depth": 2}, "only": {"embed_dim": [4, 8]}}
    kept = [s for s in subnets if s["depth"] == 2 and s["embed_dim"] in (4, 8) and table.of(s) <= most]
    assert count_subnets(model, latency=(table, f"{most} ns"), **held) == len(kept) > 0
    for seed in range(20):
        drawn = sample_subnet(
            model, latency=(table, f"{most} ns"), generator=torch.Generator().manual_seed(seed), activate=False, **held
        )
        assert drawn in kept


def test_an_empty_window_says_what_can_be_reached_in_milliseconds():
    model = two_blocks()
    table = Times(model)
    space = search_space(model)
    times = sorted(table.of(space.decode(code)) for code in everything(model)[0])
    with pytest.raises(BudgetError) as caught:
        sample_subnet(model, latency=(table, "10 us"))
    low, high = (f"{times[k] / 1e6:g}" for k in (0, -1))
    reached = f"the subnets reach from {times[0] / 1e6} ms to {times[-1] / 1e6} ms, nearest: {times[0] / 1e6} ms above"
    assert str(caught.value) == f"no subnet has latency from 0 ms to 0.01 ms: {reached}"
    assert count_subnets(model, latency=(table, "10 us")) == 0
    assert float(low) < float(high)


@pytest.mark.parametrize("latency", [8.0, "8 ms", (8.0, 9.0), (), ("table", 8.0), (None, 8)])
def test_a_latency_without_a_table_is_refused(latency):
    with pytest.raises(BudgetError, match=r"latency: expected \(table, budget\) such as \(latency_table"):
        SubnetSampler(two_blocks(), latency=latency)


def measured(model, monkeypatch):
    count_for_time(monkeypatch)
    return latency_table(model, torch.zeros(1, 1, 8, 8), warmup=0, runs=1, calibrate=0)


def micro(**options):
    return create_superformer("deit_micro", img_size=8, in_chans=1, num_classes=3, **options)


def test_a_table_serves_a_copy_of_its_model_but_no_other_model(monkeypatch):
    model = micro(depth=[1, 2])
    table = measured(model, monkeypatch)
    sampler = SubnetSampler(micro(depth=[1, 2]), latency=(table, "50%"))
    assert sampler.windows["latency"].high > 0
    with pytest.raises(VitasError, match="the latency table is of another model"):
        SubnetSampler(micro(depth=[1, 2, 3]), latency=(table, "50%"))


def test_a_model_that_changed_since_it_was_measured_is_refused(monkeypatch):
    model = micro(depth=[1, 2])
    table = measured(model, monkeypatch)
    model.head = CyclicLinear(model.head.in_dim, 5)
    with pytest.raises(VitasError, match="make a new latency_table"):
        SubnetSampler(model, latency=(table, "50%"))


@pytest.mark.extras
def test_a_search_stays_inside_and_knows_the_milliseconds(tmp_path):
    model = two_blocks()
    table = Times(model)

    def evaluate(model):
        return float(search_space(model).active()["embed_dim"])

    options = {"population": 4, "generations": 3, "progress": False, "storage": tmp_path / "log"}
    budgets = {"latency": (table, ("30%", "70%")), "flops": "90%"}
    result = evolve(model, evaluate, objectives={"accuracy": "max", "latency": "min"}, **budgets, **options)
    low, high = result.windows["latency"]
    for found in result.history:
        assert found.scores["latency"] == table.of(found.subnet) / 1e6
        assert low <= table.of(found.subnet) <= high
    again = evolve(model, evaluate, objectives={"accuracy": "max", "latency": "min"}, **budgets, **options)
    assert [e.scores for e in again.history] == [e.scores for e in result.history]
    other = {**budgets, "latency": (Times(model, seed=1), (low / 1e6, high / 1e6))}
    with pytest.raises(VitasError, match="differs in latency table"):
        evolve(model, evaluate, objectives={"accuracy": "max", "latency": "min"}, **other, **options)


@pytest.mark.extras
def test_suggestions_outside_a_budget_are_pruned():
    optuna = pytest.importorskip("optuna")
    model = two_blocks()
    table = Times(model)
    space = search_space(model)
    most = int(np.median([table.of(space.decode(code)) for code in everything(model)[0]]))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    states = set()
    for _ in range(20):
        trial = study.ask()
        try:
            subnet = suggest_subnet(trial, model, latency=(table, f"{most} ns"))
        except optuna.TrialPruned:
            states.add("pruned")
        else:
            states.add("inside")
            assert table.of(subnet) <= most
    assert states == {"pruned", "inside"}


def test_several_budgets_are_measures_of_one_chain():
    """Every pair and all three at once: draws stay inside, whatever goes together."""
    model = micro()
    table = Times(model)
    budgets = {"flops": "60%", "params": ("20%", "70%"), "latency": (table, ("10%", "60%"))}
    for kept in product([False, True], repeat=3):
        chosen = {name: budget for keep, (name, budget) in zip(kept, budgets.items(), strict=True) if keep}
        sampler = SubnetSampler(model, **chosen, seed=1)
        codes = sampler.draw(50, np.random.default_rng(0))
        assert sampler.contains(codes).all()

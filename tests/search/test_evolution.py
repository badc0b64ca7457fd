"""The evolution without storage: asking and telling."""

import math

import numpy as np
import pytest
import torch

import vitas
from vitas.errors import SearchError
from vitas.search.archive import Archive
from vitas.search.result import Evaluation


def micro():
    return vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)


@pytest.fixture(scope="module")
def model():
    return micro()


def made_up(subnet):
    """A score that wants wide MLPs in front and narrow ones behind."""
    return sum(subnet.get(f"blocks.{i}.mlp_dim", 0) * (1 - 0.3 * i) for i in range(6)) + subnet["embed_dim"]


def run(evolution, n, score=made_up):
    asked = []
    for _ in range(n):
        (subnet,) = evolution.ask()
        evolution.tell(subnet, score(subnet))
        asked.append(subnet)
    return asked


def test_never_outside_the_budget_nor_twice(model):
    evolution = vitas.Evolution(model, flops=("30%", "50%"), params=("20%", "60%"), population=20)
    asked = run(evolution, 300)
    assert len(set(asked)) == 300
    space = vitas.search_space(model)
    assert all(subnet in space for subnet in asked)
    for name, count in (
        ("flops", lambda s: vitas.count_flops(model, s).total),
        ("params", lambda s: vitas.count_params(model, s)),
    ):
        low, high = evolution.result().windows[name]
        assert all(low <= count(subnet) <= high for subnet in asked)
    assert vitas.count_flops(model, asked[-1]).total == evolution.result().scores[asked[-1]]["flops"]


def test_the_first_population_is_drawn_from_the_prior_in_the_budget(model):
    evolution = vitas.Evolution(model, flops="60%", population=40, seed=7)
    drawn = vitas.SubnetSampler(model, flops="60%").draw(40, np.random.default_rng([7]))
    first = evolution.ask(40)
    expected = list(dict.fromkeys(evolution.space.decode(code) for code in drawn))
    assert first[: len(expected)] == expected


def test_same_seed_same_search_another_seed_another(model):
    searches = [run(vitas.Evolution(model, flops="50%", population=10, seed=seed), 80) for seed in (0, 0, 1)]
    assert searches[0] == searches[1]
    assert searches[0] != searches[2]


def test_global_randomness_is_not_touched(model):
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(vitas.Evolution(model, flops="50%", population=10), 30)
    assert torch.equal(before, torch.get_rng_state())
    assert (np.random.get_state()[1] == numpys).all()


def test_beats_random_draws(model):
    evolution = vitas.Evolution(model, flops=("45%", "50%"))
    asked = run(evolution, 600)
    result = evolution.result()
    sampler = vitas.SubnetSampler(model, flops=("45%", "50%"))
    drawn = [made_up(evolution.space.decode(code)) for code in sampler.draw(600, np.random.default_rng(1))]
    assert made_up(result.best) >= max(drawn)  # either may find the very best of a space this small
    assert np.median([made_up(subnet) for subnet in asked[300:]]) > np.quantile(drawn, 0.95)
    assert made_up(result.best) == max(evaluation.scores["accuracy"] for evaluation in result.history)


def test_many_may_be_asked_for_before_any_is_told(model):
    evolution = vitas.Evolution(model, population=10)
    asked = evolution.ask(30)
    assert len(set(asked)) == 30
    for subnet in reversed(asked):
        evolution.tell(subnet, made_up(subnet))
    assert not set(evolution.ask(20)) & set(asked)
    assert [evaluation.subnet for evaluation in evolution.result().history] == asked


def test_a_subnet_that_was_not_asked_for_may_be_told(model):
    evolution = vitas.Evolution(model, flops="50%", population=10)
    outside = evolution.space.largest()
    evolution.tell(outside, 3.0)
    assert evolution.result().best == outside
    assert outside not in run(evolution, 100)


def test_a_window_runs_out_of_networks():
    width = vitas.Dim([2, 4, 6], name="width")
    model = vitas.nn.ElasticMlp(width, vitas.Dim([3, 5, 7, 9], name="hidden"))
    evolution = vitas.Evolution(model, params=(30, 90), population=4)
    inside = {
        evolution.space.subnet({"width": a, "hidden": b})
        for a in (2, 4, 6)
        for b in (3, 5, 7, 9)
        if 30 <= 2 * a * b + a + b <= 90
    }
    asked = evolution.ask(50)
    assert set(asked) == inside
    assert len(asked) == len(inside)
    for subnet in asked:
        evolution.tell(subnet, subnet["width"])
    assert evolution.ask(3) == []


def test_several_objectives_end_on_a_front(model):
    evolution = vitas.Evolution(model, objectives={"score": "max", "flops": "min"}, population=20)
    run(evolution, 200, lambda subnet: {"score": made_up(subnet), "other": 1.5})
    result = evolution.result()
    points = {e.subnet: (e.scores["score"], e.scores["flops"]) for e in result.history}
    expected = {
        subnet
        for subnet, (score, flops) in points.items()
        if not any(s >= score and f <= flops and (s, f) != (score, flops) for s, f in points.values())
    }
    assert {e.subnet for e in result.front} == expected
    assert result.best == max(points, key=lambda subnet: (points[subnet][0], -points[subnet][1]))
    assert [e.scores["score"] for e in result.front] == sorted((e.scores["score"] for e in result.front), reverse=True)
    assert result.history[0].scores["other"] == 1.5
    first = list(points.values())[:20]
    worst = (min(score for score, _ in first), max(flops for _, flops in first))
    volume, below = 0.0, worst[0]
    for score, flops in sorted((points[s] for s in expected), key=lambda point: point[1]):  # rising score, rising cost
        volume += max(0, score - below) * max(0, worst[1] - flops)
        below = max(below, score)
    assert result.hypervolume == pytest.approx(volume)
    (subnet,) = evolution.ask()
    evolution.tell(subnet, {"score": -1e6, "other": 0})
    assert evolution.result().hypervolume == pytest.approx(volume)  # the first 20 are what it is measured against


def test_limits_on_measured_values_rule(model):
    evolution = vitas.Evolution(model, limits={"ms": (None, 200), "flops": (1, None)}, population=20)
    run(evolution, 300, lambda subnet: {"accuracy": made_up(subnet), "ms": sum(v for k, v in subnet.items() if "mlp" in k)})
    result = evolution.result()
    allowed = [e for e in result.history if e.scores["ms"] <= 200]
    assert 0 < len(allowed) < 300
    assert result.scores[result.best]["accuracy"] == max(e.scores["accuracy"] for e in allowed)
    late = [e.scores["ms"] <= 200 for e in result.history]
    assert sum(late[150:]) > 1.5 * sum(late[:50])  # what breaks the limit has few children


def test_a_lower_limit_rules_too(model):
    evolution = vitas.Evolution(model, limits={"ms": (200, None)})
    first, second = evolution.ask(2)
    evolution.tell(first, {"accuracy": 2, "ms": 199})
    evolution.tell(second, {"accuracy": 1, "ms": 200})
    assert evolution.result().best == second


def test_children_depend_on_the_seed_and_descend_from_the_best_only(model):
    known = vitas.Evolution(model, seed=5).ask(30)
    asked = []
    for seed in (0, 1):
        evolution = vitas.Evolution(model, population=4, seed=seed)
        for score, subnet in enumerate(known):
            evolution.tell(subnet, score)
        parents = [np.frombuffer(key, dtype=np.int64) for key, _, _ in evolution._archive.best]
        assert [evolution.space.decode(code) for code in parents] == known[:-5:-1]
        asked.append(evolution.ask()[0])
    assert asked[0] != asked[1]


def test_workers_share_out_the_first_population(model):
    archive = Archive(model, flops=None, params=None, population=20, seed=0)
    alone = archive.candidate()
    first = {archive.candidate((worker,)).tobytes() for worker in range(40)}
    assert len(first) > 12  # of 20; without it all would take the one that a single worker takes
    assert first <= {code.tobytes() for code in archive._first}
    assert archive.candidate().tobytes() == alone.tobytes()


def test_workers_that_know_the_same_can_take_different_ways(model):
    archive = Archive(model, population=10)
    for _ in range(20):
        code = archive.candidate()
        subnet = archive.space.decode(code)
        archive.record(code, Evaluation(subnet, {"accuracy": made_up(subnet)}))
    ways = [archive.candidate(salt).tobytes() for salt in ((), (1,), (2,))]
    assert len(set(ways)) == 3
    assert [archive.candidate(salt).tobytes() for salt in ((), (1,), (2,))] == ways


BAD_SETTINGS = [
    ({"objectives": {}}, "expected names and directions"),
    ({"objectives": ["accuracy"]}, "expected names and directions"),
    ({"objectives": {"accuracy": "up"}}, "accuracy: expected one of max, min, got 'up'"),
    ({"objectives": {"accuracy": np.array(["max"])}}, "accuracy: expected one of max, min, got array"),
    ({"objectives": {3: "max"}}, "a name: expected a string, got 3"),
    ({"limits": {"x" * 10**6: 3}}, "limits: a name: expected a string of 1 to 100 characters, got 'xxx"),
    ({"limits": {"ms": (5, 3)}}, "the lower limit 5 is above the upper one 3"),
    ({"limits": {"ms": (None, None)}}, "either may be None"),
    ({"limits": {"ms": "fast"}}, "expected a number, got 'fast'"),
    ({"limits": {"ms": math.nan}}, "either may be None"),
    ({"limits": [3]}, "expected names and bounds"),
    ({"population": 1}, "population: expected an int of at least 2, got 1"),
    ({"population": 5.0}, "population"),
    ({"seed": -1}, "seed"),
    ({"seed": True}, "seed"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_bad_settings_are_refused(model, settings, message):
    with pytest.raises(SearchError, match=message):
        vitas.Evolution(model, **settings)


@pytest.mark.parametrize("budget", [(2e6, 1e6), -1, math.nan, 0.5, (0.2, 0.4), (1, 2), "lots"])
def test_bad_budgets_are_refused(model, budget):
    with pytest.raises(vitas.BudgetError):
        vitas.Evolution(model, flops=budget)


BAD_SCORES = [
    (None, "evaluate: expected a mapping with accuracy, ms, got None"),
    (0.9, "evaluate: expected a mapping with accuracy, ms, got 0.9"),
    ({}, "the objective 'accuracy' is missing; it returned "),
    ({"acuracy": 1.0}, r"the objective 'accuracy' is missing; it returned .*acuracy"),
    ({"accuracy": 1.0}, "the limited value 'ms' is missing; it returned .*accuracy"),
    ({"accuracy": [1.0], "ms": 1}, r"accuracy: expected a number, got \[1.0\]"),
    ({"accuracy": torch.ones(2), "ms": 1}, "accuracy: expected a number"),
    ({"accuracy": 10**400, "ms": 1}, "accuracy: expected a number that floats can hold"),
    ({"accuracy": 1, "ms": 1, 3: 4}, "evaluate: a name: expected a string, got 3"),
]


@pytest.mark.parametrize(("scores", "message"), BAD_SCORES)
def test_bad_scores_are_refused(model, scores, message):
    evolution = vitas.Evolution(model, limits={"ms": 3})
    (subnet,) = evolution.ask()
    with pytest.raises(SearchError, match=message):
        evolution.tell(subnet, scores)
    evolution.tell(subnet, {"accuracy": 1, "ms": 2})
    with pytest.raises(SearchError, match="told before"):
        evolution.tell(subnet, {"accuracy": 1, "ms": 2})


def test_several_objectives_need_a_mapping_and_asks_a_number(model):
    evolution = vitas.Evolution(model, objectives={"a": "max", "b": "min"})
    (subnet,) = evolution.ask()
    with pytest.raises(SearchError, match=r"expected a mapping with a, b, got 0\.5"):
        evolution.tell(subnet, 0.5)
    with pytest.raises(SearchError, match="n: expected a positive int, got 0"):
        evolution.ask(0)
    with pytest.raises(vitas.ChoiceError, match="unknown choice"):
        evolution.tell({"dept": 3}, {"a": 1, "b": 2})

"""The best k of a search, and searches that start from known networks."""

import numpy as np
import pytest

import vitas
from tests.search.test_evolution import made_up, micro
from vitas import BudgetError, ChoiceError, Evolution, evolve, search_space
from vitas.errors import SearchError


@pytest.fixture(scope="module")
def model():
    return micro()


def score(model):
    return made_up(vitas.active_subnet(model))


def told(model, scores, **options):
    evolution = Evolution(model, **options)
    for subnet, numbers in zip(evolution.ask(len(scores)), scores, strict=True):
        evolution.tell(subnet, numbers)
    return evolution.result()


@pytest.mark.extras
def test_a_search_goes_on_from_the_best_of_another_in_a_part_of_the_space(model):
    """What a user writes."""
    options = {"population": 6, "generations": 3, "progress": False}
    first = evolve(model, score, **options)
    best = [found.subnet for found in first.top(3)]
    second = evolve(
        model, score, only={"depth": range(3, 7)}, initial=[s for s in best if s["depth"] > 2], seed=1, **options
    )
    assert len(second.history) == 18
    assert made_up(second.best) >= made_up(first.best)


def test_top_is_in_order_of_the_first_objective_and_the_others_settle_ties(model):
    rows = [(1, 5), (3, 9), (2, 1), (3, 4), (3, 4), (0, 0), (float("nan"), 0), (9, 99)]
    scores = [{"accuracy": a, "ms": ms} for a, ms in rows]
    result = told(model, scores, objectives={"accuracy": "max", "ms": "min"}, limits={"ms": 50}, population=20)
    order = [result.history.index(found) for found in result.top(100)]
    assert order == [3, 4, 1, 2, 0, 5]  # the failed one and the one beyond the limit are left out
    assert [result.history.index(found) for found in result.top(2)] == [3, 4]
    assert result.top(1)[0].subnet == result.best == result.front[0].subnet
    assert Evolution(model).result().top(3) == []
    for k in (0, -1, 1.5, "3", None):
        with pytest.raises(SearchError, match="k: expected a positive int"):
            result.top(k)


def test_initial_subnets_come_first_and_once(model):
    space = search_space(model)
    known = [space.largest(), space.smallest(), dict(space.largest()), space.subnet({**space.largest(), "depth": 2})]
    evolution = Evolution(model, population=6, initial=iter(known), seed=2)
    asked = evolution.ask(6)
    assert asked[:3] == [known[0], known[1], known[3]]
    assert asked[3:] == Evolution(model, population=6, seed=2).ask(3)
    evolution = Evolution(model, population=2, initial=known)  # more than a population
    evolution.tell(known[1], 1.0)
    assert evolution.ask(2) == [known[0], known[3]]


@pytest.mark.extras
def test_a_stored_search_evaluates_them_when_it_goes_on(model, tmp_path):
    options = {"population": 4, "progress": False, "storage": str(tmp_path / "log")}
    first = evolve(model, score, generations=1, **options)
    largest = search_space(model).largest()
    more = evolve(model, score, generations=2, initial=[largest, first.best], **options)
    assert more.history[:4] == first.history
    assert more.history[4].subnet == largest
    assert len(more.history) == 8


def test_initial_subnets_are_checked(model):
    space = search_space(model)
    with pytest.raises(BudgetError, match=r"initial: subnet 1: expected flops from 0 to .*, got flops [0-9,]+"):
        Evolution(model, flops="50%", initial=[space.smallest(), space.subnet({**space.largest(), "patch_size": 2})])
    with pytest.raises(ChoiceError, match=r"initial: subnet 0: depth: expected 2, got 6 .*; fixed or only holds it"):
        Evolution(model, fixed={"depth": 2}, initial=[space.largest()])
    with pytest.raises(ChoiceError, match="initial: subnet 0: subnet: expected a mapping"):
        Evolution(model, initial=["largest"])
    for wrong in (space.largest(), 3, "largest", None):
        with pytest.raises(SearchError, match="initial: expected a list of subnets, got"):
            Evolution(model, initial=wrong)


@pytest.mark.extras
def test_rows_of_a_table_are_subnets(model):
    """What a user writes."""
    pytest.importorskip("pandas")
    result = evolve(model, score, population=5, generations=4, progress=False)
    space = search_space(model)
    order = {"accuracy": False, "flops": True, "params": True}
    best = result.to_pandas().sort_values(list(order), ascending=list(order.values()))  # NaN: a block does not run
    for (_, row), found in zip(best.head(3).iterrows(), result.top(3), strict=True):
        subnet = space.subnet({name: row[name] for name in row.index if name in space.choices})
        assert subnet == space.subnet(row) == found.subnet


@pytest.mark.extras
def test_rows_are_taken_wherever_a_subnet_is(model, tmp_path):
    pandas = pytest.importorskip("pandas")
    space = search_space(model)
    result = evolve(model, score, population=4, generations=1, progress=False)
    result.to_pandas().to_csv(tmp_path / "table.csv")
    tables = (result.to_pandas(), pandas.read_csv(tmp_path / "table.csv"))
    for table in tables:
        for (_, row), found in zip(table.iterrows(), result.history, strict=True):
            assert row in space
            assert np.array_equal(space.encode(row), space.encode(found.subnet))
            vitas.activate_subnet(model, row)
            assert vitas.active_subnet(model) == found.subnet
            with vitas.use_subnet(model, row) as used:
                assert used == found.subnet
            assert vitas.count_flops(model, row) == vitas.count_flops(model, found.subnet)
            assert vitas.count_params(model, row) == vitas.cost_model(model).params(row) == found.scores["params"]
            assert vitas.plot.subnet_card(model, row).text == vitas.plot.subnet_card(model, found.subnet).text
    assert Evolution(model, initial=[row for _, row in tables[1].iterrows()]).ask(4) == [e.subnet for e in result.history]
    small = vitas.export_subnet(model, row)
    assert sum(p.numel() for p in small.parameters()) == found.scores["params"]
    built = vitas.build_subnet("deit_micro", row, num_classes=4, img_size=8, in_chans=1)
    assert [p.shape for p in built.parameters()] == [p.shape for p in small.parameters()]
    with pytest.raises(ChoiceError, match="missing choices: embed_dim"):
        space.subnet(row.drop("embed_dim"))
    with pytest.raises(ChoiceError, match="embed_dim: expected an int or a float, got"):
        space.subnet(tables[0])

"""What a search found."""

import math
import sys

import pytest

import vitas
from vitas.errors import SearchError


@pytest.fixture(scope="module")
def model():
    return vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)


def made_up(subnet):
    return sum(subnet.get(f"blocks.{i}.mlp_dim", 0) * (1 - 0.3 * i) for i in range(6)) + subnet["embed_dim"]


def searched(model, evaluate, **settings):
    evolution = vitas.Evolution(model, flops=("40%", "60%"), population=6, **settings)
    for _ in range(30):
        (subnet,) = evolution.ask()
        evolution.tell(subnet, evaluate(subnet))
    return evolution.result()


def test_best_says_why_there_is_none(model):
    evolution = vitas.Evolution(model, limits={"ms": 3}, population=10)
    with pytest.raises(SearchError, match="nothing was evaluated"):
        evolution.result().best  # noqa: B018
    (subnet,) = evolution.ask()
    evolution.tell(subnet, {"accuracy": math.nan, "ms": 1})
    with pytest.raises(SearchError, match="all 1 evaluations failed; the last: evaluate returned nan for accuracy"):
        evolution.result().best  # noqa: B018
    assert subnet not in evolution.ask(20)
    (subnet,) = evolution.ask()
    evolution.tell(subnet, {"accuracy": 1, "ms": 5})
    with pytest.raises(SearchError, match="none of 1 subnets met the limits; the nearest had ms 5"):
        evolution.result().best  # noqa: B018
    assert evolution.result().front == []
    (subnet,) = evolution.ask()
    evolution.tell(subnet, {"accuracy": 9, "ms": 4.5})
    with pytest.raises(SearchError, match=r"none of 2 subnets met the limits; the nearest had ms 4\.5"):
        evolution.result().best  # noqa: B018


def test_the_first_objective_decides_and_of_equal_subnets_the_others():
    """Four networks, told by hand: accuracy, milliseconds, and a limit on energy."""
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)
    evolution = vitas.Evolution(model, objectives={"accuracy": "max", "ms": "min"}, limits={"energy": 10})
    few, slow, quick, hungry, failed = evolution.ask(5)
    told = {few: (0.5, 1, 5), slow: (0.75, 4, 5), quick: (0.75, 3, 5), hungry: (1.0, 1, 11), failed: (math.nan, 0, 0)}
    for subnet, numbers in told.items():
        evolution.tell(subnet, dict(zip(("accuracy", "ms", "energy"), numbers, strict=True)))
    result = evolution.result()
    assert [evaluation.subnet for evaluation in result.front] == [quick, few]
    assert result.best == quick
    assert set(result.scores) == {few, slow, quick, hungry}
    assert result.hypervolume == (0.75 - 0.5) * (4 - 3)  # from the worst values, 0.5 and 4 ms
    flops, params = result.scores[quick]["flops"], result.scores[quick]["params"]
    assert repr(result).splitlines() == [
        "SearchResult of 5 evaluations, 1 failed",
        f"  best: flops {flops:,.6g}, params {params:,.6g}, accuracy 0.75, ms 3, energy 5",
    ]
    assert repr(vitas.Evolution(model).result()) == "SearchResult of 0 evaluations"


def test_a_table_without_pandas_says_how_to_get_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(vitas.VitasError, match=r'pandas is not installed: pip install "vitas\[search\]"'):
        vitas.Evolution(model).result().to_pandas()


@pytest.mark.extras
def test_results_as_a_table_and_as_a_picture(model, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    calls = []

    def evaluate(subnet):
        calls.append(1)
        return math.nan if len(calls) == 4 else made_up(subnet)

    result = searched(model, evaluate, limits={"accuracy": (None, 420)})
    table = result.to_pandas()
    assert len(table) == 30
    assert table["error"].notna().sum() == 1
    assert table.loc[0, "embed_dim"] == result.history[0].subnet["embed_dim"]
    assert table.loc[0, "accuracy"] == result.history[0].scores["accuracy"]
    figure = result.plot()
    assert [axes.get_title() for axes in figure.axes] == ["Progress", "accuracy against flops"]
    line = next(line for line in figure.axes[0].lines if line.get_label() == "best so far")
    assert line.get_ydata()[-1] == made_up(result.best)
    assert figure.axes[0].get_ylabel() == "accuracy"
    figure.savefig(tmp_path / "search.png")
    two = searched(model, lambda subnet: {"accuracy": made_up(subnet)}, objectives={"accuracy": "max", "params": "min"})
    assert two.plot().axes[1].get_xlabel() == "params"


def test_best_is_the_cheapest_of_equals(model):
    result = searched(model, lambda subnet: 0.25 if subnet["embed_dim"] < 32 else 0.75)
    equal = [evaluation for evaluation in result.history if evaluation.scores["accuracy"] == 0.75]
    assert len(equal) > 3
    costs = [vitas.count_flops(model, evaluation.subnet).total for evaluation in equal]
    assert costs[0] > min(costs)
    assert vitas.count_flops(model, result.best).total == min(costs)
    assert [evaluation.scores["flops"] for evaluation in result.front] == sorted(costs)

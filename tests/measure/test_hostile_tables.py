"""Latency tables that an enemy wrote: a short error that is ours, at no cost; what is taken is safe to sample by."""

import json
import math

import pytest

import vitas
from tests.fuzz import frugal
from vitas import LatencyTable, VitasError
from vitas.errors import FileError

WIDTHS = [32, 48]


def small():
    sizes = {"embed_dim": WIDTHS, "depth": 1, "patch_size": 2, "num_heads": 2, "qkv_dim": 32, "mlp_dim": 48}
    return vitas.create_superformer("deit_micro", num_classes=3, img_size=8, **sizes)


def table(parts=(), **measured):
    """Return the text of a table, as `to_json` writes it, with parts behind its own."""
    told = {"statistic": "median", "runs": 1, "runner": "torch", "threads": 1, "configurations": 2, "busy": 0, **measured}
    parts = [["blocks.0", ["embed_dim"], [5, 7]], *parts]
    return json.dumps({"choices": {"embed_dim": WIDTHS}, "measured": told, "nanoseconds": parts})


def part(times, names=("embed_dim",), path="p"):
    return table([[path, names, times]])


TEXTS = {
    "no JSON": "table",
    "bytes": table().encode(),
    "cut": table()[:-9],
    "nested": "[" * 10**5,
    "nested and closed": '{"a":' * 900 + "1" + "}" * 900,
    "long": table() + " " * 2**22,
    "many objects": "[" + "{}," * 2**18 + "{}]",
    "many digits": table().replace("[5, 7]", "[" + "9" * 5000 + "]"),
    "no parts": table().replace("nanoseconds", "seconds"),
    "parts by name": table().replace('[["blocks.0", ["embed_dim"], [5, 7]]]', "{}"),
    "many parts": table([[f"{number:x}", [], 1] for number in range(20_000)]),
    "many names": part(1, [f"{number:x}" for number in range(20_000)]),
    "a name twice": part([[1, 2], [1, 2]], ["embed_dim"] * 2),
    "a name that is a list": part([1, 2], [["embed_dim"]]),
    "an unknown name": part([1], ["\x1b[31mred"]),
    "a path that is a list": part([1, 2], path=[1] * 10**5),
    "negative times": part([-1, 2]),
    "times that are flags": part([True, False]),
    "times that are floats": part([1.5, 2.5]),
    "times that are none": part([None, None]),
    "NaN": part([math.nan, 1]),
    "infinity": part([math.inf, 1]),
    "huge times": part([10**400, 1]),
    "times that overflow": table([["p", ["embed_dim"], [2**50, 1]]] * 2**11),
    "too few times": part([1]),
    "uneven times": part([[1], [1, 2]]),
    "an unknown statistic": table(statistic="\x1b[31m" * 99),
    "a runner in colours": table(runner="\x1b[31m"),
    "a negative count": table(busy=-1),
    "a huge count": table(runs=10**400),
    "a count that is a flag": table(threads=True),
    "another field": table(**{"x" * 10**5: 1}),
    "another model": table().replace("48", "64"),
    "values that are one": table().replace("[32, 48]", "32"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_hostile_table_is_refused_in_a_short_line(kind):
    model, refused = small(), []
    with frugal(kind, seconds=math.inf):
        try:
            LatencyTable.from_json(TEXTS[kind], model)
        except VitasError as error:
            refused.append(error)
    assert isinstance(refused[0], FileError) or kind in ("another model", "values that are one")
    assert str(refused[0]).startswith(("latency table: ", "the latency table is of another model"))
    assert str(refused[0]).isprintable()
    assert len(str(refused[0])) <= 160


@pytest.mark.parametrize("times", [[1, 2], [0, 0], [2**49, 1], [0, 2**49]])
def test_what_is_taken_can_be_sampled_by(times):
    model = small()
    read = LatencyTable.from_json(part(times), model)
    expected = {width: (own + other) / 1e6 for width, own, other in zip(WIDTHS, (5, 7), times, strict=True)}
    for width, milliseconds in expected.items():
        subnet = vitas.search_space(model).subnet({"embed_dim": width})
        assert read.latency_ms(subnet) == milliseconds
        assert LatencyTable.from_json(read.to_json(), model).latency_ms(subnet) == milliseconds
    with frugal(times, seconds=math.inf):
        least = min(expected.values())
        drawn = vitas.sample_subnet(model, latency=(read, least))
        assert read.latency_ms(drawn) == least
        with pytest.raises(vitas.BudgetError, match="the subnets reach from"):
            vitas.sample_subnet(model, latency=(read, (max(expected.values()) + 1, None)))

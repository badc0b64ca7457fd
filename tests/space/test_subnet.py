import copy
import json
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitas import ChoiceError, Subnet

VALUES = {"embed_dim": 96, "depth": 2, "blocks.0.num_heads": 4, "blocks.0.mlp_ratio": 3.5, "blocks.1.num_heads": 2}

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
subnets = st.dictionaries(names, numbers, max_size=6).map(Subnet)


def test_it_is_a_mapping():
    subnet = Subnet(VALUES)
    assert dict(subnet) == VALUES
    assert list(subnet) == list(VALUES)
    assert (len(subnet), subnet["depth"], subnet.get("absent"), "depth" in subnet) == (5, 2, None, True)
    with pytest.raises(KeyError):
        subnet["absent"]


def test_it_is_frozen():
    values = dict(VALUES)
    subnet = Subnet(values)
    values["depth"] = 3
    assert subnet["depth"] == 2
    with pytest.raises(TypeError):
        subnet["depth"] = 3
    with pytest.raises(TypeError):
        del subnet["depth"]
    with pytest.raises(AttributeError):
        subnet.depth = 3


def test_equal_and_hashed_by_content_whatever_the_order():
    subnet, turned = Subnet(VALUES), Subnet(dict(reversed(VALUES.items())))
    assert subnet == turned
    assert hash(subnet) == hash(turned)
    assert len({subnet, turned, Subnet({**VALUES, "depth": 3})}) == 2
    assert subnet == VALUES
    assert subnet != Subnet({**VALUES, "depth": 3})
    assert subnet != Subnet({name: VALUES[name] for name in list(VALUES)[1:]})
    assert hash(Subnet({"ratio": 4})) == hash(Subnet({"ratio": 4.0}))
    assert Subnet({"ratio": 4}) == Subnet({"ratio": 4.0})


@pytest.mark.parametrize("number", [np.int64(4), np.uint8(4), np.float32(3.5), np.float64(3.5)])
def test_numpy_numbers_become_plain_ones(number):
    subnet = Subnet({"a": number})
    assert type(subnet["a"]) in (int, float)
    assert subnet["a"] == number
    assert subnet == Subnet.from_json(subnet.to_json())


@pytest.mark.parametrize(
    "value",
    [True, np.False_, math.inf, np.float64("-inf"), "4", [4], {"b": 4}, 1j, torch.tensor(4)],
)
def test_what_is_not_a_finite_number_is_refused_with_the_name(value):
    with pytest.raises(ChoiceError, match=r"^blocks\.0\.num_heads: expected an int or a float, got "):
        Subnet({"depth": 2, "blocks.0.num_heads": value})


@pytest.mark.parametrize("value", [None, math.nan, np.float64("nan"), np.float32("nan")])
def test_what_stands_in_tables_for_no_value_is_left_out(value):
    assert Subnet({"depth": 2, "blocks.3.num_heads": value}) == Subnet({"depth": 2})
    assert Subnet.from_json('{"depth": 2, "blocks.3.num_heads": null}') == Subnet({"depth": 2})


@pytest.mark.parametrize("name", [3, None, "", ("a",), "a\0b", "\udfff"])
def test_names_that_are_not_words_are_refused(name):
    with pytest.raises(ChoiceError, match=f"subnet: a name: expected a string.*, got {re.escape(repr(name))}"):
        Subnet({name: 4})


@pytest.mark.parametrize("values", [None, 4, "depth", [("depth", 4)], {"depth"}])
def test_what_is_not_a_mapping_is_refused(values):
    with pytest.raises(ChoiceError, match="subnet: expected a mapping of names to numbers, got "):
        Subnet(values)


@given(subnets)
@settings(max_examples=60, deadline=None)
def test_json_pickle_and_copies_round_trip(subnet):
    for other in (
        Subnet.from_json(subnet.to_json()),
        Subnet(json.loads(subnet.to_json())),
        pickle.loads(pickle.dumps(subnet)),
        copy.deepcopy(subnet),
        Subnet(subnet),
    ):
        assert type(other) is Subnet
        assert other == subnet
        assert hash(other) == hash(subnet)
        assert [(name, type(value)) for name, value in other.items()] == [(n, type(v)) for n, v in subnet.items()]


def test_json_is_an_object_of_names_and_numbers():
    assert json.loads(Subnet(VALUES).to_json()) == VALUES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"depth": 4, "embed', "subnet: not a JSON object of names and numbers"),
        ("", "subnet: not a JSON object of names and numbers"),
        ("[" * 100_000, "subnet: not a JSON object of names and numbers"),
        ('{"depth": 4} {}', "subnet: not a JSON object of names and numbers"),
        (None, "subnet: not a JSON object of names and numbers"),
        (b"\xff\xfe\xff", "subnet: not a JSON object of names and numbers"),
        ('{"depth": ' + "9" * 10_000 + "}", "subnet: not a JSON object of names and numbers"),
        ("[4, 2]", r"subnet: expected a mapping of names to numbers, got \[4, 2\]"),
        ("4", "subnet: expected a mapping of names to numbers, got 4"),
        ("null", "subnet: expected a mapping of names to numbers, got None"),
        ('{"blocks": {"depth": 4}}', r"blocks: expected an int or a float, got \{'depth': 4\}"),
        ('{"depth": true}', "depth: expected an int or a float, got True"),
        ('{"depth": "4"}', "depth: expected an int or a float, got '4'"),
        ('{"depth": NaN}', "subnet: expected finite numbers, got NaN"),
        ('{"depth": -Infinity}', "subnet: expected finite numbers, got -Infinity"),
        ('{"depth": 1e999}', "depth: expected an int or a float, got inf"),
        ('{"depth": 4, "embed_dim": 96, "depth": 4}', "subnet: 'depth' stands twice"),
        ('{"": 4}', "subnet: a name: expected a string of 1 to 500 characters, got ''"),
        ('{"depth": 4' + " " * 2**20 + "}", "subnet: a text of length 1,048,588, more than 1,048,576"),
        (b'{"depth": 4' + b" " * 2**20 + b"}", "subnet: a text of length 1,048,588, more than 1,048,576"),
    ],
)
def test_bad_json_is_refused(text, message):
    with pytest.raises(ChoiceError, match=message):
        Subnet.from_json(text)


def test_the_longest_text_is_read():
    text = Subnet(VALUES).to_json()
    assert Subnet.from_json(text + " " * (2**20 - len(text))) == Subnet(VALUES)


def test_it_prints_as_a_table():
    assert [line.rstrip() for line in repr(Subnet(VALUES)).splitlines()] == [
        "Subnet of 5 choices",
        "embed_dim  96",
        "depth      2",
        "           num_heads  mlp_ratio",
        "blocks.0           4        3.5",
        "blocks.1           2",
    ]
    assert repr(Subnet({})) == "Subnet of 0 choices"


def test_it_is_an_html_table_in_a_notebook():
    html = Subnet({**VALUES, "<b>": 1})._repr_html_()
    assert html.startswith("<table>")
    assert html.endswith("</table>")
    assert html.count("<tr>") == html.count("</tr>") == 6  # embed_dim, depth, <b>, the header, two blocks
    for cell in ("<th>embed_dim</th><td>96</td>", "<th>blocks.0</th><td>4</td><td>3.5</td>", "<td>2</td><td></td>"):
        assert cell in html
    assert "<th>&lt;b&gt;</th>" in html


@given(subnets)
@settings(max_examples=60, deadline=None)
def test_any_subnet_prints(subnet):
    assert repr(subnet).startswith(f"Subnet of {len(subnet)} choices")
    assert subnet._repr_html_().startswith("<table>")

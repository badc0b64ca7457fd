"""What `fixed` and `only` leave of a space."""

import itertools
import math

import numpy as np
import pytest

from tests.superformer.test_deit import small
from vitas import Choice, ChoiceError, SearchSpace, Subnet, search_space


@pytest.fixture(scope="module")
def space():
    return search_space(small())


def inside(space, names):
    """Every canonical code of a space in which the live choices of these names have the values given, by plain loops."""
    sizes = [range(len(choice.values)) for choice in space.choices.values()]
    codes = np.unique(space.canonical(np.array(list(itertools.product(*sizes)))), axis=0)
    for k, (name, choice) in enumerate(space.choices.items()):
        if name in names:
            codes = [code for code in codes if code[k] < 0 or choice.values[code[k]] in names[name]]
    return codes


HELD = {
    "a depth": ({"depth": 2}, None, {"depth": [2]}),
    "a gap in the depths": (None, {"depth": [1, 3]}, {"depth": [1, 3]}),
    "heads by a glob": (
        None,
        {"blocks.*.mlp_dim": [3, 8], "embed_dim": (6, "largest")},
        {**{f"blocks.{i}.mlp_dim": [3, 8] for i in range(2)}, "embed_dim": [6, 8]},
    ),
    "a block": ({"blocks.1.*": "smallest"}, None, {f"blocks.1.{n}": [v] for n, v in (("qkv_dim", 4), ("mlp_dim", 3))}),
    "both at once": (
        {"patch_size": np.int64(4)},
        {"blocks.*.mlp_dim": iter([3, 6]), "blocks.1.mlp_dim": np.array([6, 8])},
        {"patch_size": [4], "blocks.0.mlp_dim": [3, 6], "blocks.1.mlp_dim": [6]},
    ),
}


@pytest.mark.parametrize("held", HELD)
def test_what_is_left_equals_enumeration(held):
    fixed, only, names = HELD[held]
    deep = held == "a gap in the depths"
    whole = search_space(small(num_heads=2, private=None, **({"mlp_dim": 8} if deep else {"depth": [1, 2]})))
    part = whole.restrict(fixed, only)
    codes = inside(whole, names)
    assert part.size == len(codes) < whole.size == part.whole.size
    assert part.choices == whole.choices
    assert part.values == {name: tuple(names.get(name, values)) for name, values in whole.values.items()}
    rest = np.array([[*code] for code in inside(whole, {})])
    assert part.encoding.holds(rest).tolist() == [code.tolist() in np.array(codes).tolist() for code in rest]
    subnets = {part.decode(code) for code in codes}
    assert len(subnets) == len(codes)
    assert all(subnet in part and part.encode(subnet).tolist() in np.array(codes).tolist() for subnet in subnets)
    assert sum(subnet in part for subnet in map(whole.decode, rest)) == len(codes)
    ends = [part.subnet({name: values[k] for name, values in part.values.items()}) for k in (0, -1)]
    assert [part.smallest(), part.largest()] == ends
    assert {part.sample() for _ in range(20)} <= subnets


def test_nothing_held_is_the_space_itself_and_holding_goes_on(space):
    assert space.restrict() is space.restrict({}, {}) is space.restrict(only={"depth": [1, 2, 3]}) is space
    twice = space.restrict(only={"depth": [1, 2]}).restrict(fixed={"depth": "largest"})
    assert twice.values["depth"] == (2,)
    assert twice.whole is space
    assert space.values["depth"] == (1, 2, 3)


def test_it_prints_what_is_left_and_what_that_costs(space):
    part = space.restrict(fixed={"depth": 1, "patch_size": 4}, only={"blocks.*.mlp_dim": [3, 8]})
    lines = repr(part).split("\n")
    assert lines[0].endswith(f"9 choices, {part.size} networks") or f"{part.size:,} networks" in lines[0]
    assert "  depth               1" in lines
    assert "  blocks.*.mlp_dim    3, 8  (x3)" in lines
    assert f"<td>{'3, 8  (x3)'}</td>" in part._repr_html_()
    low, _, high = part.costs()
    costs = [space._cost().at(space.indices(subnet)) for subnet in map(part.decode, every(part))]
    assert (low, high) == (min(costs), max(costs))
    assert part.description()["depth"] == {"values": [1], "runs": []}
    assert part.description()["blocks.0.mlp_dim"]["runs"] == [
        [space.description()["blocks.0.mlp_dim"]["runs"][0][k] for k in (0, 2)]
    ]


def every(part):
    return np.unique(part.canonical(np.array(list(itertools.product(*part.encoding.left)))), axis=0)


def test_a_choice_that_is_not_live_has_no_value_that_could_be_held(space):
    part = space.restrict(fixed={"blocks.2.mlp_dim": 3})
    shallow = space.restrict(fixed={"depth": 1}).largest()
    assert shallow in part
    assert part.subnet({**space.largest(), "depth": 1}) == space.subnet({**space.largest(), "depth": 1})
    with pytest.raises(ChoiceError, match=r"blocks.2.mlp_dim: expected 3, got 8 .nearest: 3.; fixed or only holds it"):
        part.subnet(space.largest())
    with pytest.raises(ChoiceError, match=r"blocks\.2\.mlp_dim: expected 3, got 8"):
        part.decode(space.encode(space.largest()))
    with pytest.raises(ChoiceError, match=r"blocks\.2\.mlp_dim: expected 3, got 8"):
        part.compose(lambda name, choice: choice.largest)


def test_the_prior_of_what_is_left_is_its_own_conditioned():
    space = SearchSpace({name: (Choice([1, 2, 3, 4], p=[0.1, 0.2, 0.3, 0.4]), [()]) for name in "ab"})
    part = space.restrict(only={"a": [2, 4]})
    assert part.encoding.prior == [pytest.approx((0, 1 / 3, 0, 2 / 3)), (0.1, 0.2, 0.3, 0.4)]
    never = SearchSpace({"a": (Choice([1, 2, 3], p=[0, 0, 1]), [()])})
    assert never.restrict(only={"a": [1, 2]}).encoding.prior == [(0.5, 0.5, 0.0)]
    assert never.restrict(fixed={"a": 2}).sample() == Subnet({"a": 2})


@pytest.mark.parametrize(
    ("fixed", "only", "words"),
    [
        ({"dept": 2}, None, r"fixed: unknown choice 'dept'; did you mean 'depth'\?"),
        (None, {"block.*.mlp_dim": [3]}, r"only: no choice matches this glob: .*\(nearest: blocks.\*.mlp_dim\)"),
        ({"depth": 9}, None, r"fixed: depth: expected one of 1, 2, 3, got 9 \(nearest: 3\)"),
        (None, {"blocks.*.mlp_dim": [3, 7]}, r"only: blocks.0.mlp_dim: expected one of 3, 6, 8, got 7 \(nearest: 6\)"),
        ({"depth": True}, None, r"fixed: depth: expected one of 1, 2, 3, got True"),
        ({"depth": math.nan}, None, r"fixed: depth: expected one of 1, 2, 3, got nan"),
        ({"depth": [2]}, None, r"fixed: depth: expected one of 1, 2, 3, got \[2\]"),
        ({"depth": "most"}, None, r"fixed: depth: expected one of 1, 2, 3, got 'most'"),
        (None, {"depth": []}, r"only: 'depth': expected at least one value, got none"),
        (None, {"depth": 2}, r"only: 'depth': expected several values, got 2; fixed= takes one"),
        (None, {"depth": itertools.count()}, r"only: 'depth': expected at most 16384 values, got more"),
        (None, {"depth": "largest"}, r"only: 'depth': expected several values, got 'largest'"),
        (None, {"depth": {2: 1}}, r"only: 'depth': expected several values, got \{2: 1\}"),
        (
            {"depth": 1},
            {"depth": [2, 3]},
            r"depth: no value is left: fixed\['depth'\] leaves 1, only\['depth'\] leaves 2, 3",
        ),
        (
            None,
            {"blocks.*.mlp_dim": [3], "blocks.1.*": ["largest"]},
            r"blocks.1.mlp_dim: no value is left: .*only\['blocks.1",
        ),
        ({3: 2}, None, r"fixed: expected the name of a choice or a glob, got 3"),
        (["depth"], None, r"fixed: expected names and values such as \{'depth': 6\}, got \['depth'\]"),
        (None, 7, r"only: expected names and values such as \{'blocks"),
    ],
)
def test_mistakes_are_answered(space, fixed, only, words):
    with pytest.raises(ChoiceError, match=words):
        space.restrict(fixed, only)


def test_what_was_not_left_before_is_no_value(space):
    with pytest.raises(ChoiceError, match=r"fixed: depth: expected one of 2, 3, got 1 .nearest: 2.$"):
        space.restrict(only={"depth": [2, 3]}).restrict(fixed={"depth": 1})

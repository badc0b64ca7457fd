"""Spaces that are narrowed and widened after training: what stays computes bit for bit what it did."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import vitas
from tests.contract import PATTERNS, randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import Choice, ChoiceError, Dim, activate_subnet, narrow, sample_subnet, search_space, widen
from vitas.nn import CyclicLinear, Elastic

FOLLOWING = {
    "qkv_dim": None,
    "head_dim": 2,
    "num_heads": [1, 2, 4],
    "mlp_dim": None,
    "mlp_ratio": [1, 1.5, 2],
    "private": None,
}

MODELS = {
    "deit": (lambda sharing: small(sharing=sharing, embed_dim=[4, 5, 6, 7, 8]), (2, 8, 8)),
    "deit of widths that follow": (lambda sharing: small(sharing=sharing, embed_dim=[4, 5, 6, 8], **FOLLOWING), (2, 8, 8)),
    "twins": (lambda sharing: small_twins(sharing=sharing), (2, 12, 10)),
}


def draws(model, number=4):
    generator = torch.Generator().manual_seed(0)
    return [sample_subnet(model, generator=generator, activate=False) for _ in range(number)]


def assert_same(old, new, subnets, x):
    """Both models compute the same numbers, not nearly the same, on every side; exports and counts agree too."""
    with torch.no_grad():
        for subnet in subnets:
            for side in ("left", "right") if search_space(old).bilateral else (None,):
                for model in (old, new):
                    activate_subnet(model, subnet, side=side)
                assert torch.equal(old(x), new(x))
        assert vitas.count_flops(old, subnet).total == vitas.count_flops(new, subnet).total
        assert torch.equal(vitas.export_subnet(new, subnet)(x), vitas.export_subnet(old, subnet)(x))


def inner_values(space):
    """Every second value of each choice that has more than two."""
    return {name: values[::2] for name, values in space.values.items() if len(values) > 2}


@pytest.mark.parametrize("sharing", PATTERNS)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:unfair sharing")
def test_what_stays_computes_what_it_did(kind, sharing):
    make, shape = MODELS[kind]
    old, x = randomize(make(sharing)).eval(), torch.randn(2, *shape)
    new, keys = copy.deepcopy(old), old.state_dict().keys()
    whole, parameters = search_space(old), list(new.parameters())
    assert narrow(new, only=inner_values(whole)) is new
    part = search_space(new)
    assert part.values == whole.restrict(only=inner_values(whole)).values != whole.values
    assert part.size == whole.restrict(only=inner_values(whole)).size
    assert_same(old, new, draws(new), x)
    widen(new, {name: whole.values[name] for name in inner_values(whole)})
    assert search_space(new).description() == whole.description()
    assert_same(old, new, draws(old), x)
    assert new.state_dict().keys() == keys
    assert all(one is other for one, other in zip(new.parameters(), parameters, strict=True))


NEW = {"deit": {"embed_dim": [3]}, "deit of widths that follow": {"embed_dim": [7], "blocks.0.num_heads": [3]}, "twins": {}}


@pytest.mark.parametrize("sharing", PATTERNS)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:unfair sharing")
def test_values_that_join_leave_the_others_as_they_are(kind, sharing):
    make, shape = MODELS[kind]
    old, x = randomize(make(sharing)).eval(), torch.randn(2, *shape)
    known, new = search_space(old), copy.deepcopy(old)
    added = NEW[kind] or {"stages.1.embed_dim": [7, 9], "stages.*.blocks.*.mlp_dim": [5]}
    if kind == "deit":
        added = {**added, "blocks.*.mlp_dim": [4, 5, 6]}
    widen(new, added)
    wider = search_space(new)
    assert wider.size > known.size
    assert all(set(known.values[name]) <= set(wider.values[name]) for name in known.values)
    assert_same(old, new, draws(old), x)
    joined = {name: [v for v in values if v not in known.values[name]] for name, values in wider.values.items()}
    for fill in ("smallest", "largest"):
        subnet = wider.subnet({name: values[0] for name, values in joined.items() if values}, fill=fill)
        activate_subnet(new, subnet)
        export = vitas.export_subnet(new, verify=x)
        assert sum(weight.numel() for weight in export.parameters()) == vitas.count_params(new, subnet)


def test_a_depth_that_joins_runs_the_first_blocks():
    old = randomize(small(depth=range(2, 7, 2))).eval()
    new = widen(copy.deepcopy(old), {"depth": [3, 1]})
    assert search_space(new).values["depth"] == (1, 2, 3, 4, 6)
    assert search_space(new).choices["depth"].p == (0.2,) * 5
    assert_same(old, new, draws(old), torch.randn(2, 2, 8, 8))
    activate_subnet(new, search_space(new).subnet({"depth": 3}, fill="largest"))
    assert len(vitas.export_subnet(new).blocks) == 3


@pytest.mark.extras
def test_wrapped_models_follow():
    timm = pytest.importorskip("timm")
    old = vitas.wrap(
        randomize(timm.create_model("test_vit", img_size=32, num_classes=5)).eval(),
        embed_dim=["50%", "75%", "100%"],
        depth=[2, 6],
    )
    new, x = copy.deepcopy(old), torch.randn(1, 3, 32, 32)
    narrow(new, only={"embed_dim": [32, "largest"]})
    assert_same(old, new, draws(new, 3), x)
    widen(new, {"embed_dim": [40], "depth": [1]})
    assert search_space(new).values["embed_dim"] == (32, 40, 64)
    assert_same(old, new, [s for s in draws(old, 20) if s["embed_dim"] != 48][:3], x)
    vitas.export_subnet(new, search_space(new).subnet({"embed_dim": 40, "depth": 1}, fill="smallest"), verify=x)
    with pytest.raises(ChoiceError, match=r"widen: depth: 0: \w+ needs at least 1|runs at least one block"):
        widen(new, {"depth": [0]})


# -- what else knows the space -----------------------------------------------------------------------------------------


def test_a_narrowed_space_is_one_for_draws_budgets_counts_and_searches():
    model = small()
    held = {"embed_dim": [4, 8], "blocks.*.mlp_dim": [3, 8], "depth": [2]}
    part = search_space(model).restrict(only=held)
    count, ends = vitas.count_subnets(model, only=held), [part.smallest(), part.largest()]
    costs = [vitas.count_flops(model, subnet).total for subnet in ends]
    costliest = part.costs()[2]
    narrow(model, only=held)
    space = search_space(model)
    assert space is space.whole
    assert (space.smallest(), space.largest()) == tuple(ends)
    assert int(vitas.count_subnets(model)) == int(count) == space.size
    sampler = vitas.SubnetSampler(model, flops="60%")
    assert sampler.windows["flops"].high == int(costliest * 0.6)  # of the costliest that is left
    assert {sampler.sample(step)["embed_dim"] for step in range(40)} == {4, 8}
    assert vitas.cost_model(model).flops(space.encode(ends[1])[None]).tolist() == [costs[1]]
    assert space.choices["embed_dim"].p == (0.5, 0.0, 0.5)
    evolution = vitas.Evolution(model, population=4)
    assert all(subnet in space and subnet["depth"] == 2 for subnet in evolution.ask(8))


def test_the_active_subnet_stays_in_the_space():
    model = small()
    activate_subnet(model, search_space(model).smallest())
    narrow(model, only={"embed_dim": [6, 8]})
    assert vitas.active_subnet(model)["embed_dim"] == 8
    narrow(model, only={"embed_dim": [6]})
    assert vitas.active_subnet(model) in search_space(model)
    assert "6 of 6..6" in repr(model.embed_dim.brief())
    assert "left=[6]" in repr(model.embed_dim)


def test_copies_and_pickles_keep_what_is_left_and_what_joined():
    model = small(embed_dim=[4, 6, 7, 8])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    narrow(widen(model, {"embed_dim": [5]}), only={"embed_dim": [5, 7, 8]})
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert search_space(twin).description() == search_space(model).description()
        assert twin.embed_dim.sides == model.embed_dim.sides
    assert search_space(nn.DataParallel(model)).values["embed_dim"] == (5, 7, 8)
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("change", [lambda m: narrow(m, fixed={"depth": 2}), lambda m: widen(m, {"embed_dim": [5]})])
def test_what_was_made_before_says_that_it_is_old(change):
    model = small()
    space, sampler, costs = search_space(model), vitas.SubnetSampler(model), vitas.cost_model(model)
    code = space.encode(space.largest())
    change(model)
    for use in (
        lambda: space.sample(),
        lambda: space.activate(space.largest()),
        lambda: sampler.sample(0),
        lambda: costs.flops(code[None]),
    ):
        with pytest.raises(ChoiceError, match="old: since it was made the model was narrowed or widened; make a new one"):
            use()
    assert vitas.SubnetSampler(model).sample(0) in search_space(model)


@pytest.mark.extras  # Optuna
def test_scores_that_were_found_hold_in_the_narrowed_space():
    """A user's script: the scores of the whole space are those of the narrowed one, so nothing is evaluated twice."""
    model, x = randomize(small()).eval(), torch.randn(4, 2, 8, 8)
    asked = []

    def evaluate(model):
        asked.append(vitas.active_subnet(model))
        with torch.no_grad():
            return model(x).mean().item()

    first = vitas.evolve(model, evaluate, population=6, generations=2, progress=False)
    narrow(model, only={"depth": sorted({found.subnet["depth"] for found in first.top(2)})})
    known = {subnet: scores["accuracy"] for subnet, scores in first.scores.items()}
    again = lambda model: known.get(vitas.active_subnet(model)) or evaluate(model)  # noqa: E731
    stay = [found.subnet for found in first.top(12) if found.subnet in search_space(model)]
    asked.clear()
    second = vitas.evolve(model, again, population=6, generations=2, initial=stay, progress=False)
    assert not set(asked) & set(stay)
    assert all(second.scores[subnet]["accuracy"] == first.scores[subnet]["accuracy"] for subnet in stay)


# -- what cannot be ----------------------------------------------------------------------------------------------------


class Kernels(Elastic, nn.Module):
    """A layer of somebody's own, with weights for each value."""

    def __init__(self):
        super().__init__()
        self.size = Choice([1, 3, 5], name="size")

    def lacks(self, choice, value):
        return None if value % 2 else "has odd sizes"


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (
            small,
            {"embed_dim": [12]},
            "widen: embed_dim: expected at most 8, got 12: the runs of 6 go around the end of the ring",
        ),
        (
            lambda: small(sharing="ordinal"),
            {"embed_dim": [12]},
            "expected at most 8, got 12: more channels are more weights",
        ),
        (small, {"patch_size": [1]}, "widen: patch_size: 1: patch_embed.proj has a copy of its weights for each value"),
        (small, {"blocks.1.num_heads": [3]}, "widen: blocks.1.num_heads: expected at most 2, got 3: more"),
        (lambda: small(num_heads=[1, 4], qkv_dim=[4, 8]), {"blocks.1.num_heads": [2]}, "has a copy of its weights"),
        (
            lambda: small(private=None, num_heads=[1, 4], qkv_dim=[4, 8]),
            {"blocks.1.num_heads": [3]},
            "4 channels, which 3 heads",
        ),
        (lambda: small(private=None), {"blocks.*.qkv_dim": [5]}, "has a qkv_dim of 5 channels, which 2 heads do not divide"),
        (small, {"depth": [0]}, "widen: depth: 0: blocks runs at least one block"),
        (small, {"depth": [2.5]}, "widen: depth: expected ints, as its values are, got"),
        (small, {"embed_dim": 5}, "widen: 'embed_dim': expected several values, got 5$"),
        (small, {"embed_dim": []}, "expected at least one value, got none"),
        (small, {"embde_dim": [5]}, r"widen: unknown choice 'embde_dim'; did you mean 'embed_dim'"),
        (small, {"blocks.*.heads": [5]}, "widen: no choice matches this glob"),
        (small, [5], "widen: expected names and values such as"),
        (lambda: nn.Sequential(Kernels()), {"size": [2]}, "widen: size: 2: 0 has odd sizes"),
    ],
)
def test_values_that_cannot_join_are_refused_and_nothing_changes(make, values, message):
    model = make()
    space = search_space(model)
    before = space.description()
    if isinstance(values, dict) and "depth" in values:
        values = {"embed_dim": [5], **values}  # of which the first could
    with pytest.raises(ChoiceError, match=message):
        widen(model, values)
    assert search_space(model).description() == before
    space.activate(space.largest())  # it is not old


def test_a_product_that_cannot_be_is_refused_and_nothing_changes():
    ratio, width = Choice([0.5, 1.0], name="ratio"), Dim([4, 8], name="width")
    model = nn.Sequential(CyclicLinear(width, ratio * width), CyclicLinear(ratio * width, width))
    sides = model[0].out_dim.sides
    with pytest.raises(ChoiceError, match=r"widen: ratio: .* give the same channel count"):
        widen(model, {"width": [6], "ratio": [0.51]})
    assert model[0].out_dim.sides == sides
    assert model[0].in_dim.values == (4, 8)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"only": {"embed_dim": [5]}}, "only: embed_dim: expected one of 4, 6, 8, got 5"),
        ({"fixed": {"embed": 4}}, "fixed: unknown choice"),
        ({"only": {"embed_dim": [4]}, "fixed": {"embed_dim": 8}}, "embed_dim: no value is left"),
    ],
)
def test_narrow_refuses_what_restrict_refuses(held, message):
    model = small()
    with pytest.raises(ChoiceError, match=message):
        narrow(model, **held)
    assert search_space(model).values["embed_dim"] == (4, 6, 8)
    narrow(model, fixed={"embed_dim": 4})
    with pytest.raises(ChoiceError, match="expected 4, got 8"):
        narrow(model, only={"embed_dim": [8]})


def test_probabilities_follow_the_prior():
    model = small(depth=[1, 2, 3], depth_p=[0.25, 0.25, 0.5], embed_dim=[4, 6, 8])
    narrow(model, only={"depth": [1, 2]})
    np.testing.assert_allclose(search_space(model).choices["depth"].p, [0.5, 0.5, 0])
    widen(model, {"depth": [3]})
    assert search_space(model).choices["depth"].p == (0.25, 0.25, 0.5)
    widen(model, {"embed_dim": [5]})
    assert search_space(model).choices["embed_dim"].p == (0.25,) * 4

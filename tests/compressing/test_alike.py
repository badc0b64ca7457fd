import re

import numpy as np
import pytest
from torch import nn

import vitas
from vitas.compressing import alike


def kinds(subnet):
    found = {}
    for name, value in subnet.items():
        found.setdefault(re.sub(r"\d+", "*", name), set()).add(value)
    return found


def small():
    options = {
        "num_classes": 10,
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": [32, 48],
        "depth": range(2, 6),
        "num_heads": [2, 4],
    }
    return vitas.create_superformer("deit_micro", **options, qkv_dim=[16, 32, 48], mlp_dim=[32, 64, 128])


def test_all_networks_of_blocks_alike_inside_the_budget_and_no_others():
    model = small()
    sampler = vitas.SubnetSampler(model, flops=("40%", "60%"))
    space, found = sampler.space, alike(sampler, 10**6)
    assert all(len(values) == 1 for subnet in found for values in kinds(subnet).values())
    choices = {name: choice.values for name, choice in space.choices.items()}
    by_kind = {re.sub(r"\d+", "*", name): values for name, values in choices.items()}
    grid = np.stack(np.meshgrid(*[np.arange(len(v)) for v in by_kind.values()], indexing="ij"), -1).reshape(-1, len(by_kind))
    expected = set()
    for numbers in grid:
        picked = {kind: by_kind[kind][number] for kind, number in zip(by_kind, numbers, strict=True)}
        subnet = space.subnet({name: picked[re.sub(r"\d+", "*", name)] for name in choices})
        low, high = sampler.windows["flops"]
        if low <= vitas.count_flops(model, subnet).total <= high:
            expected.add(subnet.to_json())
    assert len(expected) > 5
    assert {subnet.to_json() for subnet in found} == expected
    assert len(found) == len(expected)


def test_the_costliest_come_first_and_the_search_begins_with_them():
    pytest.importorskip("optuna")
    model, budget = small(), {"flops": "50%"}
    first = alike(vitas.SubnetSampler(model, **budget), 4)
    costs = [vitas.count_flops(model, subnet).total for subnet in first]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] <= 0.5 * vitas.count_flops(model, vitas.search_space(model).largest()).total
    settings = {"initial": first, "population": 4, "generations": 1, "progress": False}
    result = vitas.evolve(model, lambda m: 1.0, **budget, **settings)
    assert {one.subnet for one in result.history} == set(first)


def test_choices_of_one_kind_with_other_values_stand_at_the_same_part_of_the_way():
    model = vitas.create_superformer(
        "deit_micro", img_size=16, depth=2, mlp_dim={"blocks.0": [32, 64], "*": [32, 48, 64, 96]}
    )
    found = alike(vitas.SubnetSampler(model), 10**6)
    pairs = {(subnet["blocks.0.mlp_dim"], subnet["blocks.1.mlp_dim"]) for subnet in found}
    assert pairs == {(32, 32), (32, 48), (64, 64), (64, 96)}


def test_values_that_are_ruled_out_do_not_come():
    model = small()
    found = alike(vitas.SubnetSampler(model, flops="80%", fixed={"embed_dim": 48}), 100)
    assert {subnet["embed_dim"] for subnet in found} == {48}
    assert alike(vitas.SubnetSampler(model, flops="80%"), 0) == []
    with pytest.raises(vitas.ChoiceError, match=r"sampler: expected .*, got DeiTSuperformer"):
        alike(model, 4)


def test_many_kinds_are_taken_in_fewer_steps():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            letters = "abcdefgh"
            self.layers = nn.ModuleList(vitas.nn.CyclicLinear(8, vitas.Dim(range(1, 9), name=letter)) for letter in letters)

    found = alike(vitas.SubnetSampler(Many()), 10**6)
    assert len(found) == 4**8  # 5**8 is more than is looked at
    assert all(set(subnet.values()) <= {1, 3, 6, 8} for subnet in found[::1000])

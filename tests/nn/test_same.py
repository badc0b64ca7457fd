"""Weights of a space in which values use other channels or blocks: told by the metadata of a state_dict."""

import copy
import io

import pytest
import torch
from torch import nn

import vitas
from tests.superformer.test_deit import small
from vitas import Dim
from vitas.nn import CyclicLinear, ElasticLayerNorm, ShiftableIdentity


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("travel", [lambda state: state, through_a_file, copy.deepcopy], ids=["at once", "saved", "copied"])
@pytest.mark.parametrize("wrapper", [lambda model: model, nn.DataParallel], ids=["bare", "parallel"])
@pytest.mark.parametrize(
    ("there", "here", "named"),
    [
        (
            {"embed_dim": [4, 5, 6, 8]},
            {"embed_dim": [4, 6, 8]},
            r"embed_dim: .* in which 4, 6 use .*\(4: \[\(1, 4\)\] there, \[\(2, 4\)\] here\)",
        ),
        ({"sharing": "ordinal"}, {}, r"embed_dim: .* in which 4, 6 use .*\n.*blocks.0.mlp_dim: .* in which 3, 6 use"),
        ({"sharing": "bilateral"}, {}, "embed_dim"),
        (
            {"qkv_dim": None, "head_dim": 2, "num_heads": [1, 2, 4], "private": None},
            {"qkv_dim": None, "head_dim": 2, "num_heads": [1, 4], "private": None},
            r"blocks.0.num_heads \* 2: .* in which 2 use",
        ),
    ],
    ids=["values", "pattern", "sides", "widths that follow"],
)
def test_other_channels_are_refused_by_name(there, here, named, wrapper, travel):
    state = travel(wrapper(small(**there)).state_dict())
    other = wrapper(small(**here))
    with pytest.raises(RuntimeError, match=f"(?s){named}") as caught:
        other.load_state_dict(state)
    assert str(caught.value).count("embed_dim: ") <= 1  # not once for each layer
    assert str(caught.value).count("Equal subnets would compute something else") == 1
    assert "num_heads: " not in str(caught.value)  # of which no weight is cut
    other.load_state_dict(dict(state))  # which has no metadata


def test_equal_runs_load_whatever_the_set_of_values():
    model = small(embed_dim=[4, 5, 6, 8])
    narrowed = vitas.narrow(copy.deepcopy(model), only={"embed_dim": [5, 8]})
    widened = vitas.widen(copy.deepcopy(model), {"embed_dim": [7]})
    for one in (model, narrowed, widened):
        for other in (model, narrowed, widened):
            assert not any(other.load_state_dict(one.state_dict()))  # no key is missing or left over
    small(sharing="ordinal", embed_dim=[4, 8]).load_state_dict(small(sharing="ordinal", embed_dim=[4, 6, 8]).state_dict())


def test_blocks_that_leave_in_another_order_are_refused():
    def row(**order):
        return ShiftableIdentity([nn.Linear(2, 2) for _ in range(3)], name="depth", **order)

    with pytest.raises(RuntimeError, match=r"depth: .* in which 1, 2 use .*\(1: \[\(0,\)\] there, \[\(1,\)\] here\)"):
        row(leave=[0]).load_state_dict(row().state_dict())
    row(leave=[2, 1]).load_state_dict(row().state_dict())


def test_a_dim_without_a_name_is_named_by_its_place():
    def model(values):
        dim = Dim(values)
        return nn.ModuleDict({"first": CyclicLinear(3, dim), "norm": ElasticLayerNorm(dim)})

    with pytest.raises(RuntimeError, match=r"first\.out_dim: the weights are of a space in which 4 use"):
        model([2, 4, 6]).load_state_dict(model([2, 3, 4, 6]).state_dict())


def test_keys_and_tensors_are_as_before():
    model = small()
    assert set(model.state_dict()) == {*dict(model.named_parameters()), *dict(model.named_buffers())}
    linear = nn.Linear(3, 2)
    CyclicLinear(3, 2).load_state_dict(linear.state_dict())
    linear.load_state_dict(CyclicLinear(3, 2).state_dict())

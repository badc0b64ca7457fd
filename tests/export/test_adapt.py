"""Files of superformers in models of other values."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import vitas
from tests.contract import PATTERNS, randomize
from tests.space.test_change import FOLLOWING, assert_same, draws
from tests.superformer.test_deit import small
from vitas import load_superformer, save_superformer, search_space
from vitas.errors import FileError
from vitas.export.adapt import Adapted


@pytest.mark.parametrize("sharing", PATTERNS)
@pytest.mark.parametrize("options", [{}, FOLLOWING], ids=["", "widths that follow"])
@pytest.mark.filterwarnings("ignore:unfair sharing")
def test_what_both_have_computes_what_it_did(options, sharing, tmp_path):
    options = {"sharing": sharing, **options}
    old = randomize(small(embed_dim=[4, 5, 6, 8], **options)).eval()
    save_superformer(old, tmp_path / "model")
    new = small(embed_dim=[3, 5, 8], **options, depth=[1, 3]).eval()
    adapted = load_superformer(nn.DataParallel(new), tmp_path / "model", adapt=True)
    assert adapted.new == {"embed_dim": (3,)}
    assert adapted.gone == {"embed_dim": (4, 6), "depth": (2,)}
    shared = vitas.SubnetSampler(old, seed=1, only={"embed_dim": [5, 8], "depth": [1, 3]})
    assert_same(old, new, [shared.sample(step, activate=False) for step in range(4)], torch.randn(2, 2, 8, 8))
    save_superformer(new, tmp_path / "again")
    assert load_superformer(copy.deepcopy(new), tmp_path / "again") == Adapted({}, {})


def test_a_narrowed_and_a_widened_model_come_back(tmp_path):
    model = randomize(small(embed_dim=[4, 5, 6, 8])).eval()
    vitas.narrow(vitas.widen(model, {"embed_dim": [7]}), only={"embed_dim": [5, 7, 8], "blocks.*.mlp_dim": [3, 8]})
    save_superformer(model, tmp_path / "model")
    x, built = torch.randn(2, 2, 8, 8), small(embed_dim=[5, 7, 8], mlp_dim=[3, 8]).eval()
    assert load_superformer(built, tmp_path / "model", adapt=True) == Adapted({}, {})
    assert search_space(built).description() == search_space(model).description()
    assert_same(model, built, draws(model), x)
    again = vitas.widen(small(embed_dim=[4, 5, 6, 8]), {"embed_dim": [7]})
    vitas.narrow(again, only={"embed_dim": [5, 7, 8], "blocks.*.mlp_dim": [3, 8]})
    load_superformer(again.eval(), tmp_path / "model")  # the same steps make the same space
    assert_same(model, again, draws(model), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"embed_dim": [4, 6]},
            "embed_dim: values up to 8, here up to 6; build a model with the file's values, load it",
        ),
        ({"embed_dim": [4, 8, 10]}, "expected shape"),
        ({"sharing": {"embed_dim": "bilateral"}}, "embed_dim: expected 2 runs of 4 channels on a ring of 8, got"),
        ({"patch_size": [1, 2, 4]}, "missing tensors: .*1"),
        ({"depth": range(1, 5)}, "choices that only one of both has: blocks.3"),
        ({"embed_dim": 8}, "choices that only one of both has: embed_dim"),
        ({"mlp_dim": [1, 2, 8]}, None),
    ],
)
def test_what_cannot_be_kept_is_named_and_nothing_changes(options, message, tmp_path):
    save_superformer(randomize(small()), tmp_path / "model")
    other = randomize(small(**options), seed=5)
    before, described = copy.deepcopy(other.state_dict()), search_space(other).description()
    if message is None:  # the largest alone is common
        assert load_superformer(other, tmp_path / "model", adapt=True).new["blocks.0.mlp_dim"] == (1, 2)
        return
    with pytest.raises(FileError, match=message):
        load_superformer(other, tmp_path / "model", adapt=True)
    assert search_space(other).description() == described
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda space: space["embed_dim"].update(values="many"), "space: embed_dim: expected an object with values"),
        (lambda space: space["embed_dim"].update(values=[[1]]), "space: embed_dim: expected numbers"),
        (lambda space: space["embed_dim"].update(values=[]), "have none in common"),
        (lambda space: space["embed_dim"].update(runs=[[[0, 4], [0, 6], [-1, 8]]]), "expected runs"),
        (
            lambda space: space["embed_dim"].update(runs=[[[0, 4], [0, 7], [0, 8]]]),
            "embed_dim: expected 1 run of 6 channels",
        ),
        (lambda space: space["embed_dim"].update(runs=[[[0, 4], [9, 6], [0, 8]]]), "on a ring of 8, got"),
        (lambda space: space["embed_dim"].update(runs=[]), "expected runs"),
        (lambda space: space["embed_dim"].update(runs=[[[0, 4]]]), "expected 3 runs"),
        (lambda space: space["depth"].update(turns=[2, 1, 0]), "depth: its blocks leave in another order"),
        (lambda space: space.update(depth=3), "depth: expected an object with values"),
    ],
)
def test_files_that_lie_are_refused(change, message, tmp_path):
    path, model = tmp_path / "model", small()
    save_superformer(model, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    space = json.loads(metadata["space"])
    change(space)
    save_file(load_file(path), path, {**metadata, "space": json.dumps(space)})
    described = search_space(model).description()
    with pytest.raises(FileError, match=message):
        load_superformer(model, path, adapt=True)
    assert search_space(model).description() == described


def test_a_file_that_does_not_say_what_widths_that_follow_use_is_refused(tmp_path):
    path, model = tmp_path / "model", small(**FOLLOWING)
    save_superformer(model, path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "derived": "null"})
    load_superformer(model, path)
    with pytest.raises(
        FileError, match=r"blocks\.0\.attn\.\w+: which channels a width that follows others uses is not said"
    ):
        load_superformer(model, path, adapt=True)

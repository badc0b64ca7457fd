"""What was written before still loads, and computes what it computed."""

import json

import pytest
import torch
from safetensors.torch import load_file

import vitas
from tests.export.files_v1 import FOLDER, MODELS, SUPERFORMERS, output

NETWORKS = [
    pytest.param(name, policy, marks=[pytest.mark.extras] if name.startswith("timm") else [])
    for name in MODELS
    for policy in ("smallest", "random")
]
PICKLES = [(name, policy) for name in MODELS if not name.startswith("timm") for policy in ("smallest", "random")]


def assert_computes(network, name, expected):
    data = load_file(FOLDER / name / "outputs.safetensors")
    torch.testing.assert_close(output(network, data["x"]), data[expected], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "policy"), NETWORKS)
def test_a_network_loads_and_is_written_as_it_was(name, policy, tmp_path):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    network = vitas.load_subnet(FOLDER / name / policy)
    assert_computes(network, name, policy)
    vitas.save_subnet(network, tmp_path / "again")
    old, new = (folder / "config.json" for folder in (FOLDER / name / policy, tmp_path / "again"))
    assert json.loads(new.read_text()) == json.loads(old.read_text())


@pytest.mark.parametrize(("name", "policy"), PICKLES)
def test_a_pickled_export_loads_and_describes_itself(name, policy):
    network = torch.load(FOLDER / name / f"{policy}.pickle", weights_only=False)
    assert_computes(network, name, policy)
    assert network.config == json.loads((FOLDER / name / policy / "config.json").read_text())["model"]


@pytest.mark.parametrize("name", SUPERFORMERS)
def test_a_superformer_loads(name):
    model = MODELS[name]()
    vitas.load_superformer(model, FOLDER / name / "superformer.safetensors")
    vitas.activate_subnet(model, json.loads((FOLDER / name / "active.json").read_text()))
    assert_computes(model, name, "superformer")

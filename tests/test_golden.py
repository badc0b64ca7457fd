"""Fixed seeds give what they gave, and files of an earlier version still load: see tests/golden.py."""

import json

import pytest
import torch

import vitas
from tests import golden

EXPECTED = json.loads(golden.GOLDEN.read_text())
OUTPUTS = json.loads((golden.FILES / "outputs.json").read_text())
extras = pytest.mark.extras
CASES = [*golden.CORE, *(pytest.param(case, marks=extras) for case in golden.OF_EXTRAS)]
KINDS = ["deit", "twins", *(pytest.param(kind, marks=extras) for kind in ("timm_vit", "timm_twins"))]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_same_seeds_give_the_same(case):
    got = json.loads(json.dumps(case()))
    assert not list(golden.differences(got, EXPECTED[case.__name__]))


@every_kind
def test_a_network_of_an_earlier_version_loads(kind):
    network = vitas.load_subnet(golden.FILES / kind).eval()
    with torch.no_grad():
        output = network(golden.pictures(3, 16, 16).float())
    torch.testing.assert_close(output, torch.tensor(OUTPUTS[kind]["output"]), rtol=1e-4, atol=1e-5)


@every_kind
def test_a_superformer_of_an_earlier_version_loads(kind):
    model = golden.superformer(kind).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    vitas.load_superformer(model, golden.FILES / f"{kind}.safetensors")
    subnet = vitas.Subnet.from_json(json.dumps(OUTPUTS[kind]["subnet"]))
    with torch.no_grad(), vitas.use_subnet(model, subnet):
        output = model(golden.pictures(3, 16, 16).float())
    torch.testing.assert_close(output, torch.tensor(OUTPUTS[kind]["output"]), rtol=1e-4, atol=1e-5)

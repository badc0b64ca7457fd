"""What tools make of plain networks: torch.fx records them."""

import pickle

import pytest
import torch

from tests.contract import randomize
from tests.superformer.test_deit import small
from tests.superformer.test_twins import small as small_twins
from vitas import export_subnet, search_space

BUILD = {
    "deit": small,
    "distilled": lambda: small(distilled=True),
    "average": lambda: small(global_pool="avg"),
    "twins": lambda: small_twins(drop_path_rate=0.2),  # maps that windows do not fill
}


def network(kind):
    model = randomize(BUILD[kind]().double())
    return export_subnet(model, search_space(model).largest()), torch.randn(3, *model.image_shape(), dtype=torch.float64)


fx_knows = pytest.mark.skipif(torch.__version__.startswith("2.8."), reason="the fx of torch 2.8 cannot write these types")


@fx_knows
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", list(BUILD))
def test_fx_records_plain_networks(kind, training):
    net, x = network(kind)
    graph = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(net.train(training))))
    outputs = []
    for one in (net, graph):
        torch.manual_seed(1)
        outputs.append(one(x))
    assert torch.equal(*outputs)
    assert graph(x[:1]).shape == (1, 5)  # the number of images is not recorded
    with pytest.raises(ValueError, match=r"images: expected shape \(batch, 2, .*got \(3, 1, 8, 8\)"):
        graph(torch.zeros(3, 1, 8, 8).double())


@fx_knows
def test_a_recorded_twins_takes_images_of_any_size():
    net, _ = network("twins")
    graph = torch.fx.symbolic_trace(net.eval())
    x = torch.randn(1, 2, 18, 22, dtype=torch.float64)
    assert torch.equal(graph(x), net(x))


@pytest.mark.extras
@pytest.mark.parametrize(("kind", "node"), [("deit", "blocks.1.add_1"), ("twins", "blocks.1.3.add_1")])
def test_torchvision_extracts_features(kind, node):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    net, x = network(kind)
    net.eval()
    got = extraction.create_feature_extractor(net, {node: "map", "head": "logits"}, suppress_diff_warning=True)(x)
    taken = []
    block = net.blocks[1] if kind == "deit" else net.blocks[1][3]
    block.register_forward_hook(lambda module, inputs, output: taken.append(output))
    assert torch.equal(got["logits"], net(x))
    assert torch.equal(got["map"], taken[0])

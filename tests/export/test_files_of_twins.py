"""Files of Twins networks and superformers; what files have to withstand is tested once, in test_files.py."""

import pytest
import torch

from tests.contract import passed_on, randomize
from tests.export.test_files import assert_equal_in_a_fresh_process, edit
from tests.superformer.test_twins import IDS, OPTIONS, draws, images, small
from vitas import (
    build_subnet,
    count_params,
    create_superformer,
    export_subnet,
    load_subnet,
    plain,
    save_subnet,
    search_space,
)
from vitas.errors import FileError


@pytest.fixture
def saved(tmp_path):
    model = randomize(small())
    save_subnet(export_subnet(model, search_space(model).largest()), tmp_path / "net")
    return tmp_path / "net"


def test_random_networks_travel_bit_for_bit(tmp_path):
    networks = []
    for i, options in enumerate(OPTIONS):
        model = randomize(small(**options), seed=i)
        networks += [(export_subnet(model, subnet), images().float()) for subnet in draws(model, 3, seed=i)]
    empty = small(shift=False)  # no slot is needed, in no stage
    networks.append((export_subnet(empty, search_space(empty).smallest()), images().float()))
    assert not any(map(len, networks[-1][0].blocks))
    assert_equal_in_a_fresh_process(networks, tmp_path)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
def test_a_config_describes_its_network(options):
    model = small(**options, pos_drop_rate=0.1, drop_rate=0.2, attn_drop_rate=0.3, proj_drop_rate=0.4)
    network = export_subnet(model, search_space(model).largest())
    again = plain.Twins.from_config(network.config)
    assert repr(again) == repr(network)
    assert again.config == network.config


def test_a_loaded_network_takes_images_of_any_size(saved):
    network = load_subnet(saved, img_size=20)
    assert torch.equal(network(images(20, 14).float()), load_subnet(saved)(images(20, 14).float()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(stages=[]), "stages: expected a list of 1 to 1024"),
        (lambda m: m["stages"][0].update(patch_size=0), "stages.0.patch_size: expected a positive int"),
        (lambda m: m["stages"][1].pop("embed_dim"), "stages.1: missing embed_dim"),
        (lambda m: m["stages"][1]["blocks"][0].update(num_heads=5), "stages.1.blocks.0.num_heads: expected a divisor of"),
        (lambda m: m["stages"][1]["blocks"][0].update(window_size=-1), "stages.1.blocks.0.window_size"),
        (lambda m: m["stages"][0]["blocks"][1].update(sr_ratio=1), "stages.0.blocks.1.sr_norm_eps: expected None"),
        (lambda m: m["stages"][0]["blocks"][1].update(window_size=3), "stages.0.blocks.1: unknown field"),
        (lambda m: m["stages"][0]["blocks"].append("block"), "stages.0.blocks.2: expected an object"),
        (lambda m: m.update(global_pool="token"), "global_pool: expected one of avg, , got 'token'"),
        (lambda m: m.update(img_size=[4, 4]), "unknown field"),
        (lambda m: m["stages"][0].update(embed_dim=2**24), "describes no network|expected shape"),
    ],
)
def test_configs_that_do_not_fit_are_refused(change, message, saved):
    edit(saved, lambda config: change(config["model"]))
    with pytest.raises(FileError, match=message):
        load_subnet(saved)


def test_changes_that_the_config_cannot_express_are_refused(tmp_path):
    network = export_subnet(small())
    network.pos_block[0].proj[0] = torch.nn.Conv2d(6, 6, 5, padding=2, groups=6)
    with pytest.raises(FileError, match=r"cannot express: .*pos_block\.0\.proj\.0\.weight"):
        save_subnet(network, tmp_path / "net")
    network = export_subnet(small())
    network.pos_drops[1].p = 0.5
    with pytest.raises(FileError, match="cannot express"):
        save_subnet(network, tmp_path / "net")


def test_a_superformer_comes_back_at_any_image_size(tmp_path):
    model = randomize(small())
    other = passed_on(model, small(img_size=(20, 16), drop_path_rate=0.2), tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("options", [{"wss": [4, 2]}, {"num_heads": [[1, 2], [1, 2]]}, {"sr_ratios": [1, 1]}])
def test_another_superformer_is_refused(options, tmp_path):
    with pytest.raises(FileError, match=r"window_size|num_heads|attn\.(sr|norm)"):
        passed_on(small(), small(**options), tmp_path)


def test_a_network_is_built_without_its_superformer():
    with torch.device("meta"):
        space = search_space(create_superformer("vitas_twins"))
    subnet = space.smallest()
    torch.manual_seed(0)
    network = build_subnet("vitas_twins", subnet, num_classes=10)
    assert type(network) is plain.Twins
    with torch.device("meta"):
        model = create_superformer("vitas_twins", num_classes=10)
    assert count_params(network) == count_params(model, subnet)
    out = network.eval()(torch.randn(1, 3, 32, 32))
    assert out.shape == (1, 10)
    assert out.isfinite().all()
    conv = network.pos_block[0].proj[0]
    assert conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.4)
    assert not conv.bias.any()

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.contract import is_plain
from vitas import (
    ChoiceError,
    build_subnet,
    create_superformer,
    export_subnet,
    list_published_subnets,
    published_subnet,
    search_space,
)
from vitas.errors import ExportError

MICRO = ("deit_micro", {"img_size": 16, "num_classes": 5, "in_chans": 2})


class Allocated(TorchDispatchMode):
    """Sums the bytes of every storage that appears on the CPU while it is on, freed or not."""

    def __init__(self):
        super().__init__()
        self.storages, self.bytes, self.largest = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.storages:
                    self.storages[storage.data_ptr()] = tensor  # kept, so that no address comes twice
                    self.bytes += storage.nbytes()
                    self.largest = max(self.largest, storage.nbytes())
        return out


def shapes(network):
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_every_published_subnet_lies_in_its_space():
    names = list_published_subnets()
    assert list(names) == ["vitas_a", "vitas_b", "vitas_c", "vitas_e", "vitas_f"]
    spaces = {}
    for home in set(names.values()):
        with torch.device("meta"):
            spaces[home] = search_space(create_superformer(home))
    for name, home in names.items():
        subnet = published_subnet(name)
        assert subnet in spaces[home]
        assert spaces[home].subnet(subnet) == subnet
        assert subnet["patch_size"] == 16
    names.clear()
    assert list_published_subnets()  # the caller's copy


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ChoiceError, match=r"published subnet: expected one of vitas_a, .*got 'vitas-c' .nearest: vitas_c"):
        published_subnet("vitas-c")
    with pytest.raises(ChoiceError, match=r"unknown superformer .*did you mean 'deit_micro'"):
        build_subnet("deit_macro", {})
    with pytest.raises(ChoiceError, match=r"unknown argument .*did you mean 'mlp_dim'"):
        build_subnet("deit_micro", {}, mlp_dims=[3])


def test_a_subnet_of_another_space_is_refused():
    with pytest.raises(ChoiceError, match="expected a mapping of names to numbers, got None"):
        build_subnet("deit_micro", None)
    with pytest.raises(ChoiceError, match=r"embed_dim"):
        build_subnet("deit_micro", published_subnet("vitas_c"))
    with pytest.raises(ChoiceError, match=r"patch"):
        build_subnet("vitas_deit", published_subnet("vitas_c"), img_size=100)


@pytest.mark.parametrize(
    "options",
    [{}, {"distilled": True}, {"global_pool": "avg"}, {"init_values": 0.1, "drop_path_rate": 0.2}, {"private": None}],
)
def test_it_has_the_structure_of_an_export(options):
    name, size = MICRO
    model = create_superformer(name, **size, **options)
    space, generator = search_space(model), torch.Generator().manual_seed(0)
    for _ in range(5):
        subnet = space.sample(generator)
        expected, got = export_subnet(model, subnet), build_subnet(name, subnet, **size, **options)
        assert shapes(got) == shapes(expected)
        assert got.config == expected.config
        assert repr(got) == repr(expected)
        assert is_plain(got)
        assert got.training
        assert all(p.requires_grad and p.device.type == "cpu" and p.dtype == torch.float32 for p in got.parameters())
        got.load_state_dict(expected.state_dict())
        x = torch.randn(2, 2, 16, 16)
        assert torch.equal(got.eval()(x), expected.eval()(x))


def test_its_weights_are_fresh_and_follow_the_seed():
    name, size = MICRO
    subnet = search_space(create_superformer(name, **size)).largest()
    torch.manual_seed(0)
    one, two = (build_subnet(name, subnet, **size) for _ in range(2))
    torch.manual_seed(0)
    again = build_subnet(name, subnet, **size)
    for (key, a), b, c in zip(one.state_dict().items(), two.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, c)
        assert torch.isfinite(a).all()
        if a.ndim > 1:
            assert not torch.equal(a, b), key
    assert one.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert one.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert one.head.bias.abs().max() == 0
    for module in one.modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_the_image_the_classes_and_the_channels_can_be_chosen():
    subnet = published_subnet("vitas_c")
    network = build_subnet("vitas_deit", subnet, num_classes=7, img_size=(224, 448), in_chans=1)
    assert network.config["img_size"] == [224, 448]
    assert network(torch.randn(2, 1, 224, 448)).shape == (2, 7)
    without = build_subnet("vitas_deit", subnet, num_classes=0)
    assert "head.weight" not in without.state_dict()
    assert without.config["num_classes"] == 0


@pytest.mark.parametrize("name", ["vitas_a", "vitas_f"])
def test_no_weights_of_the_superformer_are_allocated(name):
    home = list_published_subnets()[name]
    with Allocated() as counter:
        network = build_subnet(home, published_subnet(name))
    own = sum(parameter.nbytes for parameter in network.parameters())
    with torch.device("meta"):
        superformer = sum(parameter.nbytes for parameter in create_superformer(home).parameters())
    assert superformer > 4 * own
    assert own <= counter.bytes <= 2 * own  # what drawing the weights takes meanwhile is in it
    assert counter.largest == max(parameter.nbytes for parameter in network.parameters())


def test_a_network_that_no_memory_holds_is_refused_at_once():
    subnet = {"embed_dim": 2**20, "patch_size": 2, "depth": 1, "blocks.0.num_heads": 2}
    subnet |= {"blocks.0.qkv_dim": 32, "blocks.0.mlp_dim": 2**20}
    options = {"embed_dim": [32, 2**20], "mlp_dim": [48, 2**20]}
    with Allocated() as counter, pytest.raises(ExportError, match=r"deit_micro: this subnet needs \d+\.\d TiB"):
        build_subnet("deit_micro", subnet, img_size=16, **options)
    assert counter.bytes < 2**16


def test_a_space_with_nothing_to_choose_builds_its_one_network():
    network = build_subnet("deit_tiny", {}, num_classes=3, img_size=32)
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ChoiceError, match=r"no choices"):
        build_subnet("deit_tiny", {"embed_dim": 192}, num_classes=3, img_size=32)

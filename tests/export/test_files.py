import copy
import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import vitas
from tests.contract import randomize, relative_error
from tests.superformer.test_deit import small
from vitas import (
    ChoiceError,
    Dim,
    build_subnet,
    create_superformer,
    export_subnet,
    list_published_subnets,
    load_subnet,
    load_superformer,
    published_subnet,
    save_subnet,
    save_superformer,
    search_space,
)
from vitas.errors import FileError
from vitas.export.files import opened
from vitas.export.network import _hash  # a forger computes it too
from vitas.nn.linear import CyclicLinear

OPTIONS = [
    {},
    {"distilled": True},
    {"global_pool": "avg"},
    {"global_pool": "avg", "fc_norm": False},
    {"init_values": 0.1},
    {"drop_path_rate": 0.3, "proj_drop_rate": 0.1, "attn_drop_rate": 0.2},
    {"private": None, "head_dim": 4, "qkv_dim": None, "qk_norm": True},
    {"qkv_bias": False, "norm_eps": 1e-3, "final_norm_eps": 1e-4},
    {"num_classes": 0},
    {"mlp_dim": None, "mlp_ratio": [1, 2.5]},
    {"shift": False},
]


@pytest.fixture
def network():
    return export_subnet(randomize(small()).eval())


@pytest.fixture
def saved(network, tmp_path):
    save_subnet(network, tmp_path / "net")
    return tmp_path / "net"


def edit(folder, change, honest=True):
    """Change a config; with `honest` the hash is made to fit again."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    if honest:
        config["hash"] = _hash(config)
    path.write_text(json.dumps(config))


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


IN_A_FRESH_PROCESS = """
import sys, json, torch
from pathlib import Path
import vitas
torch.set_num_threads(1)
def never(*args, **kwargs): raise AssertionError("a superformer was built")
vitas.superformer.DeiTSuperformer.__init__ = never
for case in sys.argv[1:]:
    data = torch.load(Path(case) / "case.pt")
    network = vitas.load_subnet(Path(case) / "net").eval()
    with torch.no_grad():
        assert torch.equal(network(data["x"]), data["y"]), case
    assert set(network.state_dict()) == set(data["keys"])
print("equal", len(sys.argv) - 1)
"""


def assert_equal_in_a_fresh_process(networks, folder):
    """Save networks with their inputs; another process loads them and compares the outputs bit for bit."""
    cases = []
    for i, (network, x) in enumerate(networks):
        case = folder / f"case{i}"
        save_subnet(network, case / "net")
        with torch.no_grad():
            y = network.eval()(x)
        torch.save({"x": x, "y": y, "keys": list(network.state_dict())}, case / "case.pt")
        cases.append(str(case))
    command = [sys.executable, "-W", "error", "-c", IN_A_FRESH_PROCESS, *cases]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["equal", str(len(cases))]


@pytest.mark.parametrize("place", [None, 3, b"small"])
def test_what_is_no_path_is_refused(place):
    model = vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)
    small = vitas.export_subnet(model)
    calls = (
        lambda: vitas.save_subnet(small, place),
        lambda: vitas.load_subnet(place),
        lambda: vitas.save_superformer(model, place),
        lambda: vitas.load_superformer(model, place),
    )
    for call in calls:
        with pytest.raises(FileError, match="expected a path, got "):
            call()


def test_published_networks_travel_bit_for_bit(tmp_path):
    networks = []
    for name, home in list_published_subnets().items():
        network = randomize(build_subnet(home, published_subnet(name), img_size=224, num_classes=10))
        networks.append((network, torch.randn(1, 3, 224, 224)))
    assert_equal_in_a_fresh_process(networks, tmp_path)


def test_random_networks_travel_bit_for_bit(tmp_path):
    networks, generator = [], torch.Generator().manual_seed(0)
    for i, options in enumerate(OPTIONS):
        model = randomize(small(**options), seed=i)
        for _ in range(5):
            network = export_subnet(model, search_space(model).sample(generator))
            networks.append((network, torch.randn(2, 2, 8, 8)))
    micro = randomize(create_superformer("deit_micro", img_size=(16, 32), num_classes=3))
    networks += [(export_subnet(micro, search_space(micro).sample(generator)), torch.randn(2, 3, 16, 32)) for _ in range(10)]
    assert len(networks) == 10 + 5 * len(OPTIONS)
    assert not all(len(network.blocks) for network, _ in networks)
    assert_equal_in_a_fresh_process(networks, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_types_and_gradients_are_kept(dtype, tmp_path):
    network = export_subnet(randomize(small())).to(dtype)
    network.norm.float()
    save_subnet(network, tmp_path / "net")
    again = load_subnet(tmp_path / "net")
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in network.state_dict().items()}
    for a, b in zip(again.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.requires_grad
    again.head.weight.data.zero_()  # the weights are the network's own and can be trained further
    assert not load_subnet(tmp_path / "net").head.weight.eq(0).all()


def test_the_files_are_json_and_safetensors_only(network, saved):
    assert sorted(os.listdir(saved)) == ["config.json", "model.safetensors"]
    config = json.loads((saved / "config.json").read_text())
    assert list(config) == ["format", "version", "class", "model", "dtypes", "hash"]
    assert config["version"] == 1
    assert config["model"] == network.config
    header_length = int.from_bytes((saved / "model.safetensors").read_bytes()[:8], "little")
    header = json.loads((saved / "model.safetensors").read_bytes()[8 : 8 + header_length])
    assert set(header) - {"__metadata__"} == set(network.state_dict())
    for path in saved.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))  # pickle, and torch's zip of it
    assert load_file(saved / "model.safetensors").keys() == network.state_dict().keys()


def test_the_config_is_canonical(network, saved, tmp_path):
    save_subnet(network, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    edit(saved, lambda config: config.update(dict(reversed(list(config.items())))), honest=False)  # order says nothing
    load_subnet(saved)


def test_folders_and_wrappers(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_subnet(network, "relative")
    save_subnet(nn.DataParallel(network), str(tmp_path / "deep" / "er" / "net"))
    assert files_under(tmp_path / "deep") == ["er", "er/net", "er/net/config.json", "er/net/model.safetensors"]
    x = torch.randn(2, 2, 8, 8)
    for folder in ("relative", tmp_path / "deep" / "er" / "net"):
        assert torch.equal(load_subnet(folder).eval()(x), network(x))


# -- another image size ------------------------------------------------------------------------------------------------


@pytest.mark.extras
@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("size", [16, 24, (8, 16), 4, 8])
def test_positions_are_resampled_as_timm_does(size, distilled, tmp_path):
    from timm.layers.pos_embed import resample_abs_pos_embed

    network = export_subnet(randomize(small(patch_size=2, distilled=distilled))).eval()
    save_subnet(network, tmp_path / "net")
    again = load_subnet(tmp_path / "net", img_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    grid, prefix = (height // 2, width // 2), 2 if distilled else 1
    expected = resample_abs_pos_embed(network.pos_embed, grid, (4, 4), num_prefix_tokens=prefix)
    assert torch.equal(again.pos_embed, expected)
    assert again.config == {**network.config, "img_size": [height, width]}
    for name, tensor in again.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(tensor, network.state_dict()[name])
    assert again.eval()(torch.randn(1, 2, height, width)).shape == (1, 5)
    assert again.pos_embed.requires_grad


def test_image_sizes_that_do_not_fit_are_refused(saved):
    with pytest.raises(FileError, match=r"net.*img_size: patches of 4 pixels do not divide an image of 10 x 10"):
        load_subnet(saved, img_size=10)
    for size in (0, -4, "8", (8, 8, 8), 8.0, True):
        with pytest.raises((ChoiceError, FileError), match=r"img_size"):
            load_subnet(saved, img_size=size)


# -- superformers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"distilled": True}, {"private": "v"}, {"sharing": "bilateral"}, {"sharing": {"qkv_dim": "ordinal"}}]
)
def test_a_superformer_comes_back(options, tmp_path):
    model, twin = randomize(small(**options)), small(**options)
    save_superformer(nn.DataParallel(model), tmp_path / "sub" / "model.safetensors")
    before = search_space(twin).smallest()
    search_space(twin).activate(before)
    load_superformer(twin, tmp_path / "sub" / "model.safetensors")
    assert search_space(twin).active() == before
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert files_under(tmp_path) == ["sub", "sub/model.safetensors"]
    save_superformer(twin, tmp_path / "sub" / "model.safetensors")  # replaced
    assert files_under(tmp_path) == ["sub", "sub/model.safetensors"]


@pytest.mark.extras
@pytest.mark.parametrize("options", [{}, {"distilled": True}, {"patch_size": 4}])
def test_a_superformers_positions_follow_its_image(options, tmp_path):
    from timm.layers.pos_embed import resample_abs_pos_embed

    space = {"embed_dim": [32, 48], "depth": range(1, 3), "num_classes": 3, **options}
    model = randomize(create_superformer("deit_micro", img_size=16, **space))
    twin = create_superformer("deit_micro", img_size=(24, 32), **space)
    save_superformer(model, tmp_path / "model")
    load_superformer(twin, tmp_path / "model")
    old, new = model.state_dict(), twin.state_dict()
    for name in new:
        if not name.startswith("pos_embed"):
            assert torch.equal(old[name], new[name])
            continue
        patch = int(name.split(".")[1]) if "." in name else 4
        grids = [(size[0] // patch, size[1] // patch) for size in ((24, 32), (16, 16))]
        expected = resample_abs_pos_embed(old[name], *grids, num_prefix_tokens=model.num_prefix_tokens)
        assert torch.equal(new[name], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": [4, 8]}, "another search space, different in embed_dim; adapt=True"),
        ({"depth": range(2, 4)}, "another search space, different in depth"),
        ({"depth": range(1, 3)}, "another search space; only one of both has the choices blocks.2.mlp_dim"),
        ({"sharing": "ordinal"}, "another search space, different in embed_dim, blocks.0.num_heads"),
        ({"sharing": {"embed_dim": "ordinal"}}, "another search space, different in embed_dim; adapt=True"),
        ({"sharing": {"qkv_dim": "ordinal"}}, "different in blocks.0.qkv_dim, blocks.1.qkv_dim, blocks.2.qkv_dim; adapt"),
        ({"num_classes": 6}, r"head.weight: expected shape \(6, 8\), got \(5, 8\)"),
        ({"distilled": True}, "missing tensors: dist_token.2, dist_token.4"),
        ({"private": None}, "missing tensors: blocks.0.attn.qkv"),
    ],
)
def test_another_superformer_is_refused_and_left_alone(options, message, tmp_path):
    save_superformer(randomize(small()), tmp_path / "model")
    other = randomize(small(**options), seed=5)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(FileError, match=message) as caught:
        load_superformer(other, tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_derived_widths_that_use_other_channels_are_refused(tmp_path):
    """Their factors may not tell: here the width is fixed, and the ratio has no channels."""
    options = {"embed_dim": 8, "mlp_dim": None, "mlp_ratio": [1, 2, 3]}
    save_superformer(randomize(small(**options, sharing={"embed_dim": "ordinal"})), tmp_path / "model")
    load_superformer(small(**options, sharing={"embed_dim": "ordinal"}), tmp_path / "model")
    with pytest.raises(FileError, match=r"use other channels in blocks.0.mlp.fc1.out_dim, blocks.0.mlp.fc2.in_dim, "):
        load_superformer(small(**options), tmp_path / "model")


def test_a_file_from_before_derived_widths_were_kept_is_read(tmp_path):
    model = randomize(small())
    save_superformer(model, tmp_path / "model")
    with safe_open(tmp_path / "model", framework="pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "derived"}
    forged(load_file(tmp_path / "model"), metadata, tmp_path / "older")
    load_superformer(small(), tmp_path / "older")
    forged(load_file(tmp_path / "model"), {**metadata, "derived": "[1]"}, tmp_path / "damaged")
    with pytest.raises(FileError, match="derived: expected an object"):
        load_superformer(small(), tmp_path / "damaged")


def forged(tensors, metadata, path):
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: m.clear(), "expected format 'vitas-superformer'"),
        (lambda t, m: m.update(format="vitas-subnet"), "expected format 'vitas-superformer'"),
        (lambda t, m: m.update(version="2"), "version 1"),
        (lambda t, m: m.update(space="{"), "not valid JSON"),
        (lambda t, m: m.update(space="[]"), "space"),
        (lambda t, m: m.update(space="null"), "space"),
        (lambda t, m: m.pop("space"), "space|JSON"),
        (lambda t, m: m.update(img_size="[4"), "not valid JSON"),
        (lambda t, m: m.update(img_size="null"), "img_size"),
        (lambda t, m: m.pop("img_size"), "img_size"),
        (lambda t, m: m.update(img_size="[0, 8]"), "img_size|pos_embed"),
        (lambda t, m: m.update(img_size='["8", 8]'), "img_size"),
        (lambda t, m: m.update(img_size="[16, 16]"), "pos_embed"),
        (lambda t, m: m.update(img_size="[NaN, 8]"), "img_size"),
        (lambda t, m: t.pop("pos_embed.2"), "missing tensors: pos_embed.2"),
        (lambda t, m: t.update(more=torch.zeros(2)), "tensors that the network does not have: more"),
        (lambda t, m: t.update({"head.bias": torch.zeros(5).half()}), "head.bias: expected type float32, got float16"),
        (lambda t, m: (m.update(img_size="[4, 8]"), t.update({"pos_embed.2": torch.zeros(1, 9, 7)})), "pos_embed"),
        (
            lambda t, m: (
                m.update(img_size="[4, 8]"),
                t.update({"pos_embed.2": torch.zeros(1, 9, 7), "pos_embed.4": torch.zeros(1, 3, 7)}),
            ),
            "pos_embed",
        ),
        (lambda t, m: (m.update(img_size="[4, 8]"), t.update({"pos_embed.2": torch.zeros(9)})), "pos_embed"),
    ],
)
def test_superformer_files_that_lie_are_refused(change, message, tmp_path):
    path = tmp_path / "model"
    save_superformer(randomize(small()), path)
    tensors = load_file(path)
    with opened(path) as file:
        metadata = dict(file.metadata())
    change(tensors, metadata)
    forged(tensors, metadata, path)
    model = randomize(small(), seed=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FileError, match=message) as caught:
        load_superformer(model, path)
    assert str(path) in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_superformer_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "model"
    save_superformer(small(), path)
    whole = path.read_bytes()
    for content in (b"", b"\x80\x04.", whole[:20], whole[:-1], whole + b"x", os.urandom(300)):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"cannot be read"):
            load_superformer(small(), path)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileError, match=r"cannot be read"):
            load_superformer(small(), missing)
    with pytest.raises(ChoiceError, match=r"no choices"):
        save_superformer(nn.Linear(2, 2), tmp_path / "linear")
    assert files_under(tmp_path) == ["model"]


# -- bad input ---------------------------------------------------------------------------------------------------------

TERABYTES = 2**24


def model_field(name, value):
    return lambda config: config["model"].update({name: value})


def block_field(name, value):
    return lambda config: config["model"]["blocks"][0].update({name: value})


FORGERIES = {
    "format": (lambda c: c.update(format="other"), "config.json: format: expected 'vitas-subnet', got 'other'"),
    "version": (lambda c: c.update(version=2), "config.json: version: expected 1, got 2"),
    "version text": (lambda c: c.update(version="1"), "config.json: version: expected 1, got '1'"),
    "version bool": (lambda c: c.update(version=True), "config.json: version: expected 1, got True"),
    "unknown": (lambda c: c.update(modle=1), "config.json: unknown field, .*got 'modle' .nearest: model"),
    "unknown in model": (model_field("depth", 3), "config.json: model: unknown field.*got 'depth'"),
    "unknown in block": (block_field("mlp_dims", 3), r"config.json: model: blocks.0: unknown field.*did you mean 'mlp_dim'"),
    "no version": (lambda c: c.pop("version"), "config.json: version"),
    "no dtypes": (lambda c: c.pop("dtypes"), "config.json: missing dtypes"),
    "no field": (lambda c: c["model"].pop("embed_dim"), "config.json: model: missing embed_dim"),
    "no block field": (lambda c: c["model"]["blocks"][1].pop("drop_path"), "blocks.1: missing drop_path"),
    "class": (lambda c: c.update({"class": 3}), "config.json: class: expected a string"),
    "dtypes": (lambda c: c.update(dtypes=[]), "config.json: dtypes: expected an object"),
    "other dtypes": (lambda c: c["dtypes"].update(other="float32"), "dtypes.*other"),
    "fewer dtypes": (lambda c: c["dtypes"].pop("head.bias"), "head.bias"),
    "no dtype": (lambda c: c["dtypes"].update({"head.bias": ["float32"]}), "head.bias"),
    "model list": (lambda c: c.update(model=[]), "config.json: model: expected an object, got list"),
    "block number": (lambda c: c["model"].update(blocks=[3]), "config.json: model: blocks.0: expected an object, got int"),
    "no blocks": (model_field("blocks", []), "tensors that the network does not have: blocks"),
    "blocks object": (model_field("blocks", {}), "model: blocks: expected a list of 0 to 1024"),
    "embed_dim text": (model_field("embed_dim", "8"), "model: embed_dim: expected a positive int, got '8'"),
    "embed_dim bool": (model_field("embed_dim", True), "model: embed_dim: expected a positive int, got True"),
    "embed_dim float": (model_field("embed_dim", 8.0), "model: embed_dim: expected a positive int, got 8.0"),
    "embed_dim zero": (model_field("embed_dim", 0), "model: embed_dim: expected a positive int"),
    "embed_dim negative": (model_field("embed_dim", -8), "model: embed_dim: expected a positive int"),
    "embed_dim null": (model_field("embed_dim", None), "model: embed_dim: expected a positive int"),
    "embed_dim huge": (model_field("embed_dim", 10**300), "model: embed_dim: expected an int of at most 16777216"),
    "num_classes negative": (model_field("num_classes", -1), "model: num_classes"),
    "num_classes bool": (model_field("num_classes", False), "model: num_classes"),
    "img_size": (model_field("img_size", 8), "model: img_size: expected a list of 2, got 8"),
    "img_size three": (model_field("img_size", [8, 8, 8]), "model: img_size: expected a list of 2"),
    "img_size bool": (model_field("img_size", [8, True]), "model: img_size.1: expected a positive int, got True"),
    "patch_size": (model_field("patch_size", 3), "model: patch_size: expected a divisor of img_size, got 3"),
    "pooling": (model_field("global_pool", "max"), "model: global_pool: expected one of token, avg, got 'max'"),
    "pooling list": (model_field("global_pool", ["avg"]), "model: global_pool"),
    "distilled": (model_field("distilled", 1), "model: distilled: expected True or False"),
    "eps nan": (model_field("norm_eps", float("nan")), "model: norm_eps: expected a number.* got nan"),
    "eps infinite": (model_field("norm_eps", float("inf")), "model: norm_eps: expected a number.* got inf"),
    "eps text": (model_field("norm_eps", "1e-6"), "model: norm_eps: expected a number"),
    "eps bool": (model_field("norm_eps", True), "model: norm_eps: expected a number"),
    "eps negative": (model_field("norm_eps", -1e-6), "model: norm_eps: expected a number"),
    "eps huge": (model_field("norm_eps", 10**400), "model: norm_eps: expected a number"),
    "rate one": (block_field("attn_drop", 1), r"blocks.0.attn_drop: expected a number in \[0, 1\), got 1"),
    "rate negative": (block_field("drop_path", -0.1), r"blocks.0.drop_path: expected a number in \[0, 1\)"),
    "rate huge": (block_field("proj_drop", 10**400), r"blocks.0.proj_drop: expected a number in \[0, 1\)"),
    "scale": (block_field("init_values", [1]), "blocks.0.init_values: expected a number in .* or None"),
    "heads": (block_field("num_heads", 4), "blocks.0.num_heads: expected a divisor of qkv_dim 6, got 4"),
    "bias": (block_field("qkv_bias", None), "blocks.0.qkv_bias: expected True or False"),
    "wide": (model_field("embed_dim", TERABYTES), "model.safetensors: cls_token: expected shape .1, 1, 16777216."),
    "wide mlp": (
        block_field("mlp_dim", TERABYTES),
        r"mlp.fc1.weight: expected shape \(16777216, 8\), got \(8, 8\)",
    ),
    "many classes": (model_field("num_classes", TERABYTES), "head.weight: expected shape"),
    "many channels": (model_field("in_chans", TERABYTES), "patch_embed.proj.weight: expected shape"),
    "beyond counting": (
        lambda c: c["model"].update(embed_dim=TERABYTES, img_size=[TERABYTES, TERABYTES], patch_size=1),
        "model: describes no network .RuntimeError",
    ),
    "large image": (lambda c: c["model"].update(img_size=[2**20, 2**20]), "pos_embed: expected shape"),
    "many blocks": (lambda c: c["model"].update(blocks=c["model"]["blocks"][:1] * 1_100), "blocks"),
    "one block more": (lambda c: c["model"]["blocks"].append(c["model"]["blocks"][0]), "missing tensors: blocks.3"),
    "one block less": (lambda c: c["model"]["blocks"].pop(), "tensors that the network does not have: blocks.2"),
    "own class": (lambda c: c.update({"class": "Mine"}), r"class 'Mine' is not built here; .* into="),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_configs_that_do_not_fit_are_refused(case, saved):
    change, message = FORGERIES[case]
    edit(saved, change)
    with pytest.raises(FileError, match=message) as caught:
        load_subnet(saved)
    assert str(saved) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_config_that_was_changed_is_refused(saved):
    text = (saved / "config.json").read_text()
    changes = [model_field("norm_eps", 1e-5), block_field("num_heads", 1), model_field("global_pool", "avg")]
    changes += [lambda c: c.update(hash="0" * 64), lambda c: c.update(hash=None), lambda c: c.update(hash=[1])]
    for change in changes:
        edit(saved, change, honest=False)
        with pytest.raises(FileError, match=r"config.json: hash: does not fit the content"):
            load_subnet(saved)
        (saved / "config.json").write_text(text)
    load_subnet(saved)


def test_a_config_cut_short_is_refused_wherever_it_is_cut(saved):
    whole = (saved / "config.json").read_bytes()
    for length in [*range(0, len(whole) - 2, 37), len(whole) - 2]:
        (saved / "config.json").write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"config.json: not valid JSON"):
            load_subnet(saved)


@pytest.mark.parametrize(
    "content", [b"[]", b"3", b"null", b'"text"', b"\xff\xfe{}", b"{} {}", b'{"version": 1' + b"0" * 5000 + b"}"]
)
def test_a_config_that_is_no_object_is_refused(content, saved):
    (saved / "config.json").write_bytes(content)
    with pytest.raises(FileError, match=r"config.json: "):
        load_subnet(saved)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_config_nested_deeply_is_refused(opening, saved):
    text = (saved / "config.json").read_text()
    closing = {"[": "]", '{"a":': "}"}[opening]
    for depth in [50, *range(800, 1010, 7), 100_000]:
        nested = opening * depth + "1" + closing * depth
        (saved / "config.json").write_text(text.replace('"patch_size": 4', f'"patch_size": {nested}', 1))
        with pytest.raises(FileError, match=r"config.json"):
            load_subnet(saved)


def test_a_config_of_many_megabytes_is_not_read(saved):
    with open(saved / "config.json", "a") as file:
        file.write(" " * 2**24)
    with pytest.raises(FileError, match=r"config.json: larger than"):
        load_subnet(saved)


def with_tensor(name, tensor):
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.bias"), "missing tensors: head.bias"),
        (lambda t: t.clear(), r"missing tensors: .* and \d+ more"),
        (with_tensor("extra", torch.zeros(2)), "tensors that the network does not have: extra"),
        (with_tensor("head.bias", torch.zeros(6)), r"head.bias: expected shape \(5,\), got \(6,\)"),
        (with_tensor("head.bias", torch.zeros(5, 1)), r"head.bias: expected shape \(5,\), got \(5, 1\)"),
        (with_tensor("head.bias", torch.zeros(5).double()), "head.bias: expected type float32, got float64"),
        (with_tensor("head.bias", torch.zeros(5).bfloat16()), "head.bias: expected type float32, got bfloat16"),
        (with_tensor("head.bias", torch.zeros(5).int()), "head.bias: expected type float32, got int32"),
        (with_tensor("head.bias", torch.zeros(5).bool()), "head.bias: expected type float32, got bool"),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_tensors_that_do_not_fit_are_refused(change, message, own, saved, network):
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, saved / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(FileError, match=rf"model.safetensors: {message}"):
        load_subnet(saved, into=network if own else None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_weights_that_are_no_safetensors_are_refused(saved, network):
    path = saved / "model.safetensors"
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    contents = [b"", whole[:4], whole[:100], whole[: 8 + header], whole[:-1], whole + b"\0", os.urandom(500)]
    contents.append((2**62).to_bytes(8, "little") + whole[8:])  # a header of exabytes
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"model.safetensors: cannot be read"):
            load_subnet(saved)
    torch.save(network.state_dict(), path)
    with pytest.raises(FileError, match=r"model.safetensors: cannot be read"):
        load_subnet(saved)


def test_files_that_are_missing_are_named(saved, tmp_path):
    with pytest.raises(FileError, match=r"none/config.json: cannot be read"):
        load_subnet(tmp_path / "none")
    (saved / "model.safetensors").rename(saved / "weights")
    with pytest.raises(FileError, match=r"model.safetensors: cannot be read"):
        load_subnet(saved)
    (saved / "model.safetensors").mkdir()
    with pytest.raises(FileError, match=r"model.safetensors: cannot be read"):
        load_subnet(saved)
    (saved / "config.json").rename(saved / "model.safetensors" / "config.json")
    (saved / "config.json").mkdir()
    with pytest.raises(FileError, match=r"config.json: cannot be read"):
        load_subnet(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_in_place_of_its_folder_is_refused_with_the_folder(name, saved):
    with pytest.raises(FileError, match=rf"{name}: expected the folder that it lies in, .*{saved.name}$"):
        load_subnet(saved / name)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_saved_network_is_replaced_when_asked_for_and_nothing_else_is(network, saved, tmp_path, monkeypatch):
    other = copy.deepcopy(network)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_subnet(other, saved, overwrite=True)
    loaded = load_subnet(saved)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), other.parameters(), strict=True))
    assert sorted(it.name for it in tmp_path.iterdir()) == [saved.name]  # nothing of the old one, nothing half done
    save_subnet(network, tmp_path / "new", overwrite=True)
    (saved / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for target in (saved, tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(FileError, match="is not a folder of save_subnet alone, so it is not replaced"):
            save_subnet(network, target, overwrite=True)
    assert (saved / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    before = {path: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    monkeypatch.setattr("vitas.export.network.save_file", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_subnet(other, tmp_path / "new", overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before
    with pytest.raises(vitas.VitasError, match="overwrite: expected True or False, got 'yes'"):
        save_subnet(network, tmp_path / "new", overwrite="yes")


def test_a_folder_that_exists_is_refused_and_left_alone(network, saved, tmp_path):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for target in (saved, tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(FileError, match=f"{target.name}' exists already: pass overwrite=True, or another folder"):
            save_subnet(network, target)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    with pytest.raises(FileError, match=r"cannot be written"):
        save_subnet(network, tmp_path / "file" / "net")
    assert files_under(tmp_path) == ["empty", "file", "net", "net/config.json", "net/model.safetensors"]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["save_file", "os.replace", "pathlib.Path.write_text", "tempfile.mkdtemp"])
def test_a_full_disk_leaves_nothing_behind(where, network, tmp_path, monkeypatch):
    model = small()
    save_superformer(model, tmp_path / "model")
    before = (tmp_path / "model").read_bytes()
    for place in (
        ("vitas.export.network.save_file", "vitas.export.checkpoint.save_file") if where == "save_file" else (where,)
    ):
        monkeypatch.setattr(place, full)
    with pytest.raises(FileError, match=r"net: cannot be written .*No space left on device"):
        save_subnet(network, tmp_path / "net")
    if where != "pathlib.Path.write_text":
        with pytest.raises(FileError, match=r"model: cannot be written .*No space left on device"):
            save_superformer(randomize(model), tmp_path / "model")
        with pytest.raises(FileError, match=r"other: cannot be written"):
            save_superformer(model, tmp_path / "other")
    assert files_under(tmp_path) == ["model"]
    assert (tmp_path / "model").read_bytes() == before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_disk_that_fills_while_writing_leaves_nothing_behind(tmp_path):
    program = """
import resource, sys
import vitas
from vitas.errors import FileError
model = vitas.create_superformer("deit_micro", img_size=16)
network = vitas.export_subnet(model)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
for save in (lambda: vitas.save_subnet(network, "net"), lambda: vitas.save_superformer(model, "model")):
    try:
        save()
    except FileError as error:
        print(str(error).split()[0])
"""
    command = [sys.executable, "-B", "-c", program]  # byte code that it wrote would be cut off too, and stay
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout.split()) == (0, ["net:", "model:"]), run.stderr
    assert files_under(tmp_path) == []


def test_an_interruption_leaves_nothing_behind(network, tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitas.export.network.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_subnet(network, tmp_path / "net")
    assert files_under(tmp_path) == []


# -- networks of one's own ---------------------------------------------------------------------------------------------


class Own(nn.Module):
    def __init__(self, width=4, hidden=8):
        super().__init__()
        self.fc1, self.fc2 = CyclicLinear(width, hidden), CyclicLinear(hidden, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


def test_a_network_of_ones_own_class_loads_into_one(tmp_path):
    model = randomize(Own(Dim([2, 4], name="width"), Dim([4, 8], name="hidden")).double()).eval()
    network = export_subnet(model, {"width": 4, "hidden": 4})
    network.steps += 7
    save_subnet(network, tmp_path / "net")
    with pytest.raises(FileError, match=r"net: class '.*Own' is not built here; .*into="):
        load_subnet(tmp_path / "net")
    with pytest.raises(FileError, match=r"img_size"):
        load_subnet(tmp_path / "net", into=Own(4, 4).double(), img_size=8)
    target = Own(4, 4).double()
    again = load_subnet(tmp_path / "net", into=target)
    x = torch.randn(2, 4, dtype=torch.float64)
    assert again is target
    assert torch.equal(again(x), network(x))
    assert again.steps == 7
    wrong = randomize(Own(4, 8), seed=2)
    before = {name: tensor.clone() for name, tensor in wrong.state_dict().items()}
    with pytest.raises(FileError, match=r"model.safetensors: fc1.weight: expected shape \(8, 4\), got \(4, 4\)"):
        load_subnet(tmp_path / "net", into=wrong)
    with pytest.raises(FileError, match=r"net: class: expected a Own as into=, got 'Linear'"):
        load_subnet(tmp_path / "net", into=nn.Linear(4, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrong.state_dict().items())


def test_weights_that_are_tied_are_saved(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    source = randomize(Tied())
    save_subnet(source, tmp_path / "net")
    target = load_subnet(tmp_path / "net", into=Tied())
    assert target.two.weight is target.one.weight
    assert torch.equal(target.two.weight, source.one.weight)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.bool])
def test_buffers_of_any_type_come_back(dtype, tmp_path):
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    source.register_buffer("table", torch.ones(3).to(dtype))
    target.register_buffer("table", torch.zeros(3).to(dtype))
    save_subnet(source, tmp_path / "net")
    load_subnet(tmp_path / "net", into=target)
    assert target.table.dtype == dtype
    assert torch.equal(target.table.view(torch.uint8), source.table.view(torch.uint8))


def test_a_type_that_safetensors_does_not_know_is_refused(tmp_path):
    source = nn.Linear(2, 2)
    source.register_buffer("table", torch.ones(3, dtype=torch.complex128))
    with pytest.raises(FileError, match=r"net: cannot be written \(.*complex128"):
        save_subnet(source, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_what_is_searchable_or_has_no_data_is_refused(tmp_path, network):
    with pytest.raises(FileError, match=r"DeiTSuperformer is searchable: save what export_subnet returns"):
        save_subnet(small(), tmp_path / "net")
    with pytest.raises(FileError, match=r"searchable"):
        save_subnet(nn.Sequential(CyclicLinear(2, Dim([2, 3]))), tmp_path / "net")
    with pytest.raises(FileError, match=r"meta"):
        save_subnet(network.to("meta"), tmp_path / "net")
    assert files_under(tmp_path) == []


def replaced(path, part):
    def change(network):
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, part)

    return change


def twin_of(cls):
    """Return a class of the same name that computes something else."""
    return type(cls.__name__, (cls,), {"forward": lambda self, x: x})


CHANGES = {
    "head": replaced("head", nn.Sequential(nn.Linear(8, 5))),
    "activation": replaced("blocks.1.mlp.act", nn.ReLU()),
    "tanh": replaced("blocks.1.mlp.act", nn.GELU(approximate="tanh")),
    "no mlp": replaced("blocks.0.mlp", nn.Identity()),
    "mlp layer": replaced("blocks.0.mlp.fc1", nn.Identity()),
    "norm": replaced("norm", nn.RMSNorm(8)),
    "eps": replaced("blocks.0.norm2", nn.LayerNorm(8, 1e-2)),
    "blocks": replaced("blocks", nn.Identity()),
    "block": replaced("blocks.1", nn.Identity()),
    "more": replaced("more", nn.Linear(2, 2)),
    "stride": lambda n: setattr(n.patch_embed.proj, "stride", (2, 2)),
    "no bias": replaced("head", nn.Linear(8, 5, bias=False)),
    "dropout": replaced("blocks.0.mlp.drop1", nn.Dropout(0.5)),
    "drop path": lambda n: setattr(n.blocks[2].drop_path2, "drop_prob", 0.20001),
    "pooling": lambda n: setattr(n, "global_pool", "max"),
    "heads": lambda n: setattr(n.blocks[0].attn, "num_heads", 5),
    "no heads": lambda n: setattr(n.blocks[0].attn, "num_heads", 0),
    "block of the same name": lambda n: setattr(n.blocks[0], "__class__", twin_of(vitas.plain.Block)),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes_that_the_config_cannot_express_are_refused(case, tmp_path):
    network = export_subnet(small(drop_path_rate=0.2))
    CHANGES[case](network)
    with pytest.raises(FileError, match=r"config: .*cannot express|config: "):
        save_subnet(network, tmp_path / "net")
    assert files_under(tmp_path) == []


def test_changes_that_the_config_can_express_are_kept(tmp_path):
    network = randomize(export_subnet(small())).eval()
    network.head = nn.Linear(8, 9)
    network.blocks = vitas.plain.Blocks(*list(network.blocks)[:2])
    network.blocks[0].attn.num_heads = 3
    save_subnet(network, tmp_path / "net")
    x = torch.randn(2, 2, 8, 8)
    again = load_subnet(tmp_path / "net").eval()
    assert torch.equal(again(x), network(x))
    assert relative_error(again(x), network(x)) == 0


def test_stochastic_depth_that_was_switched_off_is_none(tmp_path):
    network = randomize(export_subnet(small(drop_path_rate=0.2)))
    for part in network.modules():
        if isinstance(part, vitas.plain.DropPath):
            part.drop_prob = 0.0
    save_subnet(network, tmp_path / "net")
    again, x = load_subnet(tmp_path / "net").train(), torch.randn(2, 2, 8, 8)
    assert not any(isinstance(part, vitas.plain.DropPath) for part in again.modules())
    assert torch.equal(again(x), network.train()(x))
    network.blocks[1].drop_path1 = twin_of(vitas.plain.DropPath)()
    with pytest.raises(FileError, match=r"cannot express: blocks\.1\.drop_path1"):
        save_subnet(network, tmp_path / "other")


def test_into_another_network_of_ours_is_refused_by_the_option_that_differs(tmp_path):
    options = {"patch_size": 4, "embed_dim": 8, "depth": 2, "mlp_dim": 8, "private": None, "qkv_dim": 8}
    four, two = (export_subnet(small(num_heads=heads, **options)) for heads in (4, 2))
    save_subnet(four, tmp_path / "net")
    with pytest.raises(FileError, match="into: blocks"):
        load_subnet(tmp_path / "net", into=two)
    load_subnet(tmp_path / "net", into=export_subnet(small(num_heads=4, **options)))


def test_a_superformer_with_another_fixed_head_count_is_refused(tmp_path):
    options = {"qkv_dim": [8, 16], "private": None}
    save_superformer(small(num_heads=2, **options), tmp_path / "model")
    target = small(num_heads=4, **options)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(FileError, match=r"model: blocks.0.attn.num_heads: expected 4, got 2"):
        load_superformer(target, tmp_path / "model")
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_a_model_on_the_meta_device_cannot_be_loaded_into(network, saved, tmp_path):
    with pytest.raises(FileError, match="meta device, there is nothing to load into"):
        load_subnet(saved, into=copy.deepcopy(network).to("meta"))
    model = small()
    save_superformer(model, tmp_path / "model")
    with pytest.raises(FileError, match="meta device, there is nothing to load into"):
        load_superformer(model.to("meta"), tmp_path / "model")


def test_a_header_too_long_to_be_one_is_refused_before_it_is_read(tmp_path):
    model = vitas.create_superformer("deit_micro", img_size=8, num_classes=3)
    (tmp_path / "long").write_bytes((2**23).to_bytes(8, "little") + b" " * 2**23)
    with pytest.raises(FileError, match="a header of more than 3145728 bytes"):
        vitas.load_superformer(model, tmp_path / "long")

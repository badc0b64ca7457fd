"""Networks told by what they were made of: files, timm.create_model, hostile configs."""

import contextlib
import copy
import json
import pickle
import shutil

import pytest
import torch
from torch import nn

from tests.contract import randomize, relative_error
from tests.wrapping.test_records import SMALL as RECORDED
from vitas import (
    ChoiceError,
    activate_subnet,
    export_subnet,
    load_subnet,
    register,
    sample_subnet,
    save_subnet,
    search_space,
    wrap,
)
from vitas.errors import FileError
from vitas.export.network import _hash
from vitas.export.origins import is_known

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras
tells = hasattr(timm.models, "get_model_args")  # since 1.0.31 a model keeps the arguments that it was made with

SMALL = {  # name in timm: (arguments, side of the images)
    "vit_small_patch16_dinov3": ({"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2, "drop_path_rate": 0.1}, 32),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 32, "window_size": 4, "embed_dim": 24, "num_heads": (1, 2, 4), "depths": (1, 2, 1)},
        32,
    ),
    "samvit_base_patch16": ({"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2, "global_attn_indexes": (1,)}, 32),
    "vit_tiny_patch16_224": ({"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2}, 32),
}
DINO = "vit_small_patch16_dinov3"
every_model = pytest.mark.parametrize("name", SMALL)


def original(name=DINO):
    options, side = SMALL[name]
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return randomize(timm.create_model(name, num_classes=5, **options)).eval(), x


def an_export(name=DINO, policy="smallest"):
    model, x = original(name)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    sample_subnet(wrapped, policy=policy, generator=torch.Generator().manual_seed(1))
    return export_subnet(wrapped), x


def source(name=DINO):
    """Return what save_subnet has to be told where timm does not tell."""
    return None if tells else (name, {**SMALL[name][0], "num_classes": 5})


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@every_model
def test_what_is_saved_comes_back_bit_by_bit(name, tmp_path):
    export, x = an_export(name)
    export.train()
    export(x).square().sum().backward()
    torch.optim.SGD(export.parameters(), lr=1e-3).step()
    export.eval()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(export)))  # what it was made of travels along
    assert b"vitas" not in pickle.dumps(twin)
    save_subnet(twin, tmp_path / "net", source=source(name))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    loaded = load_subnet(tmp_path / "net").eval()
    assert torch.equal(torch.rand(2), expected)  # no random number was drawn
    assert config_of(tmp_path / "net")["model"]["source"]["name"] == name
    assert (type(loaded), repr(loaded)) == (type(export), repr(export))
    assert torch.equal(loaded(x), export(x))
    assert loaded.pretrained_cfg == export.pretrained_cfg
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("swin_tiny_patch4_window7_224", {"window_size": 4, "embed_dim": 16, "depths": (1, 2), "num_heads": (2, 4)}),
        ("swinv2_tiny_window8_256", {"window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4)}),
        ("eva02_tiny_patch14_224", {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}),
        ("beit_base_patch16_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}),
        (DINO, {"embed_dim": 32, "depth": 1, "num_heads": 2}),
    ],
)
def test_what_stands_in_no_file_has_the_type_of_the_weights(name, sizes, dtype, tmp_path):
    sizes = {"img_size": 64, "num_classes": 5, **sizes}
    export = export_subnet(wrap(randomize(timm.create_model(name, **sizes))).to(dtype)).eval()
    save_subnet(export, tmp_path / "net", source=None if tells else (name, sizes))
    loaded, x = load_subnet(tmp_path / "net").eval(), torch.randn(2, 3, 64, 64, dtype=dtype)
    assert torch.equal(loaded(x), export(x))
    assert {name: it.dtype for name, it in loaded.named_buffers()} == {name: it.dtype for name, it in export.named_buffers()}
    assert torch.get_default_dtype() == torch.float32


def test_a_subnet_of_a_subnet(tmp_path):
    export, x = an_export()
    save_subnet(export, tmp_path / "first", source=source())
    wrapped = wrap(load_subnet(tmp_path / "first").eval())
    sample_subnet(wrapped, policy="smallest")
    save_subnet(export_subnet(wrapped), tmp_path / "second")
    assert len(config_of(tmp_path / "second")["model"]["subnets"]) == 2
    assert torch.equal(load_subnet(tmp_path / "second").eval()(x), export_subnet(wrapped)(x))


def test_blocks_that_left_from_anywhere(tmp_path):
    model, x = original()
    wrapped = wrap(model, depth=[1, 2], leave=[0])
    sample_subnet(wrapped, policy="smallest")
    save_subnet(export_subnet(wrapped), tmp_path / "net", source=source())
    assert config_of(tmp_path / "net")["model"]["subnets"][0]["leave"] == [0]
    loaded = load_subnet(tmp_path / "net").eval()
    assert torch.equal(loaded(x), export_subnet(wrapped)(x))
    assert [block.drop_path1.extra_repr() for block in loaded.blocks] == [
        block.drop_path1.extra_repr() for block in export_subnet(wrapped).blocks
    ]


def test_timms_own_methods_may_change_an_export(tmp_path):
    export, _ = an_export("vit_tiny_patch16_224")
    export.reset_classifier(7)
    export.set_input_size(img_size=(48, 64))
    save_subnet(export, tmp_path / "net", source=source("vit_tiny_patch16_224"))
    x = torch.randn(2, 3, 48, 64)
    assert torch.equal(load_subnet(tmp_path / "net").eval()(x), export(x))


def test_another_image_size_on_loading(tmp_path):
    export, _ = an_export()
    save_subnet(export, tmp_path / "net", source=source())
    export.set_input_size(img_size=(64, 64))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(load_subnet(tmp_path / "net", img_size=64).eval()(x), export(x))


def test_a_network_that_was_changed_is_not_saved(tmp_path):
    export, _ = an_export()
    export.blocks[0].mlp.act = nn.ReLU()
    with pytest.raises(FileError, match=r"it differs in blocks\.0\.mlp\.act.*; pass source="):
        save_subnet(export, tmp_path / "net", source=source())
    export, _ = an_export()
    with pytest.raises(FileError, match="pass source="):
        save_subnet(export, tmp_path / "net", source=(DINO, {"img_size": 32, "depth": 4}))
    with pytest.raises(FileError, match="source: name: expected a model of timm, got 'dino'"):
        save_subnet(export, tmp_path / "net", source=("dino", {}))
    with pytest.raises(FileError, match=r"source: expected \(name, arguments\), got 'dino'"):
        save_subnet(export, tmp_path / "net", source="dino")
    assert not (tmp_path / "net").exists()


def test_a_network_that_does_not_know_its_origin_is_told(tmp_path):
    export, x = an_export()
    export.made_from["source"] = None
    with_source = (DINO, {**SMALL[DINO][0], "num_classes": 5})
    save_subnet(export, tmp_path / "net", source=with_source)
    assert torch.equal(load_subnet(tmp_path / "net").eval()(x), export(x))


# -- what timm itself loads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [DINO, "swin_tiny_patch4_window7_224"])
def test_a_regular_subnet_is_a_folder_that_timm_loads(name, tmp_path):
    model, x = original(name)
    wrapped = wrap(model, depth="auto", mlp_ratio=["50%", "100%"])
    space = search_space(wrapped)
    half = {key: choice.smallest for key, choice in space.choices.items() if key.endswith("mlp_dim")}
    activate_subnet(wrapped, space.subnet(half, fill="largest"))
    export = export_subnet(wrapped)
    save_subnet(export, tmp_path / "net", source=source(name))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    assert torch.equal(loaded(x), export(x))
    assert repr(loaded) == repr(export)


BOTH = {"embed_dim": ["50%", "100%"], "num_heads": ["50%", "100%"]}
NATIVE = {  # sizes of all blocks that the constructor can say; the widths of Swin's stages double
    "swin_tiny_patch4_window7_224": {"embed_dim": ["33%", "100%"], "num_heads": ["33.3%", "100%"], "depth": "auto"},
    "swinv2_tiny_window8_256": {**BOTH, "depth": "auto"},
    "eva02_tiny_patch14_224": {"num_heads": None, "depth": "auto"},
    "pvt_v2_b0": {**BOTH, "depth": "auto"},
    "pit_ti_224": {"num_heads": None, "depth": "auto", "mlp_ratio": None},
    "vit_small_patch16_dinov3": {**BOTH, "depth": "auto"},
    "qwen3_vit_88m": {**BOTH, "depth": "auto"},
    "tiny_vit_5m_224": {"num_heads": None, "depth": "auto"},
    "levit_128s": {"num_heads": "auto", "depth": "auto"},
    "maxvit_tiny_tf_224": {"num_heads": None, "depth": "auto", "mlp_ratio": None},
    "naflexvit_base_patch16_map": {"num_heads": None, "depth": "auto", "mlp_ratio": None},
}


@pytest.mark.parametrize(
    ("name", "searched"),
    [
        *((name, searched) for name, searched in NATIVE.items() if name in RECORDED),
        ("swin_tiny_patch4_window7_224", {"num_heads": ["33.3%", "100%"]}),  # whose constructor takes head_dim
    ],
)
def test_whatever_the_constructor_can_build_timm_loads(name, searched, tmp_path):
    options, side = RECORDED[name]
    model = randomize(timm.create_model(name, num_classes=5, **options)).eval()
    x = torch.randn(2, 3, side, side)
    wrapped = wrap(model, **{"mlp_ratio": ["50%", "100%"], **searched})
    sample_subnet(wrapped, policy="smallest")
    export = export_subnet(wrapped)
    save_subnet(export, tmp_path / "net", source=None if tells else (name, {**options, "num_classes": 5}))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    assert torch.equal(loaded(x), export(x))
    if name == "swinv2_tiny_window8_256":
        assert [block.num_heads for layer in export.layers for block in layer.blocks] == [1, 2]


@pytest.mark.parametrize("name", ["SwinConfig", "Dinov2Config"])
def test_rates_that_differ_by_rounding_are_those_that_transformers_builds(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    swin = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
    row = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = getattr(transformers, name)(
        image_size=16, patch_size=2, drop_path_rate=0.1, **(swin if name == "SwinConfig" else row)
    )
    kind = getattr(transformers, name.replace("Config", "Model"))
    wrapped = wrap(randomize(kind(config)).eval(), embed_dim=["50%", "100%"], num_heads=["50%", "100%"], depth="auto")
    space = search_space(wrapped)
    fixed = {key: choice.largest for key, choice in space.choices.items() if key.endswith("mlp_dim")}
    least = {key: choice.smallest for key, choice in space.choices.items() if key.endswith(("num_heads", "depth"))}
    half = {key: value // 2 for key, value in fixed.items()}
    widths = {key: choice.smallest for key, choice in space.choices.items() if key.endswith("embed_dim")}
    activate_subnet(wrapped, space.subnet({**half, **least, **widths}, fill="largest"))
    export = export_subnet(wrapped)
    save_subnet(export, tmp_path / "net")
    loaded = kind.from_pretrained(tmp_path / "net").eval()
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(x).last_hidden_state, export(x).last_hidden_state)


def test_a_subnet_never_passes_for_its_original(tmp_path):
    export, _ = an_export()
    save_subnet(export, tmp_path / "net", source=source())
    with pytest.raises(RuntimeError, match=f"Unknown model .subnet of {DINO}, which .* it is read by load_subnet of vitas"):
        timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True)
    refusal = pytest.raises(ValueError, match=f"subnet of {DINO}, which timm's constructor does not build")
    with refusal if tells else contextlib.nullcontext():
        timm.models.save_for_hf(export, tmp_path / "hub")
    if not tells:
        with pytest.raises(RuntimeError, match=f"subnet of {DINO}"):
            timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)


@pytest.mark.skipif(not tells, reason="this timm forgets the arguments")
def test_a_regular_subnet_is_saved_and_loaded_by_timm_alone(tmp_path):
    name = "vit_tiny_patch16_224"
    model, x = original(name)
    wrapped = wrap(model, embed_dim=["50%", "100%"], depth="auto")
    sample_subnet(wrapped, policy="smallest")
    irregular = export_subnet(wrapped)  # 24 channels, heads of 16
    with pytest.raises(ValueError, match="save_subnet writes it"):
        timm.models.save_for_hf(irregular, tmp_path / "irregular")
    other = wrap(original(name)[0], num_heads=None, mlp_ratio=["50%", "100%"], depth="auto")
    sample_subnet(other, policy="smallest")
    export = export_subnet(other)
    assert export.pretrained_cfg["architecture"] == name
    export.reset_classifier(7)
    timm.models.save_for_hf(pickle.loads(pickle.dumps(export)), tmp_path / "hub", safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert torch.equal(loaded(x), export.eval()(x))
    assert repr(loaded) == repr(export)
    save_subnet(export, tmp_path / "net")
    timm.models.save_for_hf(load_subnet(tmp_path / "net"), tmp_path / "hub2")
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path / 'hub2'}", pretrained=True).eval()(x), export(x))


@pytest.mark.skipif(not tells, reason="this timm forgets the arguments")
def test_arguments_that_are_no_data_stay_in_the_way(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", norm_layer=nn.LayerNorm, **SMALL["vit_tiny_patch16_224"][0])
    wrapped = wrap(model, num_heads=None, mlp_ratio=["50%", "100%"])
    sample_subnet(wrapped, policy="smallest")
    with pytest.raises(ValueError, match="norm_layer"):
        timm.models.save_for_hf(export_subnet(wrapped), tmp_path / "hub")


def test_timm_builds_what_was_registered_with_its_own_options(tmp_path):
    export, x = an_export()
    save_subnet(export, tmp_path / "a_saved_eva", source=source())
    assert register(tmp_path / "a_saved_eva") == "a_saved_eva"
    model = timm.create_model("a_saved_eva", pretrained=True).eval()
    assert torch.equal(model(x), export(x))
    fresh = timm.create_model("a_saved_eva", in_chans=1, drop_rate=0.25, drop_path_rate=0.5, num_classes=3)
    assert fresh(x[:, :1]).shape == (2, 3)
    assert fresh.head_drop.p == 0.25
    rates = timm.create_model("a_saved_eva", pretrained=True, drop_rate=0.0, in_chans=3).eval()
    assert torch.equal(rates(x), export(x))
    features = timm.create_model("a_saved_eva", pretrained=True, features_only=True, out_indices=[0]).eval()
    assert torch.equal(features(x)[0], export.forward_intermediates(x, indices=[0], intermediates_only=True)[0])
    with pytest.raises(ChoiceError, match=r"a_saved_eva: expected one of 16 from num_classes .*, got 'depth'"):
        timm.create_model("a_saved_eva", depth=3)
    grey = timm.create_model("a_saved_eva", pretrained=True, in_chans=1).eval()  # as timm: the sum over the channels
    assert relative_error(grey(x[:, :1]), export(x[:, :1].expand(-1, 3, -1, -1))) <= 1e-5


def register_both(tmp_path):
    """Return the names of a network that knows its origin, of one that is told size by size, and their exports."""
    exports = {}
    for name in ("of_an_origin", "size_by_size"):
        export, x = an_export("vit_tiny_patch16_224")
        if name == "size_by_size":
            export.made_from["source"] = None
        save_subnet(export, tmp_path / name, source=source("vit_tiny_patch16_224") if name == "of_an_origin" else None)
        exports[register(tmp_path / name, f"{name}_{tmp_path.name}")] = export
    assert ["source" in config_of(tmp_path / name)["model"] for name in ("of_an_origin", "size_by_size")] == [True, False]
    return exports, x


def test_what_the_scripts_of_timm_send_is_taken(tmp_path):
    exports, x = register_both(tmp_path)
    for name, export in exports.items():
        sent = {"in_chans": 3, "drop_rate": 0.25, "img_size": 32, "dynamic_img_size": True, "cache_dir": tmp_path / "none"}
        model = timm.create_model(name, pretrained=True, num_classes=5, scriptable=False, checkpoint_path="", **sent)
        assert (model.head_drop.p, model.dynamic_img_size) == (0.25, True)
        assert torch.equal(model.eval()(x), export(x))
        assert timm.create_model(name, dtype=torch.float64, pretrained=True).head.weight.dtype == torch.float64
        assert timm.create_model(name, device="meta", pretrained=True).head.weight.is_meta
        features = timm.create_model(name, pretrained=True, features_only=True, out_indices=[0]).eval()
        assert torch.equal(features(x)[0], export.forward_intermediates(x, indices=[0], intermediates_only=True)[0])
        assert timm.create_model(name, in_chans=1).eval()(x[:, :1]).shape == (2, 5)
        grey = timm.create_model(name, pretrained=True, in_chans=1).eval()  # as timm: the sum over the channels
        torch.testing.assert_close(grey(x[:, :1]), export(x[:, :1].expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
        with pytest.raises(ChoiceError, match=r"_\w+: .*'dtype': 'wide'"):
            timm.create_model(name, dtype="wide")


def test_rates_inside_blocks_need_the_origin(tmp_path):
    (origin, sizes), _ = register_both(tmp_path)
    rate = timm.create_model(origin, drop_path_rate=0.5).blocks[-1].drop_path1
    assert isinstance(rate, nn.Identity) or rate.drop_prob == 0.5
    with pytest.raises(ChoiceError, match=r"size_by_size: 'drop_path_rate': did you mean 'drop_rate'"):
        timm.create_model(sizes, drop_path_rate=0.5)


# -- hostile files -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origins") / "net"
    save_subnet(an_export()[0], folder, source=source())
    return folder


def deeper(m):
    m["source"]["arguments"]["depth"] = 10**7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(surprise=1), "model: unknown field, .* got 'surprise'"),
        (lambda m: m.pop("subnets"), "model: missing subnets$"),
        (lambda m: m.update(source="timm"), "model: source: expected an object, got 'timm'"),
        (lambda m: m["source"].update(library="os"), "source: library: expected timm or transformers, got 'os'"),
        (lambda m: m["source"].update(name="local-dir:/tmp"), "source: name: expected a model of timm"),
        (lambda m: m["source"].update(name="hf-hub:timm/vit_tiny"), "source: name: expected a model of timm"),
        (lambda m: m["source"].update(name="resnet18", arguments={}), "cannot be wrapped|describes no network"),
        (lambda m: m["source"].update(name="vit_tiny_patch16_224"), "describes no network|expected the name of|name of a"),
        (lambda m: m["source"]["arguments"].update(pretrained=True), "those of the model alone, got 'pretrained'"),
        (lambda m: m["source"]["arguments"].update(checkpoint_path="x.pth"), "got 'checkpoint_path'"),
        (lambda m: m["source"]["arguments"].update(cache_dir="x"), "got 'cache_dir'"),
        (lambda m: m["source"]["arguments"].update(features_only=True), "got 'features_only'"),
        (lambda m: m["source"]["arguments"].update(surprise=1), r"describes no network \(TypeError"),
        (lambda m: m["source"]["arguments"].update(embed_dim="wide"), "describes no network"),
        (lambda m: m["source"]["arguments"].update(embed_dim=10**30), "embed_dim: expected numbers up to"),
        (lambda m: m["source"]["arguments"].update(embed_dim=float("nan")), "embed_dim: expected .*, got nan"),
        (lambda m: m["source"]["arguments"].update(embed_dim=10**400), "embed_dim: expected numbers up to"),
        (lambda m: m["source"]["arguments"].update(embed_dim=-float("inf")), "embed_dim: expected .*, got -inf"),
        (lambda m: m["source"]["arguments"].update(embed_dim=0), "describes no network"),
        (lambda m: m["source"]["arguments"].update(embed_dim=2**22 * 3), "a network of|describes no network|a list of"),
        (deeper, "arguments: depth: expected numbers up to 1024, got 10000000"),
        (lambda m: m["subnets"][0].update(depth=0), "subnets: depth: expected a positive int, got 0"),
        (lambda m: m["subnets"][0].update(depth=3), "describes no network"),
        (lambda m: m["subnets"][0].update(embed_dim=47), "expected shape|describes no network"),
        (lambda m: m["subnets"][0].update(surprise=3), "describes no network .*surprise"),
        (lambda m: m.update(subnets=m["subnets"] * 17), "subnets: expected a list"),
        (lambda m: m.update(subnets=[1]), "subnets: expected objects, got 1"),
        (lambda m: m.update(subnets=[]), "expected shape|missing tensors"),
        (lambda m: m.update(pretrained_cfg={"mean": [0.5] * 10**5}), "pretrained_cfg: expected at most 65536 characters"),
    ],
)
def test_a_config_that_describes_no_network_is_refused(saved, change, message, tmp_path):
    shutil.copytree(saved, tmp_path / "net")
    config = config_of(saved)
    change(config["model"])
    config["hash"] = _hash(config)
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileError, match=message):
        load_subnet(tmp_path / "net")


def test_quantised_networks_are_refused(tmp_path):
    class Packed(nn.Linear):
        def get_extra_state(self):
            return {"packed": torch.qint8}

    export, _ = an_export("vit_tiny_patch16_224")
    export.head = Packed(export.embed_dim, 5)
    with pytest.raises(FileError, match=r"head\._extra_state: a dict and not a tensor"):
        save_subnet(export, tmp_path / "net")


def test_a_model_straight_from_timm(tmp_path):
    model, x = original()
    if not tells:
        pytest.skip("this timm forgets the arguments")
    save_subnet(model, tmp_path / "net")
    assert relative_error(load_subnet(tmp_path / "net").eval()(x), model(x)) == 0


# -- transformers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["ViTConfig", "Dinov2Config", "SwinConfig"])
def test_towers_of_transformers(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    if config == "SwinConfig":
        sizes = {"embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
    kind = getattr(transformers, config.replace("Config", "Model"))
    if not is_known(f"{kind.__module__}.{kind.__qualname__}"):
        pytest.skip("no record")
    x = torch.randn(2, 3, 16, 16)
    model = randomize(kind(getattr(transformers, config)(image_size=16, patch_size=2, **sizes))).eval()
    wrapped = wrap(model, embed_dim=["50%", "100%"], depth="auto")
    for policy in ("smallest", "largest"):
        sample_subnet(wrapped, policy=policy)
        export = export_subnet(wrapped)
        save_subnet(export, tmp_path / policy)
        loaded = load_subnet(tmp_path / policy).eval()
        assert torch.equal(loaded(x).last_hidden_state, export(x).last_hidden_state)
    native = kind.from_pretrained(tmp_path / "largest").eval()  # one that a constructor builds
    assert torch.equal(native(x).last_hidden_state, model(x).last_hidden_state)
    config_file = tmp_path / "smallest" / "config.json"
    told = json.loads(config_file.read_text())
    told["model"]["source"]["arguments"]["auto_map"] = {"AutoModel": "elsewhere/code"}
    told["hash"] = _hash(told)
    config_file.write_text(json.dumps(told))
    with pytest.raises(FileError, match="those of the model alone, got 'auto_map'"):
        load_subnet(tmp_path / "smallest")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", ["cast", "made"])
def test_what_transformers_keeps_in_single_precision_is_so_again(how, dtype, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind = transformers.DINOv3ViTModel
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.DINOv3ViTConfig(image_size=32, patch_size=8, **sizes)
    model = kind(config).to(dtype) if how == "cast" else kind._from_config(config, dtype=dtype)
    assert model.rope_embeddings.inv_freq.dtype == (dtype if how == "cast" else torch.float32)
    export = export_subnet(wrap(model)).eval()
    save_subnet(export, tmp_path / "net")
    loaded, x = load_subnet(tmp_path / "net").eval(), torch.randn(2, 3, 32, 32, dtype=dtype)
    assert loaded.rope_embeddings.inv_freq.dtype == model.rope_embeddings.inv_freq.dtype
    assert torch.equal(loaded(x).last_hidden_state, export(x).last_hidden_state)

"""Networks of timm with blocks of different sizes as files, and by timm.create_model."""

import json
import shutil

import pytest
import torch

from tests.contract import randomize
from tests.wrapping.test_timm_vit import KINDS, images, original
from vitas import (
    ChoiceError,
    activate_subnet,
    export_subnet,
    load_subnet,
    load_superformer,
    register,
    sample_subnet,
    save_subnet,
    save_superformer,
    wrap,
)
from vitas.errors import FileError
from vitas.export.network import _hash

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras


def an_export(kind="vit", seed=0):
    """Return an export that does not know of what it was made, as older ones do not: a file then says all of its sizes."""
    wrapped = wrap(original(kind), embed_dim="auto", depth="auto")
    sample_subnet(wrapped, generator=torch.Generator().manual_seed(seed))
    export = export_subnet(wrapped)
    del export.made_from
    return export


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back_bit_by_bit(kind, tmp_path):
    export = an_export(kind)
    save_subnet(export, tmp_path / "net")
    loaded = load_subnet(tmp_path / "net").eval()
    assert type(loaded) is type(export)
    assert repr(loaded) == repr(export)
    assert torch.equal(loaded(images(export)), export(images(export)))
    assert loaded.pretrained_cfg == export.pretrained_cfg
    assert loaded.feature_info == export.feature_info
    assert timm.data.resolve_model_data_config(loaded) == timm.data.resolve_model_data_config(export)
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def test_a_model_straight_from_timm_is_saved_too(tmp_path):
    model = original("distilled")
    save_subnet(model, tmp_path / "net")
    assert torch.equal(load_subnet(tmp_path / "net").eval()(images(model)), model(images(model)))


def test_another_image_size_on_loading(tmp_path):
    export = an_export()
    save_subnet(export, tmp_path / "net")
    larger = load_subnet(tmp_path / "net", img_size=(48, 64)).eval()
    export.set_input_size(img_size=(48, 64))
    x = images(export)
    assert torch.equal(larger(x), export(x))


def test_a_changed_network_is_not_saved(tmp_path):
    export = an_export()
    export.blocks[0].attn.scale = 0.5
    with pytest.raises(FileError, match=r"cannot express: blocks\.0\.attn\.scale"):
        save_subnet(export, tmp_path / "net")
    export = an_export()
    export.blocks[0].mlp.act = torch.nn.Hardswish()
    with pytest.raises(FileError, match="Hardswish is none of"):
        save_subnet(export, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def changed(tmp_path, change, rehash=True):
    folder = tmp_path / "net"
    if not folder.exists():
        save_subnet(an_export(), folder)
    broken = tmp_path / "broken"
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(folder, broken)
    config = json.loads((broken / "config.json").read_text())
    change(config["model"])
    if rehash:
        config["hash"] = _hash(config)
    (broken / "config.json").write_text(json.dumps(config))
    return broken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(embed_dim="wide"), "model: embed_dim: expected a positive int, got 'wide'"),
        (lambda m: m.update(embed_dim=-3), "embed_dim: expected a positive int, got -3"),
        (lambda m: m.update(embed_dim=10**30), "embed_dim: expected an int of at most 16777216"),
        (lambda m: m.update(embed_dim=True), "embed_dim"),
        (lambda m: m.update(embed_dim=m["embed_dim"] * 2), "expected shape"),
        (lambda m: m.update(num_classes=5.0), "num_classes: expected an int of at least 0, got 5.0"),
        (lambda m: m.update(global_pool="most"), "global_pool"),
        (lambda m: m.update(surprise=1), "model: unknown field, .* got 'surprise'"),
        (lambda m: m.pop("norm"), "model: missing norm$"),
        (lambda m: m.update(blocks=[]), "blocks: expected a list of 1 to 128, got"),
        (lambda m: m.update(blocks=m["blocks"] * 600), "blocks: expected a list of 1 to 128, got"),
        (
            lambda m: m["norm"].update({"class": "os.system"}),
            "model: norm.class: expected one of torch.LayerNorm, .*, got 'os.system'",
        ),
        (
            lambda m: m["blocks"][0].update({"class": "torch.Linear"}),
            "blocks.0.class: expected one of timm.Block, timm.ResPostBlock, got 'torch.Linear'",
        ),
        (lambda m: m["blocks"][0]["attn"].update(num_heads=0), "blocks.0.attn.num_heads: expected a positive int, got 0"),
        (lambda m: m["blocks"][0]["attn"].update(num_heads=7), "expected shape"),
        (
            lambda m: m["blocks"][0]["mlp"].update(act="builtins.eval"),
            "blocks.0.mlp.act: expected one of .*, got 'builtins.eval'",
        ),
        (lambda m: m["blocks"][0].update(drop_path=2.5), r"blocks.0.drop_path: expected a number in \[0, 1\), got 2.5"),
        (lambda m: m.update(pretrained_cfg=[]), "pretrained_cfg: expected an object"),
        (lambda m: m.update(pretrained_cfg={"mean": [0.5] * 10**5}), "pretrained_cfg: expected at most 65536 characters"),
    ],
)
def test_a_config_that_describes_no_network_is_refused(tmp_path, change, message):
    with pytest.raises(FileError, match=message):
        load_subnet(changed(tmp_path, change))


def test_the_most_blocks_that_are_built(tmp_path):
    folder = changed(tmp_path, lambda m: m.update(blocks=m["blocks"][:1] * 128))
    with pytest.raises(FileError, match="missing tensors"):  # built, that is
        load_subnet(folder)
    with pytest.raises(FileError, match="blocks: expected a list of 1 to 128, got"):
        load_subnet(changed(tmp_path, lambda m: m.update(blocks=m["blocks"][:1] * 129)))


def test_a_file_that_was_changed_is_refused(tmp_path):
    with pytest.raises(FileError, match="hash"):
        load_subnet(changed(tmp_path, lambda m: m.update(num_classes=7), rehash=False))


def test_loading_needs_only_classes_that_are_named(tmp_path, monkeypatch):
    import pickle

    def no_pickle(*_, **__):
        raise AssertionError("unpickled")

    save_subnet(an_export(), tmp_path / "net")
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, no_pickle)
    monkeypatch.setattr(torch, "load", no_pickle)
    load_subnet(tmp_path / "net")


# -- superformers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapped_model_comes_back_with_its_weights(kind, tmp_path):
    def wrapped(seed):
        return wrap(randomize(original(kind), seed), embed_dim="auto", depth="auto")

    saved, loaded = wrapped(0), wrapped(1)
    sample_subnet(saved, policy="smallest")
    save_superformer(saved, tmp_path / "wrapped.safetensors")
    load_superformer(loaded, tmp_path / "wrapped.safetensors")
    x = images(saved)
    for policy in ("smallest", "random", "largest"):
        subnet = sample_subnet(saved, policy=policy)
        activate_subnet(loaded, subnet)
        assert torch.equal(loaded(x), saved(x))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        ({}, {}, "another search space; only one of both has the choices embed_dim"),
        ({}, {"embed_dim": [96, 192], "sharing": "ordinal"}, "another search space, different in embed_dim"),
        ({"num_classes": 7}, {"embed_dim": [96, 192]}, r"head\.weight: expected shape \(7, 192\), got \(5, 192\)"),
        ({"qk_norm": True}, {"embed_dim": [96, 192]}, r"missing tensors: blocks\.0\.attn\.k_norm"),
        ({"num_heads": 6}, {"embed_dim": [96, 192]}, r"blocks\.0\.attn\.heads: expected 6, got 3"),
        ({"img_size": 64}, {"embed_dim": [96, 192]}, r"model\.set_input_size\(\[32, 32\]\) before loading"),
    ],
)
def test_weights_of_another_wrapped_model_are_refused(build, options, message, tmp_path):
    path = tmp_path / "wrapped.safetensors"
    save_superformer(wrap(original(), embed_dim=[96, 192], num_heads=None), path)
    model = wrap(original(**build), num_heads=None, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FileError, match=message):
        load_superformer(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    if "img_size" in build:  # as the message says
        model.set_input_size([32, 32])
        load_superformer(model, path)


# -- timm.create_model -------------------------------------------------------------------------------------------------


def test_timm_builds_what_was_registered(tmp_path):
    export = an_export("distilled").eval()
    save_subnet(export, tmp_path / "a_saved_vit")
    assert register(tmp_path / "a_saved_vit") == "a_saved_vit"
    assert register(tmp_path / "a_saved_vit") == "a_saved_vit"  # once more does no harm
    assert timm.list_models("a_saved_vit") == ["a_saved_vit"]
    x = images(export)
    model = timm.create_model("a_saved_vit", pretrained=True).eval()
    assert torch.equal(model(x), export(x))
    fresh = timm.create_model("a_saved_vit").eval()
    assert not torch.equal(fresh(x), export(x))
    assert repr(fresh) == repr(model)
    other = timm.create_model("a_saved_vit", pretrained=True, num_classes=9, img_size=64)
    assert other.eval()(torch.randn(2, 3, 64, 64)).shape == (2, 9)
    with pytest.raises(ChoiceError, match=r"expected one of 13 from num_classes .*, got 'depth'"):
        timm.create_model("a_saved_vit", depth=3)
    again = wrap(model)  # what was found can be searched further
    assert torch.equal(again.eval()(x), export(x))


def test_names_that_timm_cannot_take_are_refused(tmp_path):
    save_subnet(randomize(an_export()), tmp_path / "net")
    with pytest.raises(ChoiceError, match="a word of letters"):
        register(tmp_path / "net", "my.net")
    with pytest.raises(ChoiceError, match="a model of timm"):
        register(tmp_path / "net", "vit_tiny_patch16_224")
    with pytest.raises(FileError, match="cannot be read"):
        register(tmp_path / "nothing")


def test_networks_that_are_not_timms_are_not_registered(tmp_path):
    import vitas

    plain = export_subnet(vitas.create_superformer("deit_micro", img_size=32))
    save_subnet(plain, tmp_path / "plain")
    with pytest.raises(FileError, match="not a network of timm"):
        register(tmp_path / "plain")

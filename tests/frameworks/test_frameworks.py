"""Real accelerate, Lightning Fabric and peft around searchable models and exports; each test runs where its own installs."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tests.contract import randomize, relative_error
from vitas import (
    ChoiceError,
    activate_subnet,
    create_superformer,
    export_subnet,
    load_subnet,
    sample_subnet,
    save_subnet,
    search_space,
    wrap,
)
from vitas.errors import ExportError, WrapError

timm = pytest.importorskip("timm")
pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore")]

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 3])


def original():
    options = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 5}
    return randomize(timm.create_model("vit_tiny_patch16_224", **options))


def wrapped():
    return wrap(original(), embed_dim=["50%", "100%"])


def superformer():
    return randomize(create_superformer("deit_micro", num_classes=5, img_size=32))


every_model = pytest.mark.parametrize("build", [wrapped, superformer])


def narrow(model):
    subnet = search_space(model).smallest()
    activate_subnet(model, subnet)
    return subnet


def check_own(export, model):
    """Check that an export computes what the model does, with weights of its own, all of which are trained."""
    assert relative_error(export.eval()(X), model.eval()(X)) <= 1e-5
    text = pickle.dumps(copy.deepcopy(export))
    assert not any(word in text for word in (b"vitas.nn", b"vitas.wrapping", b"accelerate", b"lightning", b"peft"))
    before = export(X)
    before.square().sum().backward()
    assert all(parameter.grad is not None for parameter in export.parameters())
    with torch.no_grad():
        for parameter in export.parameters():
            parameter.zero_()
    assert (export(X) == 0).all()


# -- accelerate --------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prepares_trains_and_what_is_unwrapped_exports(build, precision):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(mixed_precision=precision, cpu=True)
    bare = build()
    model, optimizer = accelerator.prepare(bare, torch.optim.AdamW(bare.parameters(), lr=1e-3))
    for _ in range(2):
        sample_subnet(model)
        accelerator.backward(nn.functional.cross_entropy(model(X), LABELS))
        optimizer.step()
        optimizer.zero_grad()
    subnet = narrow(model)
    if precision == "bf16":  # a forward bound to the model lies on it
        with pytest.raises(ExportError, match="has a forward of its own"):
            export_subnet(model, subnet)
    inner = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    vars(inner).pop("forward", None)
    check_own(export_subnet(inner, subnet), inner)


@every_model
def test_hooks_of_accelerate_are_refused_and_can_be_taken_off(build):
    hooks = pytest.importorskip("accelerate.hooks")
    model = build()
    narrow(model)
    hooks.add_hook_to_module(model, hooks.ModelHook())
    with pytest.raises(ExportError, match="has a forward of its own"):
        export_subnet(model)
    hooks.remove_hook_from_module(model)
    vars(model).pop("forward", None)
    check_own(export_subnet(model), model)


# -- Lightning Fabric --------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric_sets_up_samples_trains_and_exports(build, precision):
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1, precision=precision)
    bare = build()
    names = list(search_space(bare).choices)
    model, optimizer = fabric.setup(bare, torch.optim.AdamW(bare.parameters(), lr=1e-3))
    assert list(search_space(model).choices) == names
    for _ in range(2):
        sample_subnet(model)
        fabric.backward(nn.functional.cross_entropy(model(X), LABELS))
        optimizer.step()
        optimizer.zero_grad()
    export = export_subnet(model, narrow(model))
    assert type(export).__module__.partition(".")[0] in ("timm", "vitas")
    check_own(export, bare)


# -- peft --------------------------------------------------------------------------------------------------------------


def adapted(model, layers=("qkv", "fc1", "fc2")):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=list(layers), init_lora_weights=False))


@every_model
def test_lora_on_an_export_trains_merges_and_travels(build, tmp_path):
    pytest.importorskip("peft")
    model = build()
    narrow(model)
    export = export_subnet(model).eval()
    layers = ("qkv", "fc1", "fc2") if build is wrapped else ("fc1", "fc2")
    tuned = adapted(export, layers)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    nn.functional.cross_entropy(tuned(X), LABELS).backward()
    optimizer.step()
    expected = tuned.eval()(X)
    merged = tuned.merge_and_unload()
    assert relative_error(merged(X), expected) <= 1e-5
    save_subnet(merged, tmp_path / "net")
    assert torch.equal(load_subnet(tmp_path / "net").eval()(X), merged(X))


@every_model
@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config"])
def test_adapters_on_searchable_layers_are_refused_with_the_reason(build, kind):
    peft = pytest.importorskip("peft")
    model = build()
    config = {"LoraConfig": {"r": 2}, "IA3Config": {"feedforward_modules": ["fc2"]}}[kind]
    tuned = peft.get_peft_model(model, getattr(peft, kind)(target_modules=["fc1", "fc2"], **config))
    for do in (sample_subnet, export_subnet):
        with pytest.raises(ChoiceError, match=r"the adapter on .*fc1 being so wide"):
            do(tuned, **({"policy": "smallest"} if do is sample_subnet else {"subnet": search_space(tuned).smallest()}))
    merged = tuned.merge_and_unload()
    activate_subnet(merged, search_space(merged).smallest())
    assert relative_error(export_subnet(merged).eval()(X), merged.eval()(X)) <= 1e-5


def test_an_adapted_model_is_not_wrapped():
    tuned = adapted(original())
    for model in (tuned.base_model.model, tuned):
        with pytest.raises(WrapError, match=r"blocks\.0\.attn\.qkv is an adapter \(peft\); merge"):
            wrap(model)
    assert isinstance(wrap(tuned.merge_and_unload()), nn.Module)

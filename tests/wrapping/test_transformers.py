"""Towers of transformers by their records: exact exports and counts, the ablation oracle, configs that say the truth."""

import pytest
import torch

from tests.contract import randomize, relative_error
from tests.wrapping.checks import (
    check_checkpointing,
    check_copies,
    check_counts,
    check_exports,
    check_gradients,
    check_silent_units,
    some,
    tensors,
)
from vitas import ChoiceError, accuracy, export_subnet, load_subnet, sample_subnet, save_subnet, search_space, wrap
from vitas.errors import WrapError
from vitas.train import distill_loss

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.extras

ROW = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
MLP = {**ROW, "intermediate_size": 96}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
CLASSES = {  # the class of the model: (the class of its config, arguments)
    "ViTModel": ("ViTConfig", MLP),
    "ViTForImageClassification": ("ViTConfig", MLP),
    "ViTForMaskedImageModeling": ("ViTConfig", {**MLP, "encoder_stride": 4}),
    "DeiTModel": ("DeiTConfig", MLP),
    "DeiTForImageClassification": ("DeiTConfig", MLP),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", MLP),
    "DeiTForMaskedImageModeling": ("DeiTConfig", {**MLP, "encoder_stride": 4}),
    "Dinov2Model": ("Dinov2Config", {**ROW, "drop_path_rate": 0.2}),
    "Dinov2ForImageClassification": ("Dinov2Config", {**ROW, "use_swiglu_ffn": True}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {**ROW, "use_swiglu_ffn": True}),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", ROW),
    "DINOv3ViTModel": ("DINOv3ViTConfig", {**MLP, "num_register_tokens": 2, "use_gated_mlp": True}),
    "CLIPVisionModel": ("CLIPVisionConfig", MLP),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", {**MLP, "projection_dim": 20}),
    "CLIPForImageClassification": ("CLIPConfig", {"vision_config": MLP}),
    "SiglipVisionModel": ("SiglipVisionConfig", MLP),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": MLP}),
    "SwinModel": ("SwinConfig", SWIN),
    "SwinForImageClassification": ("SwinConfig", {**SWIN, "use_absolute_embeddings": True}),
    "Swinv2Model": ("Swinv2Config", SWIN),
    "Swinv2ForImageClassification": ("Swinv2Config", SWIN),
}
every_class = pytest.mark.parametrize("name", CLASSES)


def original(name):
    config, arguments = CLASSES[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**arguments))
    side = dict(arguments.get("vision_config", arguments))["image_size"]
    return randomize(model).eval(), torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@every_class
def test_the_largest_subnet_is_the_model_and_exports_equal_the_active_path(name):
    check_exports(*original(name))


@every_class
def test_a_subnet_is_the_whole_model_without_the_units_that_it_leaves_out(name):
    check_silent_units(*original(name))


@every_class
def test_counts_by_running_add_up(name):
    check_counts(*original(name))


def test_a_parameter_without_numbers_is_in_nobodys_way():
    config = transformers.DINOv3ViTConfig(**MLP)
    assert config.num_register_tokens == 0
    model, x = randomize(transformers.DINOv3ViTModel(config)).eval(), torch.randn(2, 3, 16, 16)
    check_exports(model, x)
    check_silent_units(model, x)


# -- what transformers promises of its models --------------------------------------------------------------------------

FEW = ["ViTModel", "Dinov2ForImageClassification", "DINOv3ViTModel", "SiglipVisionModel", "SwinForImageClassification"]
some_classes = pytest.mark.parametrize("name", FEW)


@some_classes
def test_gradients_are_those_of_the_export(name):
    check_gradients(*original(name))


@some_classes
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_hidden_states_and_attentions_are_those_of_the_active_blocks(name, attention):
    model, x = original(name)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    asked = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    for subnet in some(wrapped, 2):
        export = export_subnet(wrapped)
        for one in (wrapped, export):
            one.set_attn_implementation(attention)
        got, expected = wrapped(pixel_values=x, **asked), export(pixel_values=x, **asked)
        assert got.keys() == expected.keys()
        stages = sum(choice.endswith("depth") for choice in subnet)
        assert len(got.hidden_states) == 1 + (subnet["depth"] if stages == 1 else stages)
        if attention == "eager":
            assert len(got.attentions) == len(got.hidden_states) - 1
        for a, b in zip(tensors(got), tensors(expected), strict=True):
            assert relative_error(a, b) <= 1e-5


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@some_classes
def test_copies_and_checkpointing(name):
    model, x = original(name)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    check_copies(wrapped, x)
    check_checkpointing(wrapped, x, wrapped.gradient_checkpointing_enable)
    export = export_subnet(wrapped)
    sum(output.square().sum() for output in tensors(export(x.double()))).backward()  # it checkpoints too


def with_sizes(wrapped, **sizes):
    """Return a subnet of these sizes in all blocks, or in those of each stage; what is not said is the largest."""
    subnet = dict(search_space(wrapped).largest())
    for name in subnet:
        parts = name.split(".")
        if (size := sizes.get(parts[-1])) is not None:
            subnet[name] = size[int(parts[1])] if isinstance(size, list) else size
    return search_space(wrapped).subnet(subnet)


def regular(name):
    """Return sizes that a config can say: heads of 12 channels (Swin: of 6); in a SigLIP the MLP whole, as its pooling's."""
    if name.startswith("Swin"):
        return {"embed_dim": [6, 12], "num_heads": [1, 2], "mlp_dim": [24, 48], "depth": [1, 2]}
    gated = CLASSES[name][1].get("use_swiglu_ffn")
    hidden = 96 if gated or name.startswith("Siglip") else 144 if name.startswith("Dinov2") else 72
    return {"embed_dim": 36, "num_heads": 3, "mlp_dim": hidden, "depth": 1}


@every_class
def test_a_regular_export_is_saved_and_loaded_by_the_library(name, tmp_path):
    model, x = original(name)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    export = export_subnet(wrapped, with_sizes(wrapped, **regular(name)), verify=x)
    configs = [export.config, *(getattr(export.config, tower) for tower in export.config.sub_configs)]
    assert all(any(part.config is one for one in configs) for part in export.modules() if "config" in vars(part))
    export.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    for parameter in loaded.parameters():  # lies as it lies in the file, at addresses where some processors round otherwise
        parameter.data = parameter.data.clone()
    for a, b in zip(tensors(loaded(x)), tensors(export(x)), strict=True):
        assert torch.equal(a, b)


@some_classes
def test_what_a_config_cannot_say_is_refused_when_it_is_loaded(name, tmp_path):
    model, x = original(name)
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    sizes = regular(name)
    swin = name.startswith("Swin")
    for what, own in {"heads": {"num_heads": [2, 2] if swin else 2}, "hidden": {} if swin else {"depth": 2}}.items():
        subnet = dict(with_sizes(wrapped, **{**sizes, **own}))
        if what == "hidden":
            first = next(choice for choice in subnet if choice.endswith("blocks.0.mlp_dim"))
            subnet[first] = search_space(wrapped).choices[first].values[0]
        export = export_subnet(wrapped, subnet)
        export.save_pretrained(tmp_path / what)
        if what == "heads" and name.startswith(("ViT", "Dinov2")):  # they take heads of any width
            assert torch.equal(type(model).from_pretrained(tmp_path / what).eval()(x)[0], export(x)[0])
            continue
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            type(model).from_pretrained(tmp_path / what)


def test_a_wrapped_model_saves_the_whole_one(tmp_path):
    model, x = original("ViTForImageClassification")
    wrapped = wrap(model, embed_dim="auto", depth="auto")
    sample_subnet(wrapped, policy="smallest")
    wrapped.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(x).logits, model(x).logits)


def test_attention_pooling_keeps_its_heads_whole():
    with pytest.raises(ChoiceError, match="heads of 12 channels, which do not divide 30"):
        wrap(original("SiglipVisionModel")[0], embed_dim=[30, 48])


def test_stochastic_depth_is_laid_over_the_blocks_that_run():
    model = transformers.SwinModel(transformers.SwinConfig(**{**SWIN, "depths": [2, 4], "drop_path_rate": 0.3}))
    wrapped = wrap(model, depth="auto")
    export = export_subnet(wrapped, search_space(wrapped).smallest())
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in export.encoder.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.15, 0.3])


def test_outputs_of_transformers_are_scored_and_distilled():
    model, x = original("ViTForImageClassification")
    wrapped = wrap(model)
    assert accuracy([(x, model(x).logits.argmax(dim=1))])(wrapped) == 1.0
    with torch.no_grad():
        assert float(distill_loss(wrapped(x), model(x), temperature=2.0)) == pytest.approx(0.0, abs=1e-6)


def test_a_part_of_ones_own_is_refused_with_its_path():
    model, _ = original("ViTModel")
    model.layers[1].mlp = torch.nn.Sequential(torch.nn.Linear(48, 48))
    with pytest.raises(WrapError, match=r"layers\.1\.mlp\.0"):
        wrap(model)


def test_the_config_is_that_of_the_blocks_that_run():
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=16
    )
    wrapped = wrap(transformers.ViTModel(config).eval(), depth=[2, 3, 4], leave=[0, 1])
    sizes = {f"blocks.{i}.{name}": value for i in (1, 2, 3) for name, value in (("num_heads", 2), ("mlp_dim", 24))}
    export = export_subnet(wrapped, search_space(wrapped).subnet({"depth": 3, **sizes}))
    told = export.config
    assert (told.num_hidden_layers, told.num_attention_heads, told.intermediate_size) == (3, 2, 24)


NAMED = {0: "cat", 1: "dog", 2: "owl"}


def _other_classifier(model):
    width = model.classifier.in_features
    model.classifier = torch.nn.Linear(width, 3)


def _named_labels(model):
    _other_classifier(model)
    model.config.id2label = NAMED


def _named_only(model):
    model.config.id2label = {0: "cat", 1: "dog"}


@pytest.mark.parametrize("when", ["wrapped", "wrapped again", "exported"])
@pytest.mark.parametrize("change", [_other_classifier, _named_labels, _named_only])
def test_a_config_or_classifier_that_was_changed_is_in_every_file(change, when, tmp_path):
    model, x = original("ViTForImageClassification")
    wrapped = wrap(model, embed_dim="auto")
    if when == "wrapped again":
        wrapped = wrap(export_subnet(wrapped, search_space(wrapped).smallest()), embed_dim="auto")
    if when != "exported":
        change(wrapped)
    sample_subnet(wrapped, policy="smallest")
    export = export_subnet(wrapped)
    if when == "exported":
        if change is not _named_only:
            export.num_labels = 3
            export.config.num_labels = 3
        change(export)
    labels = {0: "cat", 1: "dog"} if change is _named_only else NAMED
    labels = {i: f"LABEL_{i}" for i in labels} if change is _other_classifier else labels
    save_subnet(export, tmp_path / "ours")
    export.save_pretrained(tmp_path / "theirs")
    for loaded in (
        load_subnet(tmp_path / "ours"),
        *(type(model).from_pretrained(tmp_path / name) for name in ("ours", "theirs")),
    ):
        assert loaded.config.id2label == labels
        assert loaded.num_labels == len(labels)
        assert torch.equal(loaded.eval()(x).logits, export.eval()(x).logits)

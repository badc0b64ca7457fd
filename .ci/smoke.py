"""Use an installed vitas as a newcomer would: python .ci/smoke.py EXTRA, where EXTRA may be "core".

Run it outside the checkout, in an environment that holds the wheel and, besides the core needs, only what EXTRA names.
"""

import importlib.metadata
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch

import vitas

ROOTS = {  # what each extra brings that a user of it relies on
    "timm": ["timm", "huggingface_hub"],
    "transformers": ["transformers", "huggingface_hub"],
    "hub": ["huggingface_hub"],
    "search": ["optuna", "pandas"],
    "plot": ["matplotlib"],
    "onnx": ["onnx", "onnxruntime", "onnxscript"],
}


def core() -> tuple[torch.nn.Module, torch.Tensor]:
    """Train a step, sample inside a budget, count, export, save and load."""
    model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16).eval()
    images = torch.randn(2, 3, 16, 16)
    subnet = vitas.sample_subnet(model, flops="50%")
    model(images).square().mean().backward()
    assert vitas.count_flops(model, subnet).total > 0 < vitas.count_params(model, subnet)
    small = vitas.export_subnet(model, subnet, verify=images)
    with tempfile.TemporaryDirectory() as folder:
        vitas.save_subnet(small, Path(folder) / "small")
        again = vitas.load_subnet(Path(folder) / "small")
    assert torch.equal(again(images), small(images))
    assert "<table" in vitas.plot.subnet_card(model, subnet)._repr_html_()
    return small, images


def check(extra: str) -> None:
    """Do what an extra is for, and make sure that the others are not there to help."""
    installed = {name: [root for root in roots if find_spec(root)] for name, roots in ROOTS.items()}
    expected = {name: roots if name == extra else [] for name, roots in ROOTS.items()}
    foreign = {
        name: found for name, found in installed.items() if not set(found) <= {*expected[name], *ROOTS.get(extra, [])}
    }
    assert not foreign, f"not asked for: {foreign}"
    assert set(expected.get(extra, [])) <= set(installed.get(extra, [])), f"{extra}: {installed.get(extra)}"
    small, images = core()
    if extra == "timm" and hasattr(vitas, "wrap"):
        import timm

        network = timm.create_model("deit_tiny_patch16_224", img_size=32, num_classes=5).eval()
        wrapped = vitas.wrap(network)
        x = torch.randn(1, 3, 32, 32)
        vitas.export_subnet(wrapped, vitas.sample_subnet(wrapped), verify=x)
    if extra == "transformers":
        import transformers

        config = transformers.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32)
        wrapped = vitas.wrap(transformers.ViTModel(config).eval())
        vitas.export_subnet(wrapped, vitas.sample_subnet(wrapped), verify=torch.randn(1, 3, 32, 32))
    if extra == "search" and hasattr(vitas, "evolve"):
        model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        result = vitas.evolve(
            model, lambda m: float(vitas.active_subnet(m)["embed_dim"]), population=4, generations=3, progress=False
        )
        assert result.best["embed_dim"] == max(found.scores["accuracy"] for found in result.history)
        assert len(result.to_pandas()) == len(result.history)
    if extra == "plot":
        dim = vitas.Dim([8, 16, 24])
        with tempfile.TemporaryDirectory() as folder:
            vitas.plot.coverage_map({"cyclic": dim}).savefig(Path(folder) / "coverage.png")
    if extra == "onnx":
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "small.onnx")
            torch.onnx.export(small.eval(), (images,), path, input_names=["images"], verbose=False)
            (got,) = onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(got), small(images), atol=1e-4)


def main() -> None:
    """Check the extra named on the command line."""
    extra = sys.argv[1]
    assert "site-packages" in vitas.__file__, f"the checkout was imported, not the wheel: {vitas.__file__}"
    assert importlib.metadata.version("vitas") == vitas.__version__
    check(extra)
    print(f"{extra}: vitas {vitas.__version__} works")


if __name__ == "__main__":
    main()

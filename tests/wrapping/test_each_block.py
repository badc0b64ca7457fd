"""Own choices for each block of a wrapped model."""

import pytest
import torch

from tests.contract import macs, randomize
from vitas import ChoiceError, count_flops, export_subnet, load_subnet, sample_subnet, save_subnet, search_space, wrap

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras


def vit():
    options = {"img_size": 32, "embed_dim": 48, "num_heads": 4, "depth": 3, "num_classes": 5}
    return randomize(timm.create_model("vit_tiny_patch16_224", **options)).eval()


def twins():
    from timm.models.twins import Twins

    shape = {"embed_dims": [16, 24], "num_heads": [2, 4], "depths": [2, 3], "mlp_ratios": [4, 2], "sr_ratios": [2, 1]}
    return randomize(Twins(img_size=32, num_classes=5, wss=(4, 2), **shape)).eval()


def searched(model, word):
    choices = search_space(model).choices
    return {name.removesuffix(f".{word}"): choice.values for name, choice in choices.items() if name.endswith(word)}


@pytest.mark.parametrize("num_heads", [{"blocks.1": None, "*": ["50%", 4]}, [[2, 4], None, ["50%", "100%"]]])
def test_blocks_of_a_vit(num_heads, tmp_path):
    model = wrap(vit(), num_heads=num_heads, mlp_ratio={"blocks.0.mlp_dim": "auto", "blocks.[12]": None}, embed_dim="auto")
    assert searched(model, "num_heads") == {"blocks.0": (2, 4), "blocks.2": (2, 4)}
    assert searched(model, "mlp_dim") == {"blocks.0": (48, 96, 144, 192)}
    x = torch.randn(2, 3, 32, 32)
    subnet = sample_subnet(model, policy="smallest")
    export = export_subnet(model, verify=x)
    assert count_flops(model, subnet).total == macs(export, x[:1])
    save_subnet(export, tmp_path / "net")
    assert torch.equal(load_subnet(tmp_path / "net")(x), export(x))


def test_blocks_of_stages():
    heads = {"stages.0.*": None, "stages.1.blocks.0": [1, 4], "*": ["50%", "100%"]}
    model = wrap(twins(), num_heads=heads, mlp_ratio=["auto", ["auto", None, [1, 2]]])
    assert searched(model, "num_heads") == {
        "stages.1.blocks.0": (1, 4),
        "stages.1.blocks.1": (2, 4),
        "stages.1.blocks.2": (2, 4),
    }
    assert searched(model, "mlp_dim") == {
        "stages.0.blocks.0": (16, 32, 48, 64),
        "stages.0.blocks.1": (16, 32, 48, 64),
        "stages.1.blocks.0": (12, 24, 36, 48),
        "stages.1.blocks.2": (24, 48),
    }
    sample_subnet(model, policy="smallest")
    export_subnet(model, verify=torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": {"blocks.9": None, "*": "auto"}}, r"num_heads: unknown block 'blocks\.9'; did you mean 'blocks\."),
        ({"mlp_ratio": {"layers.*": "auto"}}, r"mlp_ratio: no block matches this glob"),
        ({"num_heads": {"blocks.[01]": "auto"}}, r"num_heads: nothing is said of blocks\.2"),
        ({"num_heads": ["auto", None]}, "num_heads: expected one entry for each of the 3 blocks"),
        ({"num_heads": {"blocks.0": [3], "*": None}}, r"blocks\.0\.num_heads: the largest has to be the model's own 4"),
        ({"embed_dim": {"*": [24, 48]}}, "embed_dim: expected values, or a list with an entry for each stage"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ChoiceError, match=message):
        wrap(vit(), **options)

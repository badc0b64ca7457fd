"""What a forward pass computes and leaves on a model: tables for the next call."""

import copy

import pytest
import torch
from torch import nn

from tests.wrapping.test_records import SMALL, original
from vitas import export_subnet, load_subnet, sample_subnet, save_subnet, wrap

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras

CACHES = ("levit_128s", "tiny_vit_5m_224")
"""Models whose attention keeps tables between calls."""


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", CACHES)
def test_tables_that_a_model_keeps_between_calls_stay_behind(name, inplace, tmp_path):
    model, x = original(name)
    expected = model(x)
    assert any(vars(part).get("attention_bias_cache") for part in model.modules())
    wrapped = wrap(model, inplace=inplace)
    assert torch.equal(wrapped(x), expected)
    assert not any(vars(part).get("attention_bias_cache") for part in wrapped.modules())
    sample_subnet(wrapped, policy="smallest")
    small = copy.deepcopy(wrapped)(x)
    export = export_subnet(wrapped)
    for _ in range(2):  # the second time with the tables that the first one kept
        assert torch.equal(export(x), small)
    arguments = {key: value for key, value in SMALL[name][0].items() if key != "pretrained_cfg_overlay"}
    source = name, {"num_classes": 5, **arguments}  # timm 1.0.23 does not tell
    save_subnet(export, tmp_path / "small", source=source)
    assert torch.equal(load_subnet(tmp_path / "small").eval()(x), small)
    assert torch.equal(wrap(export, inplace=inplace)(x), small)


class Remembers(nn.Module):
    """Attention of one's own that keeps what it computed, in a dict and as it is."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj, self.bias = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Parameter(torch.ones(1))
        self.kept, self.last = {}, None

    def forward(self, x, attn_mask=None, is_causal=False):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        self.last = self.kept["bias"] = self.bias * 2
        return self.proj((q @ k.mT + self.last).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


def test_what_a_class_of_ones_own_computed_is_no_part_of_copies_and_exports():
    options = {"img_size": 32, "embed_dim": 48, "num_heads": 4, "depth": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    for block in model.blocks:
        block.attn = Remembers(48, 4)
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    with pytest.raises(RuntimeError, match="deepcopy protocol"):
        copy.deepcopy(model)
    records = {Remembers: "qkv: 3 h d, w; proj: w, h d; bias: _; num_heads = h"}
    wrapped = wrap(model, records=records)
    assert torch.equal(wrapped(x), expected)
    sample_subnet(wrapped, policy="smallest")
    small, export = wrapped(x), export_subnet(wrapped)
    parts = [part for part in export.modules() if type(part) is Remembers]
    assert [(part.kept, "last" in vars(part)) for part in parts] == [({}, False)] * 2
    assert torch.equal(export(x), small)
    assert torch.equal(wrap(export, records=records)(x), small)

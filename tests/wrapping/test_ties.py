"""The ties that a run with symbols for sizes reads off a model hold for every subnet of its records."""

import pytest
import torch
from torch import nn

from tests.contract import randomize
from tests.wrapping.test_records import SMALL
from vitas import export_subnet, sample_subnet, wrap

timm = pytest.importorskip("timm")
ties = pytest.importorskip("tests.wrapping.ties", reason="torch's symbolic shapes, private to it, stand elsewhere")
pytestmark = [pytest.mark.extras, pytest.mark.heavy]

NAMES = ("beit_base_patch16_224", "qwen3_vit_88m", "pit_ti_224")
"""Not CaiT: its class attention keeps all heads at any width, which `ClassAttention` can and timm's code cannot."""


def read(name):
    options, side = SMALL[name]
    model = randomize(timm.create_model(name, num_classes=5, **options)).eval()
    return model, ties.ties_of(model, torch.zeros(1, 3, side, side))


@pytest.mark.parametrize("name", NAMES)
def test_subnets_keep_the_ties(name):
    model, found = read(name)
    assert len(found.places) > 20
    assert not list(found.broken_in(model))
    half = ["50%", "100%"]
    wrapped = wrap(model, embed_dim=None if name == "pit_ti_224" else half, num_heads=half, mlp_ratio=half)
    sample_subnet(wrapped, policy="smallest")
    export = export_subnet(wrapped)
    assert not list(found.broken_in(export))
    first = next(part for part in export.modules() if isinstance(part, nn.Linear))
    first.weight = nn.Parameter(first.weight[:-1])
    assert list(found.broken_in(export))


def test_a_first_record_says_which_sizes_are_one():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    records = ties.drafts(model, ties.ties_of(model, torch.zeros(1, 3, 32, 32)))
    assert records[timm.layers.Attention] == "qkv: 3 h d, w; proj: w, h d; num_heads = h; head_dim = d; attn_dim = h d"
    assert records[timm.layers.Mlp] == "fc1: m, w; fc2: w, m"
    assert records[timm.models.vision_transformer.Block] == "norm1: w; norm2: w"

"""Weights drawn anew: by a wrapped model's own method, and in exports of fresh weights."""

import pytest
import torch

from tests.wrapping.test_records import SMALL, original
from vitas import sample_subnet, wrap

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras

WHOLE = {"embed_dim": "auto", "depth": "auto"}
STACKED = {"swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "qwen3_vit_88m_merge"}


@pytest.mark.parametrize("name", sorted(SMALL.keys() & STACKED))
def test_stacked_channels_are_drawn_whole(name):
    """Where a model reads several widths as one axis, its method writes into the whole of it."""
    model, _ = original(name)
    wrapped = wrap(model, **WHOLE)
    sample_subnet(wrapped, policy="smallest")
    wrapped.init_weights()
    assert not [key for key, weight in wrapped.named_parameters() if torch.equal(weight, model.state_dict()[key])]

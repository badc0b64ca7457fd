"""Weights drawn anew: by a wrapped model's own method, and in exports of fresh weights."""

import pytest
import torch

from tests.contract import randomize
from tests.wrapping.test_records import SMALL, original
from vitas import export_subnet, sample_subnet, wrap
from vitas.errors import ExportError

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


DRAWN = {
    "pvt_v2_b0": SMALL["pvt_v2_b0"][0],
    "twins_svt_small": {"img_size": 32, "embed_dims": (8, 16), "depths": (1, 2), "num_heads": (2, 4), "sr_ratios": (2, 1)},
    "swin_tiny_patch4_window7_224": SMALL["swin_tiny_patch4_window7_224"][0],
}


@pytest.mark.parametrize("name", DRAWN)
def test_fresh_weights_are_drawn_as_timm_draws_them(name):
    timms = timm.create_model(name, num_classes=5, **DRAWN[name])
    wrapped = wrap(randomize(timm.create_model(name, num_classes=5, **DRAWN[name])))
    fresh = export_subnet(wrapped, sample_subnet(wrapped, policy="smallest"), weights="fresh").state_dict()
    for key, weight in timms.named_parameters():
        if (weight == weight.flatten()[0]).all():
            assert (fresh[key] == weight.flatten()[0]).all(), key  # ones of norms, zeros of biases
        elif weight.numel() > 500:
            assert fresh[key].std() == pytest.approx(weight.std().item(), rel=0.3), key


@pytest.mark.skipif("vit_small_patch16_rope_mixed_224" not in SMALL, reason="needs a newer timm")
def test_a_parameter_that_nothing_draws_is_refused():
    model, _ = original("vit_small_patch16_rope_mixed_224")
    message = r"draw by hand, after weights='inherit': rope\.freqs; no reset_parameters\(\) does"
    with pytest.raises(ExportError, match=message):
        export_subnet(wrap(model), weights="fresh")

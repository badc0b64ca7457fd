"""Counts of wrapped models whose layers somebody replaces."""

import pytest
import torch
from torch import nn

from tests.contract import macs
from tests.wrapping.test_records import original
from vitas import SubnetSampler, VitasError, count_flops, export_subnet, sample_subnet, wrap

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras

REPLACED = {
    "assigned": lambda head: setattr(head, "fc", nn.Linear(48, 500)),
    "reset": lambda head: head.reset(500),
    "longer": lambda head: setattr(head, "fc", nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 500))),
}


@pytest.mark.parametrize("how", REPLACED)
def test_a_layer_replaced_inside_of_a_part_is_counted_anew(how):
    model, x = original("swin_tiny_patch4_window7_224")
    wrapped = wrap(model, depth="auto")
    before = count_flops(wrapped).total
    sampler = SubnetSampler(wrapped, flops=before)
    REPLACED[how](wrapped.head)
    for policy in ("largest", "smallest"):
        sample_subnet(wrapped, policy=policy)
        assert count_flops(wrapped).total == macs(export_subnet(wrapped), x[:1])
    with pytest.raises(VitasError, match="make a new SubnetSampler: the ElasticSwinTransformer has changed"):
        sampler.sample(step=0)


def test_a_part_of_a_block_that_is_replaced_is_counted_anew():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, num_heads=3, depth=3, num_classes=5)
    wrapped = wrap(model, depth="auto")
    before = count_flops(wrapped).total
    wrapped.blocks[0].mlp = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
    assert count_flops(wrapped).total == macs(export_subnet(wrapped), torch.zeros(1, 3, 32, 32)) < before

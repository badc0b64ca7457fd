"""A small search that the tests of storages share: its model, its score, its settings."""

import pytest
import torch

import vitas

SETTINGS = {"population": 4, "generations": 3, "progress": False}


@pytest.fixture(scope="module", name="model")
def small_model():
    torch.manual_seed(0)
    return vitas.create_superformer("deit_micro", num_classes=4, img_size=8, in_chans=1)


def score(model):
    return float(sum(vitas.active_subnet(model).values()))

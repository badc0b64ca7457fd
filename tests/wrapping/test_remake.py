"""Modules built without the memory of their parameters."""

import torch
from torch import nn

from vitas.wrapping.remake import weightless


class Tables(nn.Module):
    """As timm's layers do: weights by torch's initialiser, a table unless the weights are on the meta device."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(()).expand(3, 5))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.register_buffer("table", torch.empty(2, dtype=torch.long))
        if not self.weight.is_meta:
            self.table[:] = torch.tensor([3, 1])


def test_a_module_without_memory_has_its_tables_and_draws_nothing():
    before = torch.get_rng_state()
    with weightless():
        made = Tables()
    assert made.weight.shape == (3, 5)
    assert made.weight.untyped_storage().nbytes() == 4  # one number, at every place
    assert made.weight[0, 0] == 0
    assert made.table.tolist() == [3, 1]
    assert torch.equal(torch.get_rng_state(), before)

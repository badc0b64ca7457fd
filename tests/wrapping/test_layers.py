"""Layers that are narrowed by code of their own."""

import pytest
import torch

from tests.contract import randomize
from vitas import sample_subnet, wrap

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras


def cuts_behind(node, seen):
    if node is None or node in seen:
        return set()
    seen.add(node)
    own = {node} if "Cut" in type(node).__name__ else set()
    return own.union(*(cuts_behind(next_node, seen) for next_node, _ in node.next_functions))


@pytest.mark.parametrize("fast", [False, True])
def test_gain_and_bias_of_a_norm_of_timm_are_cut_in_one_step(fast):
    model = randomize(timm.create_model("test_vit", img_size=32))
    wrapped = wrap(model, embed_dim="auto")
    norm = wrapped.get_submodule("norm")
    assert isinstance(norm, timm.layers.LayerNorm)
    sample_subnet(wrapped, policy="smallest")
    norm._fast_norm = fast
    x = torch.randn(2, 3, wrapped.embed_dim)
    out = norm(x)
    used = norm._dims["w"].channels()
    weight, bias = (norm._parameters[name][used] for name in ("weight", "bias"))
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt() * weight + bias
    torch.testing.assert_close(out, expected)
    assert len(cuts_behind(out.grad_fn, set())) == (2 if fast else 1)

"""Random small spaces: what holds for every one of them."""

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract import macs, randomize, relative_error
from vitas import Subnet, activate_subnet, count_flops, count_params, export_subnet, flop_analysis, search_space
from vitas.superformer.deit import DeiTSuperformer


def several(*values, largest=3):
    return st.lists(st.sampled_from(values), min_size=1, max_size=largest, unique=True)


@st.composite
def superformers(draw):
    """A random space of the DeiT family, with random weights in float64."""
    heads = draw(several(1, 2, 4))
    decoupled = draw(st.booleans())
    depth = draw(st.integers(1, 3))
    options = {
        "img_size": draw(st.sampled_from([8, (8, 16)])),
        "in_chans": draw(st.integers(1, 3)),
        "num_classes": draw(st.integers(0, 3)),
        "patch_size": draw(several(2, 4, 8)),
        "embed_dim": draw(several(1, 3, 4, 5, 8)),
        "depth": range(draw(st.integers(1, depth)), depth + 1),
        "num_heads": heads,
        "qkv_dim": draw(several(4, 8, 12)) if decoupled else None,
        "head_dim": None if decoupled else draw(st.integers(1, 3)),
        "mlp_dim": draw(several(1, 2, 5, 9)),
        "private": draw(st.sampled_from([None, "qk", "v"])) if len(heads) > 1 else None,
        "qkv_bias": draw(st.booleans()),
        "distilled": draw(st.booleans()),
        "sharing": draw(st.sampled_from(["ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired"])),
    }
    model = randomize(DeiTSuperformer(**options).double(), seed=draw(st.integers(0, 9))).eval()
    images = torch.randn(2, options["in_chans"], *model.patch_embed.img_size, dtype=torch.float64)
    return model, images


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(superformers(), st.integers(0, 2**31))
def test_exports_are_exact_and_counts_too(model_and_images, seed):
    model, images = model_and_images
    try:
        space = search_space(model)
    except ValueError:  # a space without choices exports all the same
        assert relative_error(export_subnet(model)(images), model(images)) <= 1e-12
        return
    generator = torch.Generator().manual_seed(seed)
    for side in ("left", "right") if space.bilateral else (None,):
        subnet = space.sample(generator)
        assert space.subnet(subnet) == subnet
        assert space.decode(space.encode(subnet)) == subnet
        assert Subnet.from_json(subnet.to_json()) == subnet
        activate_subnet(model, subnet, side=side)
        plain = export_subnet(model)
        assert relative_error(plain(images), model(images)) <= 1e-12
        assert count_params(model) == sum(parameter.numel() for parameter in plain.parameters())
        assert count_flops(model).total == macs(plain, images[:1]) == flop_analysis(model).total()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(superformers())
def test_the_size_is_the_number_of_distinct_canonical_subnets(model_and_images):
    model, _ = model_and_images
    try:
        space = search_space(model)
    except ValueError:
        return
    if space.size > 2000:
        return
    names = list(space.choices)
    every = itertools.product(*(space.choices[name].values for name in names))
    genotypes = itertools.islice(every, 20000)
    distinct = {space.subnet(dict(zip(names, values, strict=True))) for values in genotypes}
    complete = next(every, None) is None
    assert len(distinct) == space.size if complete else len(distinct) <= space.size


@pytest.mark.parametrize("shift", [True, False])
def test_size_of_a_small_space_by_the_formula(shift):
    model = DeiTSuperformer(8, 4, 1, 2, embed_dim=[2, 4], depth=range(1, 4), num_heads=1, mlp_dim=[1, 2, 3], shift=shift)
    q = 3
    expected = 2 * (sum(q**m for m in (1, 2, 3)) if shift else (q + 1) ** 3)
    assert search_space(model).size == expected

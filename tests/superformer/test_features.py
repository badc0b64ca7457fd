"""Maps of a Vision Transformer for dense tasks; those of Twins are in tests/superformer/test_twins.py."""

import numpy as np
import pytest
import torch

from tests.contract import randomize, relative_error
from tests.superformer.test_deit import small
from vitas import ChoiceError, activate_subnet, export_subnet, plain, sample_subnet, search_space
from vitas.errors import ShapeError
from vitas.superformer.deit import DeiTSuperformer

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 3, "num_classes": 7}


@pytest.mark.extras
@pytest.mark.parametrize("size", [(32, 32), (48, 24), (37, 50), (5, 8)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"indices": 2},
        {"indices": [0, -1], "norm": True},
        {"indices": (1,), "stop_early": True},
        {"intermediates_only": True, "output_fmt": "NLC"},
        {"return_prefix_tokens": True, "norm": True},
    ],
)
def test_features_are_timms(size, options):
    from timm.models.vision_transformer import VisionTransformer

    theirs = randomize(VisionTransformer(**SHAPE, dynamic_img_size=True, dynamic_img_pad=True).double()).eval()
    ours = DeiTSuperformer(**SHAPE).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = theirs.forward_intermediates(x, **options)
    torch.testing.assert_close(ours.forward_intermediates(x, **options), expected, rtol=1e-12, atol=1e-12)
    for a, b in zip(ours.feature_info, theirs.feature_info, strict=True):
        assert (a["num_chs"], a["reduction"]) == (b["num_chs"], b["reduction"])


@pytest.mark.parametrize("options", [{}, {"distilled": True}, {"global_pool": "avg"}])
@pytest.mark.parametrize("size", [(8, 8), (13, 6)])
def test_features_are_those_of_the_active_subnet(size, options):
    model = randomize(small(**options).double()).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    for _ in range(6):
        subnet = sample_subnet(model, generator=generator)
        plain = export_subnet(model)
        assert model.feature_info == plain.feature_info
        assert len(plain.feature_info) == subnet["depth"]
        final, maps = model.forward_intermediates(x)
        expected_final, expected = plain.forward_intermediates(x)
        assert relative_error(final, expected_final) <= 1e-12
        if size == (8, 8):
            assert torch.equal(final, model.forward_features(x))
        for info, got, wanted in zip(model.feature_info, maps, expected, strict=True):
            assert relative_error(got, wanted) <= 1e-12
            assert got.shape == (2, subnet["embed_dim"], *(-(-n // subnet["patch_size"]) for n in size))
            assert info["num_chs"] == subnet["embed_dim"]
            assert info["reduction"] == subnet["patch_size"]


def test_features_train_the_positions_at_another_size():
    model = randomize(small())
    for one in (model, export_subnet(model)):
        model_maps = one.forward_intermediates(torch.randn(2, 2, 12, 20), intermediates_only=True)
        model_maps[-1].square().sum().backward()
        table = one.pos_embed["4"] if one is model else one.pos_embed
        assert (table.grad.abs().sum(-1) > 0).all()


def test_features_that_do_not_exist_are_refused():
    model = small()
    activate_subnet(model, search_space(model).subnet({"depth": 2}, fill="largest"))
    x = torch.randn(1, 2, 8, 8)
    for indices in (3, [2], [-3]):
        with pytest.raises(ChoiceError, match="indices: expected"):
            model.forward_intermediates(x, indices)
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NHWC")
    for shape in ((1, 3, 8, 8), (2, 8, 8), (8,), (1, 2, 0, 8)):
        with pytest.raises(ShapeError, match=r"expected shape \(batch, 2, height, width\)"):
            model.forward_intermediates(torch.randn(shape))


@pytest.mark.parametrize("indices", [[0.0], [0.5], "0", ["0"], 1.0, [None], np.array([0, 1]) / 2])
def test_features_are_numbered_by_ints(indices):
    with pytest.raises(ValueError, match="indices: expected ints, got"):
        plain.feature_indices(3, indices)


@pytest.mark.parametrize("indices", [np.int64(2), [np.int64(1), np.int64(-1)], np.array([1, 2]), (1, 2), range(1, 3)])
def test_numpys_ints_number_features_too(indices):
    assert plain.feature_indices(3, indices) == [1, 2]


def test_positions_of_half_precision_are_resampled_in_single():
    table = torch.randn(1, 1 + 16, 8).bfloat16()
    exact = plain.resample_positions(table.float(), (4, 4), (7, 5), 1)
    assert torch.equal(plain.resample_positions(table, (4, 4), (7, 5), 1), exact.bfloat16())

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitas import Choice, ChoiceError, Dim
from vitas.errors import ShapeError
from vitas.nn import ElasticPatchEmbed, ElasticTokens
from vitas.nn.images import as_exported, as_size, largest_size, searched_size, sizes_of


@pytest.mark.parametrize(
    ("given", "expected"),
    [(8, (8, 8)), ((8, 12), (8, 12)), ([8], (8, 8)), ([8, 8], (8, 8)), (np.int64(8), (8, 8)), (Choice([8]), (8, 8))],
)
def test_one_size_is_no_choice(given, expected):
    assert as_size(given) == expected
    assert sizes_of(expected) == [expected]


@pytest.mark.parametrize("given", [[12, 8], {8, 12}, range(8, 13, 4), np.array([8, 12]), Choice([8, 12])])
def test_several_sides_are_a_choice_of_squares(given):
    choice = as_size(given)
    assert choice is given or choice.name == "img_size"
    assert sizes_of(choice) == [(8, 8), (12, 12)]


@pytest.mark.parametrize(
    "given", [0, -8, 8.0, True, "8", None, (8,), (8, 8, 8), (8, 0), [], [8, 8, 12], [8, 12.5], [0, 8], [8, 2**21], [8, "12"]]
)
def test_other_sizes_are_refused(given):
    with pytest.raises(ChoiceError, match="img_size: "):
        ElasticPatchEmbed(given, 2)
    with pytest.raises(ChoiceError, match="img_size: "):
        ElasticTokens(given, 2)


@pytest.mark.parametrize("layer", [ElasticPatchEmbed, ElasticTokens])
def test_patches_have_to_divide_every_size(layer):
    with pytest.raises(ChoiceError, match="patch_size: 4 does not divide an image of 10 x 10 pixels; these do: 1, 2, 5, 10"):
        layer([8, 10, 16], Choice([2, 4]), embed_dim=Dim([4, 8]))


def test_images_of_the_sizes_are_brought_to_the_active_one():
    layer = ElasticPatchEmbed([4, 8], 2, 3, 6)
    choice, x = searched_size(layer), torch.randn(2, 3, 8, 8)
    assert (choice.active, layer.img_size, largest_size(layer)) == (8, (8, 8), (8, 8))
    assert layer.resized(x) is x
    choice.active = 4
    assert layer.img_size == (4, 4)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        wide = x.to(dtype).to(torch.float64 if dtype is torch.float64 else torch.float32)
        expected = F.interpolate(wide, (4, 4), mode="bicubic", antialias=True).to(dtype)
        assert torch.equal(layer.resized(x.to(dtype)), expected)
    small = x[:, :, :4, :4]
    assert layer.resized(small) is small
    assert torch.equal(as_exported(layer, (x, 3))[0], layer.resized(x))
    assert as_exported(layer, (x, 3))[1:] == (3,)
    for shape in ((2, 3, 8, 4), (2, 3, 6, 6), (3, 8, 8), (2, 3, 0, 0)):
        with pytest.raises(ShapeError, match=r"images: expected shape \(batch, channels, S, S\), S one of 4, 8, got \("):
            layer.resized(torch.zeros(shape))
    with pytest.raises(ShapeError, match=r"images: expected shape \(batch, 3, 4, 4\)"):
        layer(x)  # a layer is given what its export is given


def test_a_layer_with_one_size_leaves_images_alone():
    layer, x = ElasticPatchEmbed((8, 12), 2, 3, 6), torch.randn(1)
    assert layer.resized(x) is x
    assert searched_size(layer) is None
    assert layer.img_size == largest_size(layer) == (8, 12)

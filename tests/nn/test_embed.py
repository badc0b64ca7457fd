import pytest
import torch
import torch.nn.functional as F

from tests.contract import Contract, randomize
from vitas import Choice, ChoiceError, Dim
from vitas.errors import ShapeError
from vitas.nn.embed import ElasticPatchEmbed
from vitas.nn.tokens import ElasticTokens


class TestElasticPatchEmbed(Contract):
    def build(self, sharing):
        patch, dim = Choice([2, 4], name="patch_size"), Dim([3, 5, 6], sharing=sharing)
        return ElasticPatchEmbed((8, 12), patch, 2, dim), [patch, dim]

    def inputs(self, layer):
        return torch.randn(2, 2, 8, 12)

    def reference(self, layer, x):
        patch, used = layer.patch_size.active, layer.embed_dim.channels()
        weight, bias = layer.proj[str(patch)].weight[used], layer.proj[str(patch)].bias[used]
        patches = F.unfold(x, patch, stride=patch).transpose(1, 2)
        return F.linear(patches, weight.flatten(1), bias)

    def test_foreign_checkpointing_recomputes_the_same_or_fails(self):
        """The inputs of images need no gradient, so the suite's test does not apply; see the DeiT's."""
        layer, (*_, dim) = self.build("cyclic")
        x = self.inputs(layer).requires_grad_()
        out = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        dim.active = 3
        with pytest.raises((RuntimeError, ValueError)):
            out.sum().backward()


class TestElasticPatchEmbedOfSearchedImages(TestElasticPatchEmbed):
    def build(self, sharing):
        size, patch, dim = Choice([4, 8, 12]), Choice([2, 4]), Dim([3, 6], sharing=sharing)
        return ElasticPatchEmbed(size, patch, 2, dim), [size, patch, dim]

    def inputs(self, layer):
        return torch.randn(2, 2, *layer.img_size)


class TestElasticTokens(Contract):
    def build(self, sharing):
        patch, dim = Choice([2, 4], name="patch_size"), Dim([3, 5, 6], sharing=sharing)
        return ElasticTokens(8, patch, dim), [patch, dim]

    def inputs(self, layer):
        return torch.randn(2, (8 // layer.patch_size.active) ** 2, layer.embed_dim.active)

    def reference(self, layer, x):
        patch, used = str(layer.patch_size.active), layer.embed_dim.channels()
        token = layer.cls_token[patch][..., used].expand(len(x), -1, -1)
        return torch.cat([token, x], dim=1) + layer.pos_embed[patch][..., used]

    def test_prints_what_is_active(self):
        assert "ParameterDict" in repr(self.build("cyclic")[0])

    def test_foreign_checkpointing_recomputes_the_same_or_fails(self):
        layer, (*_, dim) = self.build("cyclic")
        dim.active = 3
        x = self.inputs(layer).requires_grad_()
        out = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        dim.active = 5
        with pytest.raises(RuntimeError):
            out.sum().backward()


class TestElasticTokensOfSearchedImages(TestElasticTokens):
    def build(self, sharing):
        size, patch, dim = Choice([4, 8, 12]), Choice([2, 4]), Dim([3, 5, 6], sharing=sharing)
        return ElasticTokens(size, patch, dim), [size, patch, dim]

    def inputs(self, layer):
        return torch.randn(2, (layer.img_size[0] // layer.patch_size.active) ** 2, layer.embed_dim.active)

    def reference(self, layer, x):
        patch, used = layer.patch_size.active, layer.embed_dim.channels()
        token, positions = layer.cls_token[str(patch)][..., used], layer.pos_embed[str(patch)][..., used]
        first, side, whole = positions[:, :1], layer.img_size[0] // patch, 12 // patch
        if side != whole:
            grid = positions[:, 1:].float().reshape(1, whole, whole, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)
            positions = torch.cat([first, grid.flatten(2).transpose(1, 2).to(x.dtype)], dim=1)
        return torch.cat([token.expand(len(x), -1, -1), x], dim=1) + positions

    @pytest.mark.parametrize("sharing", ["bilateral", "cyclic"])
    def test_only_active_slices_get_gradient(self, sharing):
        """Positions that are resampled give some to every patch of the table, in the active channels."""
        layer, choices = self.build(sharing)
        randomize(layer.double())
        for _ in self.subnets(choices):
            layer.zero_grad(set_to_none=True)
            (layer(self.inputs(layer).double()) * torch.randn(layer.embed_dim.active).double()).sum().backward()
            patch, used = str(layer.patch_size.active), layer.embed_dim.channels().tolist()
            for tables in (layer.cls_token, layer.pos_embed):
                assert [name for name, table in tables.items() if table.grad is not None] == [patch]
                assert tables[patch].grad.any(dim=1)[0].nonzero().flatten().tolist() == sorted(used)


@pytest.mark.extras
def test_with_ints_it_is_timms_patch_embedding():
    from timm.layers import PatchEmbed

    ours, theirs = ElasticPatchEmbed(8, 4, 2, 6), PatchEmbed(8, 4, 2, 6)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(ours(x), theirs(x))


def test_tokens_of_one_patch_size_have_timms_keys():
    assert list(ElasticTokens(8, 4, 6).state_dict()) == ["cls_token", "pos_embed"]


@pytest.mark.parametrize("layer", [ElasticPatchEmbed, ElasticTokens])
def test_a_patch_that_does_not_divide_the_image_is_refused_with_the_sizes_that_do(layer):
    with pytest.raises(ChoiceError, match=r"patch_size: 5 does not divide an image of 12 x 18 pixels; these do: 1, 2, 3, 6"):
        layer((12, 18), Choice([2, 5]))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 3, 8, 12), (1, 2, 12, 8), (2, 8, 12)])
def test_images_of_another_shape_are_refused(shape):
    layer = ElasticPatchEmbed((8, 12), 4, 2, 6)
    with pytest.raises(ShapeError, match=r"images: expected shape \(batch, 2, 8, 12\), got"):
        layer(torch.randn(shape))


def test_tokens_of_another_image_are_refused():
    with pytest.raises(ShapeError, match=r"expected shape \(batch, 4, 6\)"):
        ElasticTokens(8, 4, 6)(torch.randn(2, 5, 6))


@pytest.mark.parametrize("size", [0, (8,), (8, -8), "8", (8.0, 8.0)])
def test_image_sizes_that_are_none_are_refused(size):
    with pytest.raises(ChoiceError, match="img_size"):
        ElasticPatchEmbed(size, 4, 2, 6)

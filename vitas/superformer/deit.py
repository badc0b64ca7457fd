"""The DeiT family as one searchable model."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from vitas import plain
from vitas.checks import check_flags
from vitas.choice import Choice, Dim, outside_graphs
from vitas.cost import Cost, cost_of, params_of
from vitas.errors import ChoiceError, is_one_of, one_of
from vitas.fields import check_arguments, check_field
from vitas.nn import CyclicLinear, ElasticLayerNorm, ElasticPatchEmbed
from vitas.nn.images import ImageSize, largest_size, searched_size
from vitas.nn.layer import exported, like
from vitas.nn.patches import check_patches, patch_count
from vitas.nn.tokens import Table, active_table, make_table, positions_in_use
from vitas.superformer.arguments import (
    Count,
    Counts,
    Patterns,
    Ratios,
    Width,
    Widths,
    choice_of,
    depths_of,
    dim_of,
    patterns_of,
)
from vitas.superformer.base import Superformer, within_memory
from vitas.superformer.blocks import BlockOptions, row_of, several_heads, token_block, values_of


@within_memory
class DeiTSuperformer(Superformer, plain.VisionTransformer):
    """Vision Transformer (DeiT) whose image and patch size, width, depth, heads, q/k/v and MLP widths can be searched.

    Wherever several values are given, a choice is made: one for the whole model for `img_size`, `patch_size`, `embed_dim`
    and `depth`, one for each block for the others. A Choice or Dim object is used as it is, by every block alike. With
    plain ints this is timm's model: same outputs, same checkpoint keys.

    What is said of blocks (`num_heads`, `qkv_dim`, `mlp_dim`, `mlp_ratio`) may also be a list with an entry for each slot,
    of which some entry is not one value, [[2, 4], [4], ...]; or a mapping from names and globs of blocks to values, of
    which the first that matches counts: {"blocks.[0-5]": [2, 4], "*": [4]}.

    Shapes: (B, C, H, W) -> (B, classes); while training a distilled model with `distilled_training`, a pair of them.
    Cost: patches, blocks and classifier of the active subnet in MACs; see `cost`.
    Source: space and private parameters, public ViTAS code (Su et al., July 2021); plain model, timm 1.0.23.

    Args:
        img_size: Height and width in pixels, or one int for both; every patch size has to divide it. Several sides, such as
            the list [160, 192, 224], make the size of square images a choice: images of any of these sizes are resized to
            the active one (bicubic, antialiased), and the positions of the largest are resampled for it.
        patch_size: Pixels of a patch's side; each gets its own projection, class token and positions.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: "token" (class token) or "avg" (mean over the patches).
        embed_dim: Width of the residual stream.
        depth: Number of blocks; several values, without gaps, let the last blocks be left out.
        num_heads: Heads of a block.
        qkv_dim: Width of q, k and v each, regrouped into the active heads; None: `head_dim` channels a head.
        head_dim: Channels of each head, where `qkv_dim` is None; None: the largest width over the most heads.
        mlp_dim: Hidden width of the MLP; None: from `mlp_ratio`.
        mlp_ratio: Hidden width as int(embed_dim * ratio), where `mlp_dim` is None.
        private: None, "qk" or "v": which of q, k, v have a copy for each head count, in blocks that have several.
        qkv_bias: Whether q, k, v have a bias.
        qk_norm: Whether each head's q and k pass a layer norm.
        init_values: Starting gain of LayerScale; None: no LayerScale.
        distilled: Adds a distillation token with a classifier of its own.
        fc_norm: Whether the last norm comes after pooling; None: with "avg", as in timm.
        proj_drop_rate: Dropout after the projections of attention and MLP.
        attn_drop_rate: Dropout on the attention weights.
        drop_path_rate: Stochastic depth of the last block that runs, rising from 0.
        norm_eps: Added to variances in the blocks.
        final_norm_eps: Added to the variance in the last norm; None: `norm_eps`.
        sharing: Which channels a width uses, see vitas.sharing; or a mapping from "embed_dim", "qkv_dim", "num_heads" and
            "mlp_dim" to patterns, where what it does not name is "cyclic".
        depth_p: Depth law, see ShiftableIdentity.
        shift: Identity shifting, see ShiftableIdentity.

    Raises:
        ChoiceError: values that are not positive numbers, patches that do not divide the image, heads that do not divide the
            q/k/v width, a depth with gaps, an unknown pooling, options that are neither True nor False, an unknown
            pattern or kind of choice; more weights than this machine has memory for.
    """

    def __init__(
        self,
        img_size: ImageSize = 224,
        patch_size: Count = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: Width = 768,
        depth: int | Iterable[int] = 12,
        num_heads: Counts = 12,
        *,
        qkv_dim: Widths = None,
        head_dim: int | None = None,
        mlp_dim: Widths = None,
        mlp_ratio: Ratios = 4.0,
        private: str | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        distilled: bool = False,
        fc_norm: bool | None = None,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        final_norm_eps: float | None = None,
        sharing: Patterns = "cyclic",
        depth_p: float | Sequence[float] | None = None,
        shift: bool = True,
    ) -> None:
        patterns = patterns_of(sharing, qkv_dim, mlp_dim)
        _check(num_classes, global_pool, distilled, fc_norm, final_norm_eps, shift)
        names = [f"blocks.{slot}" for slot in range(depths_of(depth)[1])]
        values = values_of(names, num_heads=num_heads, qkv_dim=qkv_dim, mlp_dim=mlp_dim, mlp_ratio=mlp_ratio)
        rates = proj_drop_rate, attn_drop_rate, drop_path_rate
        options = BlockOptions(
            patterns, private, norm_eps, *rates, qkv_bias, qk_norm, init_values, head_dim, several_heads(values)
        )
        width, patch = dim_of(embed_dim, "embed_dim", patterns["embed_dim"]), choice_of(patch_size, "patch_size")
        patch_embed = ElasticPatchEmbed(img_size, patch, in_chans, width)
        blocks = row_of(lambda slot: token_block(names[slot], width, values[slot], options), depth, depth_p, shift)
        blocks.lay_drop_path(drop_path_rate)
        heads = [CyclicLinear(width, int(num_classes)) if num_classes else None for _ in range(2 if distilled else 1)]
        super().__init__(
            patch_embed,
            blocks=blocks,
            **_last_norm(width, options.norm_eps if final_norm_eps is None else float(final_norm_eps), global_pool, fc_norm),
            **_made_tables(largest_size(patch_embed), patch, width, distilled),
            head=heads[0],
            head_dist=heads[-1] if distilled else None,
            global_pool=global_pool,
        )
        self.embed_dim, self.patch_size = width, patch
        self.img_size = searched_size(patch_embed) or patch_embed.img_size
        if shift:
            self.depth = blocks.depth
        self.reset_parameters()

    conventions = ("exact", "vitas")

    def tables(self) -> dict[str, Tensor]:
        """Return class token, distillation token (if any) and positions in use, (1, ..., D) each; nothing else slices."""
        stored: dict[str, Table] = super().tables()  # type: ignore[assignment]
        tables = {name: active_table(table, self.patch_size, self.embed_dim) for name, table in stored.items()}
        positions = positions_in_use(tables["pos_embed"], self.patch_size, self, self.num_prefix_tokens)
        return {**tables, "pos_embed": positions}

    active_weights = tables

    @outside_graphs
    def embed(self, x: Tensor, any_size: bool = False) -> Tensor:
        """Return the tokens that enter the blocks; not compiled, since each patch size would be a graph of its own."""
        return super().embed(x if any_size else self.resized(x), any_size)

    def width(self) -> int:
        """Return the channels of the tokens."""
        return self.embed_dim.active

    def last_width(self) -> Dim:
        """Return the channels of the tokens, of every subnet."""
        return self.embed_dim

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Take images of another size from now on: the positions of every patch size are resampled, as timm does.

        Raises:
            ChoiceError: patches that do not divide the image; a size that is searched.
        """
        embed: Any = self.patch_embed
        positions, size = self.pos_embed, self._new_size(img_size)
        check_patches(self.patch_size, size)

        def resampled(table: nn.Parameter, patch: int) -> nn.Parameter:
            old, new = ((height // patch, width // patch) for height, width in (embed.img_size, size))
            return plain.resampled(table, old, new, self.num_prefix_tokens)

        if isinstance(positions, nn.ParameterDict):
            for patch, table in positions.items():
                positions[patch] = resampled(table, int(patch))
        else:
            self.pos_embed = resampled(positions, self.patch_size.largest)
        self.img_size = embed.img_size = size

    def image_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of an image, the largest where its size is searched."""
        return cast(plain.PatchEmbed, self.patch_embed).in_chans, *largest_size(self)

    def cost(self, tokens: Cost | None = None, *, convention: str = "exact") -> Cost:
        """Return the multiply-adds for one image.

        Args:
            tokens: Not used; the image gives the tokens.
            convention: "exact": what runs. "vitas": as the authors count: no class token in the blocks, the
                classifier charged for every patch.

        Raises:
            ChoiceError: another convention.
        """
        if not is_one_of(["exact", "vitas"], convention):
            raise ChoiceError(f"convention: {one_of(['exact', 'vitas'], convention)}")
        exact = convention == "exact"
        patches = self.patch_embed.tokens()  # type: ignore[operator]
        cost = cost_of(self.patch_embed, patches).under("patch_embed")
        cost += cost_of(self.blocks, patches + self.num_prefix_tokens if exact else patches).under("blocks")
        cost += cost_of(self.head, Cost(1) if exact else patches).under("head")
        if self.distilled:
            cost += cost_of(self.head_dist, Cost(1) if exact else patches).under("head_dist")
        return cost

    def param_count(self) -> Cost:
        """Return the active parameters."""
        lengths = self.patch_embed.tokens() + self.num_prefix_tokens * 2  # type: ignore[operator]
        modules = (child for name, child in self.named_children() if name not in ("cls_token", "dist_token", "pos_embed"))
        return sum((params_of(module) for module in modules), Cost(lengths * self.embed_dim))

    def export(self) -> plain.VisionTransformer:
        """Return the plain Vision Transformer of the active subnet with its own copy of the weights."""
        tables = {name: table.detach().clone() for name, table in self.tables().items()}
        parts = {name: exported(child) for name, child in self._modules.items() if child is not None and name not in tables}
        model = plain.VisionTransformer(**parts, **tables, global_pool=self.global_pool)  # type: ignore[arg-type]
        for name in tables:
            stored: Any = getattr(self, name)
            chosen = stored[str(self.patch_size.active)] if isinstance(stored, nn.ParameterDict) else stored
            getattr(model, name).requires_grad_(chosen.requires_grad)
        model.distilled_training = self.distilled_training
        return like(self, model)


def _last_norm(width: Dim, eps: float, global_pool: str, fc_norm: bool | None) -> dict[str, Any]:
    """Return the last norm under the name of its place, before or after pooling."""
    after = global_pool == "avg" if fc_norm is None else fc_norm
    return {"fc_norm" if after else "norm": ElasticLayerNorm(width, eps)}


def _made_tables(size: tuple[int, int], patch: Choice[int], width: Dim, distilled: bool) -> dict[str, Any]:
    """Return the tables of tokens and positions, each for every patch size."""
    tokens = ["cls_token", "dist_token"] if distilled else ["cls_token"]
    tables = {name: make_table(patch, width, lambda patch: 1) for name in tokens}
    return tables | {"pos_embed": make_table(patch, width, lambda patch: len(tokens) + patch_count(size, patch))}


def _check(
    num_classes: int, global_pool: str, distilled: bool, fc_norm: bool | None, final_norm_eps: float | None, shift: bool
) -> None:
    fixed: dict[str, object] = {"num_classes": num_classes, "global_pool": global_pool, "distilled": distilled}
    check_arguments(plain.VisionTransformerConfig, ChoiceError, **fixed)
    check_field(plain.Eps | None, final_norm_eps, "final_norm_eps", ChoiceError)
    check_flags(shift=shift, **({} if fc_norm is None else {"fc_norm": fc_norm}))
    if distilled and (global_pool != "token" or fc_norm):
        raise ChoiceError("global_pool, fc_norm: a distilled model classifies from its tokens, normed before pooling")

"""The Twins family as one searchable model."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple, TypeVar, cast

from torch import Tensor, nn

from vitas import plain
from vitas.checks import are_several, as_count, as_flag
from vitas.choice import Choice, Dim
from vitas.cost import Cost, Map, cost_of, params_of
from vitas.errors import ChoiceError, ShapeError, shown
from vitas.fields import check_arguments
from vitas.nn import CyclicLinear, ElasticConv2d, ElasticLayerNorm, ShiftableIdentity
from vitas.nn.depth import lay_drop_path
from vitas.nn.images import ImageSize, Size, as_size, each_size, largest_size, searched_size, sizes_of
from vitas.nn.layer import rebuilt
from vitas.superformer.arguments import (
    MOST_BLOCKS,
    Count,
    Counts,
    Patterns,
    Ratio,
    Ratios,
    Width,
    Widths,
    choice_of,
    depths_of,
    dim_of,
    for_blocks_of_stages,
    patterns_of,
    reusable,
)
from vitas.superformer.base import Superformer, within_memory
from vitas.superformer.blocks import BlockOptions, BlockValues, map_block, row_of, several_heads, values_of

_MOST_STAGES = 16  # each halves the sides of the map, at the least


T = TypeVar("T")


@within_memory
class TwinsSuperformer(Superformer, plain.Twins):
    """Twins whose image size, widths, depths, heads, q/k/v and MLP widths can be searched, each stage for itself.

    Every argument in the plural has one entry for each stage. Wherever an entry is several values, a choice is made: one
    for the stage for `embed_dims`, `depths` and `wss`, one for each block for the others. A Choice or Dim object is used
    as it is. With plain ints this is timm's model: same outputs, same checkpoint keys.

    What is said of blocks (`num_heads`, `qkv_dims`, `mlp_dims`, `mlp_ratios`) may also be a mapping from names and globs of
    blocks to values, of which the first that matches counts: {"stages.2.blocks.[0-5]": [8, 16], "stages.2.*": 16, ...}.
    An entry of a stage may be such a mapping too, or a list with an entry for each of its slots.

    Blocks alternate: even slots attend inside windows, odd ones to a coarser map; without windows all do the latter. The
    kind belongs to the slot. Identities are shifted to the tail of their stage; depths in steps of 2, such as
    range(2, 19, 2), shift pairs of both kinds. The position generator follows the first block of the stage.

    Shapes: (B, C, H, W) -> (B, classes), any H and W of at least `sizes()[1]`; H = W, one of the sizes, where these are
        searched.
    Cost: patches, blocks, position generators and classifier of the active subnet in MACs, for `img_size`.
    Source: space, ViTAS (Su et al., ECCV 2022), reconstructed: the paper's own numbers were not at hand, nor whether it
    shares q and k between head counts, as is done here; plain model, Chu et al., arXiv:2104.13840v4, and timm 1.0.23.

    Args:
        img_size: Height and width in pixels, or one int for both; only counts depend on it. Several sides, such as the list
            [160, 192, 224], make the size of square images a choice: images of any of these sizes are resized to the active
            one (bicubic, antialiased). Legal are those of at least `sizes()[1]`, as in timm: maps are rounded down, windows
            padded.
        patch_size: Pixels of a patch's side in the first stage; later ones merge 2 x 2.
        in_chans: Image channels.
        num_classes: Classes; 0: no classifier.
        global_pool: "avg" (mean over the positions) or "" (none).
        embed_dims: Width of the residual stream of each stage.
        num_heads: Heads of a block.
        mlp_ratios: Hidden width as int(embed_dim * ratio), where `mlp_dims` is None; one number for all, or one a stage.
        depths: Number of blocks; several values let the last blocks be left out.
        sr_ratios: How many times coarser the map of keys and values is.
        wss: Side of a window; None: no windows.
        qkv_dims: Width of q, k and v each, regrouped into the active heads; None: the largest width of the stage over
            the most heads, for each head.
        mlp_dims: Hidden width of the MLP; None: from `mlp_ratios`.
        private: None, "qk" or "v": which of q, k, v have a copy for each head count, in blocks that have several.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after each merging of patches.
        proj_drop_rate: Dropout after the projections of attention and MLP.
        attn_drop_rate: Dropout on the attention weights.
        drop_path_rate: Stochastic depth of the last block that runs, rising from 0 over all stages.
        norm_eps: Added to variances in the blocks and in the last norm; others are torch's 1e-5, as in timm.
        sharing: Which channels a width uses, see vitas.sharing; or a mapping from "embed_dim", "qkv_dim", "num_heads" and
            "mlp_dim" to patterns, where what it does not name is "cyclic".
        depth_p: Depth law of every stage, see ShiftableIdentity.
        shift: Whether identities are shifted to the tail, see ShiftableIdentity.

    Raises:
        ChoiceError: arguments of another length than there are stages, more than 16 stages; values that do not fit
            together: heads that do not divide a width, an image too small for the stages; depths with gaps, an unknown
            pooling, a `shift` that is neither True nor False; more weights than this machine has memory for.
    """

    def __init__(
        self,
        img_size: ImageSize = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[Width] = (64, 128, 256, 512),
        num_heads: Sequence[Counts] | Mapping[str, Count] = (2, 4, 8, 16),
        mlp_ratios: float | Sequence[Ratios] | Mapping[str, Ratio] = 4.0,
        depths: Sequence[int | Iterable[int]] = (2, 2, 10, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        wss: Sequence[Count] | None = (7, 7, 7, 7),
        *,
        qkv_dims: Sequence[Widths] | Mapping[str, Width | None] | None = None,
        mlp_dims: Sequence[Widths] | Mapping[str, Width | None] | None = None,
        private: str | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        sharing: Patterns = "cyclic",
        depth_p: float | Sequence[float] | None = None,
        shift: bool = True,
    ) -> None:
        fixed = {"num_classes": num_classes, "global_pool": global_pool}
        check_arguments(plain.TwinsConfig, ChoiceError, **fixed, drop_rate=drop_rate, pos_drop_rate=pos_drop_rate)
        as_flag(shift, "shift")
        in_chans, patch_size = as_count(in_chans, "in_chans"), as_count(patch_size, "patch_size")
        patterns = patterns_of(sharing, qkv_dims, mlp_dims)
        widths = enumerate(_listed(embed_dims, "embed_dims"))
        dims = [dim_of(d, f"stages.{k}.embed_dim", patterns["embed_dim"]) for k, d in widths]
        ratios = mlp_ratios if are_several(mlp_ratios) else [mlp_ratios] * len(dims)
        given = {"num_heads": num_heads, "qkv_dims": qkv_dims, "mlp_dims": mlp_dims, "mlp_ratios": ratios}
        stages = _stages(dims, given, depths, sr_ratios, wss)
        rates = proj_drop_rate, attn_drop_rate, drop_path_rate
        several = several_heads(values for stage in stages for values in stage.values)
        options = BlockOptions(patterns, private, norm_eps, *rates, several_heads=several)
        rows = [stage.row(options, depth_p, shift) for stage in stages]
        lay_drop_path(drop_path_rate, rows)
        channels: list[int | Dim] = [in_chans, *dims]
        super().__init__(
            [_merging(*pair, 2 if k else patch_size) for k, pair in enumerate(pairwise(channels))],
            rows,
            [plain.PositionGenerator(ElasticConv2d(dim, dim, 3, padding=1, groups=dim)) for dim in dims],
            ElasticLayerNorm(dims[-1], options.norm_eps),
            CyclicLinear(dims[-1], int(num_classes)) if num_classes else None,
            global_pool,
            float(drop_rate),
            float(pos_drop_rate),
        )
        self.embed_dims = dims
        size = as_size(img_size)
        self._check_sizes(sizes_of(size))
        self.img_size = size
        self.reset_parameters()

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Count for images of another size from now on; there are no positions to resample, and any size runs.

        Raises:
            ChoiceError: an image too small for the stages; a size that is searched.
        """
        size = self._new_size(img_size)
        self._check_sizes([size])
        self.img_size = size

    def _check_sizes(self, sizes: Sequence[Size]) -> None:
        least = self.sizes()[1]
        for height, width in sizes:
            if min(height, width) < least:
                raise ChoiceError(
                    f"img_size: the stages and sr_ratios need sides of at least {least} pixels, got {height} x {width}"
                )

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that an image is too small for the stages, where it is."""
        if choice is searched_size(self) and value < (least := self.sizes()[1]):
            return f"needs images with sides of at least {least}"
        return None

    def last_map(self, x: Tensor) -> Tensor:
        """Run all stages, on images of the active size where that is searched: (B, C, H, W) -> (B, H / S, W / S, D)."""
        return super().last_map(self.resized(x))

    def last_width(self) -> Dim:
        """Return the channels of the last stage, of every subnet."""
        return self.embed_dims[-1]

    def check(self, x: Tensor) -> Tensor:
        """Return images that have the channels that are accepted, and a position in every map.

        Raises:
            ShapeError: other images.
        """
        channels, least = self.sizes()
        return plain.of_shape(x, (channels, None, None), least, ShapeError)

    def widths(self) -> list[int]:
        """Return the channels of each stage."""
        return [dim.active for dim in self.embed_dims]

    def image_shape(self) -> tuple[int, int, int]:
        """Return the channels, height and width of an image, the largest where its size is searched."""
        first: Any = self.patch_embeds[0]
        return first.proj.in_channels, *largest_size(self)

    def maps(self, size: Size | None = None) -> list[Map]:
        """Return the size of each stage's map, for images of a height and width; None: of `img_size`."""
        height, width = self.img_size if size is None else size
        return [Map(height // stride, width // stride) for stride in self.strides()]

    def cost(self, tokens: Cost | None = None) -> Cost:
        """Return the multiply-adds for one image of each size; `tokens` is not used, the image gives the maps."""
        return sum((own * cost_of_stages(self, self.maps(size)) for own, size in each_size(self)), Cost())

    def param_count(self) -> Cost:
        """Return the active parameters."""
        return sum((params_of(child).under(name) for name, child in self.named_children()), Cost())

    def export(self) -> plain.Twins:
        """Return the plain Twins of the active subnet with its own copy of the weights."""
        return rebuilt(self, plain.Twins, global_pool=self.global_pool)


class _Stage(NamedTuple):
    """What a stage is made of, its entry of every argument."""

    name: str
    dim: Dim
    values: Sequence[BlockValues]
    depth: int | Iterable[int]
    sr_ratio: int
    window: Count | None

    def row(self, options: BlockOptions, depth_p: float | Sequence[float] | None, shift: bool) -> ShiftableIdentity:
        """Return the blocks; even slots attend inside windows, where there are any."""
        window = None if self.window is None else choice_of(self.window, f"{self.name}.window_size")

        def block(slot: int) -> plain.Block:
            name, own_window = f"{self.name}.blocks.{slot}", None if slot % 2 else window
            return map_block(name, self.dim, self.values[slot], options, own_window, self.sr_ratio)

        return row_of(block, self.depth, depth_p, shift, self.name)


def _merging(before: int | Dim, dim: int | Dim, patch: int) -> plain.PatchMerging:
    return plain.PatchMerging(ElasticConv2d(before, dim, patch, patch), ElasticLayerNorm(dim))


def _stages(
    dims: Sequence[Dim],
    given: Mapping[str, Any],
    depths: Sequence[int | Iterable[int]],
    sr_ratios: Sequence[int],
    wss: Sequence[Count] | None,
) -> list[_Stage]:
    """Return a stage for each width; `given` says of the blocks what BlockValues hold, in their order."""
    n = len(dims)
    rows = [reusable(depth) for depth in _for_each_stage("depths", depths, n)]
    names = [
        [f"stages.{k}.blocks.{slot}" for slot in range(depths_of(depth, f"stages.{k}.depth")[1])]
        for k, depth in enumerate(rows)
    ]
    if (number := sum(map(len, names))) > MOST_BLOCKS:
        raise ChoiceError(f"depths: expected at most {MOST_BLOCKS} blocks in all stages, got {number}")
    columns = {
        what: _of_blocks(what, values, names, word) for (what, values), word in zip(given.items(), _WORDS, strict=True)
    }
    ratios, windows = _for_each_stage("sr_ratios", sr_ratios, n), _for_each_stage("wss", wss, n)
    return [
        _Stage(
            f"stages.{k}",
            dims[k],
            values_of(names[k], **{what: column[k] for what, column in columns.items()}),
            rows[k],
            ratios[k],
            reusable(windows[k]),
        )
        for k in range(n)
    ]


_WORDS = BlockValues._fields


def _of_blocks(what: str, values: Any, names: Sequence[Sequence[str]], word: str) -> list[Any]:
    """Return what is said of the blocks of each stage."""
    if isinstance(values, Mapping):
        return for_blocks_of_stages(what, values, names, word)
    return _for_each_stage(what, values, len(names))


def _for_each_stage(what: str, values: Any, n: int) -> list[Any]:
    """Return the entry of each of `n` stages; None where nothing is given and nothing has to be."""
    if values is None and what in ("wss", "qkv_dims", "mlp_dims"):
        return [None] * n
    given = _listed(values, what)
    if len(given) != n:
        raise ChoiceError(f"{what}: expected one entry for each of the {n} stages (as embed_dims has), got {len(given)}")
    return given


def cost_of_stages(model: nn.Module, maps: Sequence[Map]) -> Cost:
    """Return the multiply-adds of a model with the parts of Twins, `maps` being the size of each stage's map."""
    cost, parts = Cost(), model._modules
    for name in ("patch_embeds", "blocks", "pos_block"):
        for stage, part in enumerate(cast(nn.ModuleList, parts[name])):
            cost += cost_of(part, maps[stage]).under(f"{name}.{stage}")
    return cost + cost_of(cast(nn.Module, parts["head"]), Cost(1) if model.global_pool else maps[-1]).under("head")


def _listed(values: Iterable[T], what: str) -> list[T]:
    if not are_several(values):
        raise ChoiceError(f"{what}: expected one entry for each stage, got {shown(values)}")
    entries = list(islice(values, _MOST_STAGES + 1))
    if len(entries) > _MOST_STAGES:
        raise ChoiceError(f"{what}: expected one entry for each of at most {_MOST_STAGES} stages, got {shown(values)}")
    return entries

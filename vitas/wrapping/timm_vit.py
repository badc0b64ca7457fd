"""timm's Vision Transformer made searchable: one-step subclasses in which what a forward pass reads follows the choices.

Only the class of a module changes (`become`): parameters, checkpoint keys, hooks and flags stay, and timm's own forward code
runs. What that code reads as an attribute, `num_heads`, `cls_token`, the gain of a norm, is here a property over a Choice or
Dim. Linear layers and convolutions are torch's and become those of `vitas.nn`. An export takes every step back: timm's
classes, with ints and slices where the properties were.

Importing this file imports timm; `vitas.wrap` does so when it is used. Written for timm 1.0.23 to 1.0.31.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import torch
from timm import layers
from timm.models import deit, vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitas.choice import Choice, Dim, Mark, as_dim, compiling, outside_graphs, take
from vitas.cost import Cost, cost_of, params_of, product_of
from vitas.errors import VitasError
from vitas.nn import CyclicLinear, ElasticConv2d, ShiftableIdentity
from vitas.nn.drop_path import drop_samples
from vitas.nn.layer import exported, like
from vitas.nn.stacked import StackedLinear
from vitas.space import State

M = TypeVar("M", bound=nn.Module)


class Narrowed(nn.Module):
    """What stands first among the bases of every class here; the class of timm or torch that it narrows stands last."""

    reads: tuple[str, ...] = ()
    """Attributes that the narrowed class holds as values and that are properties here, in front of the values."""

    holds: tuple[str, ...] = ()
    """Attributes that the narrowed class does not have."""

    def axes(self) -> dict[str, tuple[Dim | None, ...]]:
        """Return the Dim of each axis of the parameters that the module itself holds; None leaves an axis whole."""
        return {}

    def active_weights(self) -> dict[str, Tensor]:
        """Return the part in use of those parameters; nothing else slices."""
        return take(**{name: (self._parameters[name], *dims) for name, dims in self.axes().items()})

    def cost(self, tokens: Cost) -> Cost:
        """Return what the children cost; norms and scaling are listed as not counted."""
        return sum((cost_of(child, tokens).under(name) for name, child in self.named_children()), Cost())

    def param_count(self) -> Cost:
        """Return the active parameters of the module and its children."""
        own = Cost()
        for name, dims in self.axes().items():
            if (parameter := self._parameters[name]) is not None:
                own += product_of(*(dim or size for dim, size in zip(dims, parameter.shape, strict=True)))
        return sum((params_of(child) for child in self.children()), own)

    def export(self) -> nn.Module:
        """Return a module of the narrowed class with the values, and its own copy of the weights, of the active subnet."""
        narrowed: Any = type(self).__bases__[-1]
        plain: nn.Module = narrowed.__new__(narrowed)
        nn.Module.__init__(plain)
        torchs_own = set(vars(plain))
        for name, value in vars(self).items():
            if name not in torchs_own and name not in self.holds:
                vars(plain)[name] = getattr(self, name) if name in self.reads else copy.deepcopy(value)
        weights = self.active_weights()
        for name, parameter in self._parameters.items():
            own = None
            if parameter is not None:
                active = weights[name].detach().clone(memory_format=torch.contiguous_format)
                own = nn.Parameter(active, parameter.requires_grad)
            plain.register_parameter(name, own)
        for name, child in self._modules.items():
            plain.add_module(name, None if child is None else exported(child))
        return like(self, plain)


def become(module: nn.Module, narrower: type[M], **dims: Any) -> M:
    """Narrow the class of `module` by one step and let it hold `dims`; all else stays as it is.

    Args:
        module: An instance of exactly the class that `narrower` narrows.
        narrower: The class to become.
        dims: Attributes that `narrower` has beyond those of the class that it narrows.
    """
    module.__class__ = narrower
    vars(module).update(dims)
    return cast(M, module)


def _part(name: str) -> Any:
    """Return a property: the part in use of a parameter that the module holds; None where it has none."""

    def part(module: Any) -> Tensor | None:
        parameter = module._parameters.get(name)
        return None if parameter is None else take(it=(parameter, *module.axes()[name]))["it"]

    return property(part)


class Channelwise(Narrowed):
    """A norm or a scale over the active channels of `dim`.

    Shapes: (B, N, K) -> (B, N, K), K = dim.active.
    Cost: 0 MACs.
    """

    holds = ("dim",)
    dim: Dim

    def axes(self) -> dict[str, tuple[Dim | None, ...]]:
        """Return `dim` for each parameter."""
        return dict.fromkeys(self._parameters, (self.dim,))

    def extra_repr(self) -> str:
        return self.dim.brief()


class Norm(Channelwise):
    """A norm over the active channels."""

    reads = ("normalized_shape",)
    weight = _part("weight")
    bias = _part("bias")
    normalized_shape = property(lambda self: (self.dim.active,))


class _TorchLayerNorm(Norm, nn.LayerNorm):
    pass


class _LayerNorm(Norm, layers.LayerNorm):
    pass


class _LayerNormFp32(Norm, layers.LayerNormFp32):
    pass


class _RmsNorm(Norm, layers.RmsNorm):
    pass


class _RmsNormFp32(Norm, layers.RmsNormFp32):
    pass


class _LayerScale(Channelwise, layers.LayerScale):
    gamma = _part("gamma")


class ElasticDropPath(Narrowed, layers.DropPath):
    """Stochastic depth whose rate follows the block's place among those that run: the model's rates, stretched over them.

    `slot` is the block's number in its row, `before` the depths of the rows before it, `depths` those of all rows.

    Shapes: (B, ...) -> (B, ...).
    Cost: 0 MACs.
    """

    reads = ("drop_prob",)
    holds = ("slot", "rates", "before", "depths")
    slot: Mark[int]
    rates: tuple[float, ...]
    before: tuple[Choice[int], ...]
    depths: tuple[Choice[int], ...]
    scale_by_keep: bool

    @property
    def drop_prob(self) -> float:
        """The rate in the active subnet."""
        number = self.slot.read(0) + sum(depth.active for depth in self.before)
        last = sum(depth.active for depth in self.depths) - 1
        place = number * (len(self.rates) - 1) / max(last, 1)
        below = min(int(place), len(self.rates) - 1)
        above = min(below + 1, len(self.rates) - 1)
        return self.rates[below] + (place - below) * (self.rates[above] - self.rates[below])

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples; compiled, one graph serves every slot and depth (with other random numbers than eager)."""
        if not self.training or not compiling():
            return super().forward(x)  # type: ignore[no-any-return]
        last = len(self.rates) - 1
        number = self.slot.read(0) + sum(depth.active for depth in self.before)
        steps, place = torch.sym_max(sum(depth.active for depth in self.depths) - 1, 1), number * last
        rates, below = torch.tensor(self.rates, device=x.device), torch.sym_min(place // steps, last)
        share = place / steps - below
        rate = rates[below] + share * (rates[torch.sym_min(below + 1, last)] - rates[below])
        return drop_samples(x, 1 - rate, self.scale_by_keep)


class ElasticAttention(Narrowed, layers.Attention):
    """timm's attention with a searchable number of heads of timm's head width.

    Shapes: (B, N, D) -> (B, N, D); inside h = heads.active heads, d = inner.active = h * head_dim.
    Cost: 4 * tokens * D * d + 2 * tokens^2 * d MACs.
    """

    reads = ("num_heads", "attn_dim")
    holds = ("heads", "inner")
    heads: Dim
    inner: Dim
    num_heads = property(lambda self: self.heads.active)
    attn_dim = property(lambda self: self.inner.active)

    def cost(self, tokens: Cost) -> Cost:
        """Return the linear layers' cost and 2 * tokens^2 * d."""
        return super().cost(tokens) + (tokens * tokens * self.inner * 2).named("matmul")


class _Mlp(Narrowed, layers.Mlp):
    pass


class _GluMlp(Narrowed, layers.GluMlp):
    pass


class _SwiGLU(Narrowed, layers.SwiGLU):
    pass


class _Block(Narrowed, vision_transformer.Block):
    pass


class _ResPostBlock(Narrowed, vision_transformer.ResPostBlock):
    pass


class _LatentPool(Narrowed, layers.AttentionPoolLatent):
    """Attention pooling by learned queries, as wide as the residual stream; its heads keep their width."""

    reads = ("num_heads", "latent_dim", "out_features")
    holds = ("dim",)
    dim: Dim
    latent_len: int
    num_heads = property(lambda self: self.dim.active // self.head_dim)
    latent_dim = out_features = property(lambda self: self.dim.active)
    latent = _part("latent")

    def axes(self) -> dict[str, tuple[Dim | None, ...]]:
        """Return `dim` for the channels of the queries."""
        return {"latent": (None, None, self.dim)}

    def cost(self, tokens: Cost) -> Cost:
        """Return the cost of pooling `tokens` into latent_len queries."""
        queries = Cost(self.latent_len)
        parts = {"q": queries, "kv": tokens, "proj": queries, "mlp": queries}
        cost = sum((cost_of(getattr(self, name), n).under(name) for name, n in parts.items()), Cost())
        return cost + (tokens * self.dim * self.latent_len * 2).named("matmul")


if hasattr(layers, "AttentionPoolPrr"):  # since timm 1.0.26

    class _PrrPool(Narrowed, layers.AttentionPoolPrr):
        """Attention pooling without weights, as wide as the residual stream; its heads keep their width."""

        reads = ("num_heads", "out_features")
        holds = ("dim",)
        dim: Dim
        num_heads = property(lambda self: self.dim.active // self.head_dim)
        out_features = property(lambda self: self.dim.active)

        def cost(self, tokens: Cost) -> Cost:
            """Return 2 * tokens^2 * K."""
            return (tokens * tokens * self.dim * 2).named("matmul")


class _Bound(nn.Module):
    """A block that runs in the subnet that was active when this was made, whenever it is run (again)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.state = block, State.of_module(block)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        with self.state.restored():
            return self.block(*inputs, **options)


class _Running(nn.Sequential):
    """The blocks that run, as timm's methods want them: counted, sliced, run one by one or all together."""

    slots: Callable[[Tensor], Tensor] | None = None

    @outside_graphs(recursive=False)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.slots is None else self.slots(x)  # type: ignore[no-untyped-call]


def largest(module: nn.Module) -> AbstractContextManager[None]:
    """Activate the largest value of every choice for the length of a with block."""
    return State.of_module(module).largest().restored()


def whole(narrowed: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of the narrowed class, run while the largest subnet is active."""

    @wraps(narrowed)
    def method(self: Model, *arguments: Any, **named: Any) -> Any:
        with largest(self), torch.no_grad():
            return getattr(super(Model, self), narrowed.__name__)(*arguments, **named)

    return method


class Model(Narrowed):
    """What searchable models have in common: methods that read or write whole parameters, or make layers."""

    reset_classifier = whole(VisionTransformer.reset_classifier)
    get_submodule, get_parameter = whole(nn.Module.get_submodule), whole(nn.Module.get_parameter)

    def _narrow_head(self) -> None:
        """Make the classifier searchable where it is not."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a new classifier is searchable like the old one."""
        super().__setattr__(name, value)
        if type(value) is nn.Linear:
            self._narrow_head()

    def prune_intermediate_layers(self, *arguments: Any, **named: Any) -> list[int]:
        """Refuse: which blocks run is the choice of a subnet.

        Raises:
            VitasError: always.
        """
        raise VitasError("prune_intermediate_layers: not while the depth can be searched; export a subnet and prune that")


class ElasticVisionTransformer(Model, VisionTransformer):
    """timm's Vision Transformer of which the width, and of whose blocks heads, MLP width and number, can be searched.

    Attributes and methods of timm's class follow the active subnet: `embed_dim`, `cls_token`, `blocks` (those that run),
    `forward_intermediates`... Checkpoint keys and shapes are those of the whole model.

    Shapes: (B, C, H, W) -> (B, classes).
    Cost: patches, blocks, attention pooling and classifier of the active subnet in MACs, for an image of the model's size.
    Source: timm 1.0.23 to 1.0.31, `timm/models/vision_transformer.py`; which channels a width uses: vitas.sharing.
    """

    reads = ("embed_dim", "num_features", "head_hidden_size")
    holds = ("width",)
    width: Dim
    patch_embed: Any
    norm_pre: Any
    norm: Any
    attn_pool: Any
    fc_norm: Any
    global_pool: str
    num_prefix_tokens: int
    pool_include_prefix: bool
    grad_checkpointing: bool
    embed_dim = num_features = head_hidden_size = property(lambda self: self.width.active)
    cls_token, reg_token, pos_embed = _part("cls_token"), _part("reg_token"), _part("pos_embed")

    @property
    def blocks(self) -> nn.Sequential:
        """The blocks that run; under gradient checkpointing each is bound to the active subnet."""
        return self._running()

    @outside_graphs  # or torch.compile would make a graph for each depth
    def _running(self) -> nn.Sequential:
        slots = cast(ShiftableIdentity, self._modules["blocks"])
        bound = self.grad_checkpointing and torch.is_grad_enabled()
        running = _Running(*(_Bound(block) if bound else block for block in slots.running()))
        vars(running)["slots"] = slots  # not as a child
        return running

    def axes(self) -> dict[str, tuple[Dim | None, ...]]:
        """Return `width` for the channels of tokens and positions."""
        return dict.fromkeys(self._parameters, (None, None, self.width))

    def cost(self, tokens: Cost | None = None) -> Cost:
        """Return the multiply-adds for one image of the model's size; `tokens` is not used.

        Raises:
            VitasError: a model that does not know the size of its images.
        """
        patches = self.patch_embed.num_patches
        if patches is None:
            raise VitasError("cost: this model does not know the size of its images; give it one by set_input_size")
        cost = cost_of(self.patch_embed.proj, Cost(patches)).under("patch_embed.proj")
        inside = Cost(patches + self.num_prefix_tokens)
        cost += cost_of(cast(nn.Module, self._modules["blocks"]), inside).under("blocks")
        pooled = Cost(1) if self.global_pool or self.attn_pool is not None else inside
        if self.attn_pool is not None:
            cost += cost_of(self.attn_pool, inside if self.pool_include_prefix else Cost(patches)).under("attn_pool")
        for name in ("head", "head_dist"):
            if name in self._modules:
                cost += cost_of(cast(nn.Module, self._modules[name]), pooled).under(name)
        return cost

    def export(self) -> nn.Module:
        """Return timm's model of the active subnet, its blocks of different sizes, with its own copy of the weights."""
        plain: Any = super().export()
        plain.blocks = like(plain, nn.Sequential(*plain.blocks))
        vars(plain).pop("_model_args", None)  # what timm.create_model was given says no longer what the network is
        plain.feature_info = [{**info, "num_chs": plain.embed_dim} for info in plain.feature_info[: len(plain.blocks)]]
        return cast(nn.Module, plain)

    init_weights, load_pretrained = whole(VisionTransformer.init_weights), whole(VisionTransformer.load_pretrained)
    _set_input_size = whole(VisionTransformer.set_input_size)

    def set_input_size(self, *sizes: Any, **named: Any) -> None:
        """Set the size of images, and of patches, as timm does; the tables are resampled whole."""
        self._set_input_size(*sizes, **named)
        narrow_stem(self)

    def _narrow_head(self) -> None:
        narrow_head(self)


class ElasticVisionTransformerDistilled(ElasticVisionTransformer, deit.VisionTransformerDistilled):
    """The same with a distillation token and its classifier (DeiT).

    Shapes: (B, C, H, W) -> (B, classes); while training with `set_distilled_training`, a pair of them.
    Source: timm 1.0.23 to 1.0.31, `timm/models/deit.py`.
    """

    dist_token = _part("dist_token")


NORMS: dict[type[nn.Module], type[Norm]] = {
    nn.LayerNorm: _TorchLayerNorm,
    layers.LayerNorm: _LayerNorm,
    layers.LayerNormFp32: _LayerNormFp32,
    layers.RmsNorm: _RmsNorm,
    layers.RmsNormFp32: _RmsNormFp32,
}


MLPS: dict[type[nn.Module], type[Narrowed]] = {layers.Mlp: _Mlp, layers.GluMlp: _GluMlp, layers.SwiGLU: _SwiGLU}


BLOCKS: dict[type[nn.Module], type[Narrowed]] = {
    vision_transformer.Block: _Block,
    vision_transformer.ResPostBlock: _ResPostBlock,
}


MODELS: dict[type[nn.Module], type[ElasticVisionTransformer]] = {
    VisionTransformer: ElasticVisionTransformer,
    deit.VisionTransformerDistilled: ElasticVisionTransformerDistilled,
}


POOLS: dict[type[nn.Module], type[Narrowed]] = {layers.AttentionPoolLatent: _LatentPool}


if hasattr(layers, "AttentionPoolPrr"):
    POOLS[layers.AttentionPoolPrr] = _PrrPool


_WITH_WEIGHTS = {nn.Linear, nn.Conv2d, layers.LayerScale, *NORMS, *MODELS, layers.AttentionPoolLatent}


_WITH_PARTS = {*MODELS, *BLOCKS, *MLPS, *POOLS, layers.Attention, layers.PatchEmbed, nn.Sequential}


# Whatever else holds a parameter was added by somebody, and no slice of it is known.
_OWN = {"weight", "bias", "gamma", "latent", "cls_token", "reg_token", "dist_token", "pos_embed"}


def unsupported(
    model: nn.Module, with_weights: Collection[type] = _WITH_WEIGHTS, with_parts: Collection[type] = _WITH_PARTS
) -> str | None:
    """Name a part that none of the classes here narrows; None if all can be.

    Args:
        model: The model.
        with_weights: Classes that may hold parameters.
        with_parts: Classes that may hold modules.
    """
    for path, part in model.named_modules():
        own = dict(part.named_parameters(recurse=False))
        parts = any(True for _ in part.children())
        if (own and type(part) not in with_weights) or (parts and type(part) not in with_parts):
            return f"{path} is a {type(part).__name__}"
        if "forward" in vars(part):
            return f"{path or 'the model'} has a forward of its own"
        if unknown := own.keys() - _OWN:
            return f"{path or 'the model'} holds {', '.join(sorted(unknown))}"
    first: dict[nn.Parameter, str] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, path) != path:
            return f"{path} and {first[parameter]} are one parameter"
    return None


def supported_parts() -> str:
    """Return the kinds of parts that can be narrowed, for error messages."""
    kinds = [*BLOCKS, layers.Attention, *MLPS, *NORMS, layers.LayerScale, layers.PatchEmbed, *POOLS]
    return ", ".join(dict.fromkeys(kind.__name__ for kind in kinds))


class Sizes(NamedTuple):
    """The sizes that can be searched of a row of blocks; `unit` has to divide its widths."""

    prefix: str  # of the names of its choices
    embed_dim: int
    unit: int
    num_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    mlp_dim: tuple[int, ...]
    stacks: tuple[int, ...]  # parts of the first layer of each MLP: 2 where it makes values and gates
    pool_mlp_dim: int | None = None  # of attention pooling; not searched

    @classmethod
    def of(cls, prefix: str, embed_dim: int, unit: int, blocks: Iterable[Any]) -> Sizes:
        """Return the sizes of `blocks`, in the active subnet if they are searchable."""
        rows = []
        for block in blocks:
            given = block.attn.num_heads
            count = given.active if isinstance(given, Choice) else given
            rows.append((count, _width_into(block.attn.proj) // count, _width_into(block.mlp.fc2), _stacks(block.mlp)))
        heads, widths, hidden, stacks = zip(*rows, strict=True)
        return cls(prefix, embed_dim, unit, heads, widths, hidden, stacks)


class Row(NamedTuple):
    """The choices of a row of blocks: its width, how many run, and heads and hidden width of the MLP of each."""

    width: Dim
    depth: Choice[int]
    heads: Sequence[Dim]
    hidden: Sequence[Dim]


def sizes(model: Any) -> list[Sizes]:
    """Return the sizes of a timm Vision Transformer."""
    pool = model.attn_pool
    own = Sizes.of("", model.embed_dim, 1 if pool is None else pool.head_dim, model.blocks)
    return [own._replace(pool_mlp_dim=_width_into(pool.mlp.fc2) if hasattr(pool, "mlp") else None)]


def arguments(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments of the constructor that build the one row."""
    return rows[0]


def _width_into(linear: Any) -> int:
    return linear.in_dim.active if isinstance(linear, CyclicLinear) else linear.in_features


def _stacks(mlp: Any) -> int:
    return mlp.fc1.out_features // mlp.fc2.in_features if hasattr(mlp, "fc1") else 1


def narrow(model: nn.Module, rows: Sequence[Row]) -> nn.Module:
    """Make a timm Vision Transformer searchable in place.

    Args:
        model: One of exactly the classes in `MODELS`, all of whose parts are supported.
        rows: The choices of its one row of blocks.
    """
    ((width, depth, heads, hidden),) = rows
    slots = cast(nn.Sequential, model.blocks)
    lay_drop_path([slots], [depth])
    for slot, block in enumerate(slots):
        narrow_block(block, width, heads[slot], hidden[slot])
    become(slots, ShiftableIdentity, shift=True, depth=depth)
    elastic = become(model, MODELS[type(model)], width=width)
    for norm in (elastic.norm_pre, elastic.norm, elastic.fc_norm):
        narrow_norm(norm, width)
    narrow_stem(elastic)
    narrow_head(elastic)
    return elastic


def lay_drop_path(rows: Sequence[Iterable[nn.Module]], depths: Sequence[Choice[int]]) -> None:
    """Let the stochastic depth of the blocks of several rows in turn follow how many of them run."""
    all_ = tuple(depths)
    for name in ("drop_path1", "drop_path2"):
        drops = [[getattr(block, name) for block in row] for row in rows]
        rates = tuple(float(getattr(drop, "drop_prob", 0.0)) for row in drops for drop in row)
        for number, row in enumerate(drops):
            for slot, drop in enumerate(row):
                if type(drop) is layers.DropPath:
                    before = tuple(depths[:number])
                    become(drop, ElasticDropPath, slot=Mark(slot), rates=rates, before=before, depths=all_)


def narrow_stem(model: ElasticVisionTransformer) -> None:
    """Make the patch embedding searchable where it is not."""
    proj: Any = model.patch_embed.proj
    if type(proj) is nn.Conv2d:
        become(proj, ElasticConv2d, in_dim=as_dim(proj.in_channels, "in_chans"), out_dim=model.width, depthwise=False)
    narrow_norm(model.patch_embed.norm, model.width)


def narrow_head(model: ElasticVisionTransformer) -> None:
    """Make attention pooling and classifiers searchable where they are not."""
    width, pool = model.width, model.attn_pool
    if type(pool) in POOLS:
        if hasattr(pool, "kv"):
            if type(pool.q) is nn.Linear:
                become(pool.q, CyclicLinear, in_dim=width, out_dim=width)
            become(pool.kv, StackedLinear, in_dim=width, out_dim=width, stacks=2)
            become(pool.proj, CyclicLinear, in_dim=width, out_dim=width)
            narrow_mlp(pool.mlp, width, as_dim(pool.mlp.fc2.in_features, "mlp_dim"))
        for name in ("norm", "pre_norm", "post_norm"):
            narrow_norm(getattr(pool, name, None), width)
        for name in ("q_norm", "k_norm"):
            narrow_norm(getattr(pool, name, None), as_dim(pool.head_dim, "head_dim"))
        become(pool, POOLS[type(pool)], dim=width)
    for name in ("head", "head_dist"):
        head: Any = model._modules.get(name)
        if type(head) is nn.Linear:
            become(head, CyclicLinear, in_dim=width, out_dim=as_dim(head.out_features, "num_classes"))


def narrow_block(block: nn.Module, width: Dim, heads: Dim, hidden: Dim) -> None:
    """Make the parts of a block searchable."""
    attn: Any = block.attn
    inner = heads * attn.head_dim
    become(attn.qkv, StackedLinear, in_dim=width, out_dim=inner, stacks=3)
    become(attn.proj, CyclicLinear, in_dim=inner, out_dim=width)
    if getattr(attn, "gate", None) is not None:  # since timm 1.0.30
        become(attn.gate, CyclicLinear, in_dim=width, out_dim=inner)
    head_dim = as_dim(attn.head_dim, "head_dim")
    for norm, dim in ((attn.q_norm, head_dim), (attn.k_norm, head_dim), (attn.norm, inner)):
        narrow_norm(norm, dim)
    become(attn, ElasticAttention, heads=heads, inner=inner)
    narrow_mlp(cast(nn.Module, block.mlp), width, hidden)
    for norm in (block.norm1, block.norm2):
        narrow_norm(norm, width)
    for name in ("ls1", "ls2"):
        scale: Any = getattr(block, name, None)
        if type(scale) is layers.LayerScale:
            become(scale, _LayerScale, dim=width)
    become(block, BLOCKS[type(block)])


def narrow_mlp(mlp: Any, width: Dim, hidden: Dim) -> None:
    """Make an MLP searchable."""
    for name in ("fc1", "fc1_g", "fc1_x"):
        linear = getattr(mlp, name, None)
        if linear is not None:
            stacks = _stacks(mlp)
            if stacks == 1:
                become(linear, CyclicLinear, in_dim=width, out_dim=hidden)
            else:  # GluMlp: values and gates in one layer
                become(linear, StackedLinear, in_dim=width, out_dim=hidden, stacks=stacks)
    become(mlp.fc2, CyclicLinear, in_dim=hidden, out_dim=width)
    narrow_norm(mlp.norm, hidden)
    become(mlp, MLPS[type(mlp)])


def narrow_norm(norm: Any, dim: Dim) -> None:
    """Make a norm searchable where it is one."""
    if type(norm) in NORMS:
        become(norm, NORMS[type(norm)], dim=dim)

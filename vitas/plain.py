"""What exports are made of: a Vision Transformer in plain torch. This file imports torch only and works alone.

The forward passes of block, attention, MLP and model stand here and nowhere else. Each class is given its layers: with
torch.nn layers it is a plain network, with those of `vitas.nn` the same code is searchable. Attribute names and
checkpoint keys are timm's (timm 1.0.23, `timm/models/vision_transformer.py`).

Letters: B images, C channels, H x W pixels, P patch size, N tokens, D embedding width, h heads, d width of q, k and v each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class DropPath(nn.Module):
    """Drop the whole branch of a sample with probability `drop_prob` while training; scale the others up.

    Shapes: (B, ...) -> (B, ...).
    Source: stochastic depth, Huang et al., arXiv:1603.09382v3.
    """

    drop_prob: float

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        drop_prob = self.drop_prob
        if drop_prob == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - drop_prob)
        return x * keep.div_(1 - drop_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class LayerScale(nn.Module):
    """Multiply each channel by a learned gain that starts small.

    Shapes: (B, N, D) -> (B, N, D).
    Source: Touvron et al., arXiv:2103.17239v2, section 2.
    """

    def __init__(self, dim: int, init_values: float = 1e-5, device: torch.device | None = None) -> None:
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.full((dim,), init_values, device=device))

    def reset_parameters(self) -> None:
        """Set every gain to its starting value."""
        nn.init.constant_(self.gamma, self.init_values)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an activation between.

    Shapes: (B, N, D) -> (B, N, D).
    """

    def __init__(self, fc1: nn.Module, fc2: nn.Module, act: nn.Module, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = fc1
        self.act = act
        self.drop1 = nn.Dropout(drop)
        self.fc2 = fc2
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1(x)))
        return self.drop2(self.fc2(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention; the head width is d / h, the scale its inverse root.

    Shapes: (B, N, D) -> (B, N, D).
    Source: Vaswani et al., arXiv:1706.03762v7, section 3.2.

    Args:
        qkv: Layer (B, N, D) -> (B, N, 3d): all of q, then k, then v.
        proj: Layer (B, N, d) -> (B, N, D).
        num_heads: Number of heads.
        q_norm: Layer on the channels of each head's queries.
        k_norm: Layer on the channels of each head's keys.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.
    """

    def __init__(
        self,
        qkv: nn.Module,
        proj: nn.Module,
        num_heads: int,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = qkv
        self.q_norm = q_norm or nn.Identity()
        self.k_norm = k_norm or nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = proj
        self.proj_drop = nn.Dropout(proj_drop)

    def heads(self) -> int:
        """Return the number of heads in use."""
        return self.num_heads

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads(), -1))  # (B, N, 3, h, d / h)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, d / h) each
        dropout = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, dropout_p=dropout)
        x = x.transpose(1, 2).flatten(2)  # (B, N, d)
        return self.proj_drop(self.proj(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block: x + attention, then x + MLP.

    Shapes: (B, N, D) -> (B, N, D).
    Source: Dosovitskiy et al., arXiv:2010.11929v2, section 3.1.
    """

    def __init__(
        self,
        norm1: nn.Module,
        attn: nn.Module,
        norm2: nn.Module,
        mlp: nn.Module,
        ls1: nn.Module | None = None,
        ls2: nn.Module | None = None,
        drop_path1: nn.Module | None = None,
        drop_path2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm1
        self.attn = attn
        self.ls1 = ls1 or nn.Identity()
        self.drop_path1 = drop_path1 or nn.Identity()
        self.norm2 = norm2
        self.mlp = mlp
        self.ls2 = ls2 or nn.Identity()
        self.drop_path2 = drop_path2 or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))  # type: ignore[no-any-return]


def block_from(config: Mapping[str, Any], dim: int) -> Block:
    """Return a block of the sizes that `block_config` returned."""
    drop, eps = config["proj_drop"], config["norm_eps"]
    heads, width, hidden = config["num_heads"], config["qkv_dim"], config["mlp_dim"]
    norms = [nn.LayerNorm(width // heads, config["qk_norm_eps"]) if config["qk_norm_eps"] else None for _ in range(2)]
    scales = [None if config["init_values"] is None else LayerScale(dim, config["init_values"]) for _ in range(2)]
    drops = [DropPath(config["drop_path"]) if config["drop_path"] else None for _ in range(2)]
    qkv, proj = nn.Linear(dim, 3 * width, config["qkv_bias"]), nn.Linear(width, dim)
    return Block(
        nn.LayerNorm(dim, eps),
        Attention(qkv, proj, heads, norms[0], norms[1], config["attn_drop"], drop),
        nn.LayerNorm(dim, eps),
        Mlp(nn.Linear(dim, hidden), nn.Linear(hidden, dim), nn.GELU(), drop),
        *scales,
        *drops,
    )


def block_config(block: Block) -> dict[str, Any]:
    """Return the sizes and options of a block of the kind that exports have."""
    attn: Any = block.attn
    mlp: Any = block.mlp
    norm1: Any = block.norm1
    return {
        "num_heads": attn.num_heads,
        "qkv_dim": attn.proj.in_features,
        "mlp_dim": mlp.fc1.out_features,
        "qkv_bias": attn.qkv.bias is not None,
        "qk_norm_eps": getattr(attn.q_norm, "eps", None),
        "norm_eps": norm1.eps,
        "init_values": getattr(block.ls1, "init_values", None),
        "attn_drop": attn.attn_drop.p,
        "proj_drop": attn.proj_drop.p,
        "drop_path": getattr(block.drop_path1, "drop_prob", 0.0),
    }


class Blocks(nn.Sequential):
    """Blocks in a row; with `grad_checkpointing` their activations are recomputed in the backward pass."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        recompute = self.grad_checkpointing and torch.is_grad_enabled()
        for block in self:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return x


class PatchEmbed(nn.Module):
    """Cut the image into patches and embed each.

    Shapes: (B, C, H, W) -> (B, N, D), N = (H / P) * (W / P).

    Args:
        proj: Layer (B, C, H, W) -> (B, D, H / P, W / P).
        img_size: Height and width in pixels.
        in_chans: Image channels C.
    """

    def __init__(self, proj: nn.Module, img_size: tuple[int, int], in_chans: int = 3) -> None:
        super().__init__()
        self.img_size = img_size
        self.in_chans = in_chans
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1:] != (self.in_chans, *self.img_size):
            self.refuse(x)
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def refuse(self, x: Tensor) -> NoReturn:
        """Raise for images of another shape.

        Raises:
            ValueError: always.
        """
        raise ValueError(self.expected(x))

    def expected(self, x: Tensor) -> str:
        """Say which images are accepted and which came."""
        shape = ", ".join(map(str, ("batch", self.in_chans, *self.img_size)))
        return f"images: expected shape ({shape}), got {tuple(x.shape)}"


def add_tokens(x: Tensor, tokens: Sequence[Tensor], pos_embed: Tensor) -> Tensor:
    """Put the class (and distillation) token before the patches and add the positions: (B, N, D) -> (B, T + N, D)."""
    first = [token.expand(x.shape[0], -1, -1) for token in tokens]
    return torch.cat([*first, x], dim=1) + pos_embed


def resample_positions(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """Return the positions for another grid of patches: bicubic, antialiased, the first `prefix` tokens kept.

    Shapes: (1, prefix + old[0] * old[1], D) -> (1, prefix + new[0] * new[1], D).
    Source: the same rule as timm 1.0.23, `resample_abs_pos_embed`.
    """
    if old == new:
        return pos_embed
    first, grid = pos_embed[:, :prefix], pos_embed[:, prefix:].float()
    grid = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    grid = grid.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(pos_embed.dtype)
    return torch.cat([first, grid], dim=1)


class Tokens(nn.Module):
    """Class token and learned positions.

    Shapes: (B, N, D) -> (B, 1 + N, D); tables (1, 1, D) and (1, 1 + N, D).
    """

    def __init__(self, cls_token: Tensor, pos_embed: Tensor) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(cls_token)
        self.pos_embed = nn.Parameter(pos_embed)

    def reset_parameters(self) -> None:
        """Draw fresh tables: truncated normal positions (std 0.02) and a token near zero, as timm does."""
        reset_tables(self)

    def forward(self, x: Tensor) -> Tensor:
        return add_tokens(x, [self.cls_token], self.pos_embed)


def reset_tables(module: nn.Module) -> None:
    """Draw fresh positions (truncated normal, std 0.02) and tokens (near zero) where a module has them."""
    for name, table in module.named_parameters():
        if name.startswith(("cls_token", "dist_token")):
            nn.init.normal_(table, std=1e-6)
        elif name.startswith("pos_embed"):
            nn.init.trunc_normal_(table, std=0.02)


class VisionTransformer(nn.Module):
    """Vision Transformer, with an optional distillation token (DeiT).

    Shapes: (B, C, H, W) -> (B, classes); while training a distilled model with `distilled_training`, a pair of them.
    Source: Dosovitskiy et al., arXiv:2010.11929v2; distillation: Touvron et al., arXiv:2012.12877v2, section 4.

    Args:
        patch_embed: Layer (B, C, H, W) -> (B, N, D).
        cls_token: (1, 1, D).
        pos_embed: (1, T + N, D), T the number of tokens before the patches.
        blocks: Layer (B, T + N, D) -> (B, T + N, D).
        norm: Layer norm before pooling, or None.
        fc_norm: Layer norm after pooling, or None.
        head: Classifier (B, D) -> (B, classes), or None.
        dist_token: (1, 1, D), or None.
        head_dist: Classifier of the distillation token.
        global_pool: "token" (the class token) or "avg" (mean over the patches).
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        cls_token: Tensor | nn.ParameterDict,
        pos_embed: Tensor | nn.ParameterDict,
        blocks: nn.Module,
        norm: nn.Module | None = None,
        fc_norm: nn.Module | None = None,
        head: nn.Module | None = None,
        dist_token: Tensor | nn.ParameterDict | None = None,
        head_dist: nn.Module | None = None,
        global_pool: str = "token",
    ) -> None:
        super().__init__()
        self.global_pool = global_pool
        self.distilled = dist_token is not None
        self.distilled_training = False
        self.num_prefix_tokens = 2 if self.distilled else 1
        self.patch_embed = patch_embed
        self.cls_token = _registered(cls_token)
        if dist_token is not None:
            self.dist_token = _registered(dist_token)
        self.pos_embed = _registered(pos_embed)
        self.blocks = blocks
        self.norm = norm or nn.Identity()
        self.fc_norm = fc_norm or nn.Identity()
        self.head = head or nn.Identity()
        if self.distilled:
            self.head_dist = head_dist or nn.Identity()

    @property
    def config(self) -> dict[str, Any]:
        """The sizes and options that `from_config` needs, as plain JSON values."""
        embed: Any = self.patch_embed
        head: Any = self.head
        blocks: Any = self.blocks
        return {
            "img_size": list(embed.img_size),
            "patch_size": embed.proj.kernel_size[0],
            "in_chans": embed.in_chans,
            "num_classes": getattr(head, "out_features", 0),
            "embed_dim": embed.proj.out_channels,
            "global_pool": self.global_pool,
            "distilled": self.distilled,
            "norm_eps": getattr(self.norm, "eps", None),
            "fc_norm_eps": getattr(self.fc_norm, "eps", None),
            "blocks": [block_config(block) for block in blocks],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "VisionTransformer":
        """Return a network of these sizes; its tables are zero and its layers as torch draws them."""
        dim, classes, patch = config["embed_dim"], config["num_classes"], config["patch_size"]
        height, width = config["img_size"]
        prefix = 2 if config["distilled"] else 1

        def norm(eps: float | None) -> nn.LayerNorm | None:
            return None if eps is None else nn.LayerNorm(dim, eps)

        return cls(
            PatchEmbed(nn.Conv2d(config["in_chans"], dim, patch, patch), (height, width), config["in_chans"]),
            torch.zeros(1, 1, dim),
            torch.zeros(1, prefix + (height // patch) * (width // patch), dim),
            Blocks(*(block_from(block, dim) for block in config["blocks"])),
            norm(config["norm_eps"]),
            norm(config["fc_norm_eps"]),
            nn.Linear(dim, classes) if classes else None,
            torch.zeros(1, 1, dim) if config["distilled"] else None,
            nn.Linear(dim, classes) if classes and config["distilled"] else None,
            config["global_pool"],
        )

    def tables(self) -> dict[str, Tensor]:
        """Return class token, distillation token (if any) and positions in use, (1, ..., D) each."""
        names = ("cls_token", "dist_token", "pos_embed") if self.distilled else ("cls_token", "pos_embed")
        return {name: getattr(self, name) for name in names}

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens that enter the blocks: (B, C, H, W) -> (B, T + N, D)."""
        *tokens, pos_embed = self.tables().values()
        return add_tokens(self.patch_embed(x), tokens, pos_embed)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return all tokens after the last norm: (B, C, H, W) -> (B, T + N, D)."""
        return self.norm(self.blocks(self.embed(x)))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Pool and classify: (B, T + N, D) -> (B, classes), or (B, D) with `pre_logits`."""
        if self.distilled:
            x, x_dist = x[:, 0], x[:, 1]
            if pre_logits:
                return (x + x_dist) / 2
            x, x_dist = self.head(x), self.head_dist(x_dist)
            return (x, x_dist) if self.distilled_training and self.training else (x + x_dist) / 2
        x = x[:, self.num_prefix_tokens :].mean(dim=1) if self.global_pool == "avg" else x[:, 0]
        x = self.fc_norm(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.blocks(self.embed(x))
        return self.forward_head(self.norm(x))

    def reset_parameters(self) -> None:
        """Draw fresh weights: truncated normal (std 0.02) for linear layers and positions, as timm does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        reset_tables(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass: less memory, about a third more time."""
        self.blocks.grad_checkpointing = enable  # type: ignore[assignment]

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' outputs while training, for a distillation loss."""
        self.distilled_training = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that timm's optimisers should not decay."""
        first = ("cls_token", "dist_token", "pos_embed")
        return {name for name, _ in self.named_parameters() if name.split(".")[0] in first}

    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Return the classifier; of a distilled model both."""
        return (self.head, self.head_dist) if self.distilled else self.head


def _registered(table: Tensor | nn.ParameterDict) -> nn.Parameter | nn.ParameterDict:
    return nn.Parameter(table) if isinstance(table, Tensor) else table


class Fixed:
    """What a searchable choice becomes in the export of a module that reads one itself: the value it had.

    `take` cuts a tensor of full size as before, and leaves alone one that already has the active size.

    Args:
        value: The value that was active.
        start: First channel of its run, for a channel count.
        largest: Channels of the shared tensors, for a channel count.
    """

    def __init__(self, value: float, start: int = 0, largest: int | None = None) -> None:
        self.active = self.smallest = value
        self.largest = value if largest is None else largest
        self.run = (start, value)

    def channels(self) -> Tensor:
        """Return the indices of the channels in use, (K,)."""
        start, length = self.run
        return (torch.arange(int(length)) + start) % int(self.largest)

    def take(self, tensor: Tensor, axis: int = 0) -> Tensor:
        """Return the channels in use of `tensor` along `axis`."""
        if tensor.shape[axis] == self.active:
            return tensor
        return tensor.index_select(axis, self.channels().to(tensor.device))

    def __repr__(self) -> str:
        return f"{self.active}"

"""The blocks of which superformers are made."""

from torch import nn

from vitas import plain
from vitas.choice import Dim
from vitas.nn import DropPath, ElasticLayerNorm, ElasticMlp, LayerScale
from vitas.sharing import Sharing
from vitas.superformer.arguments import Ratio, Width, choice_of, dim_of


def hidden_of(mlp_dim: Width | None, mlp_ratio: Ratio, width: Dim, block: str, sharing: Sharing) -> Dim:
    """Return the hidden width of the MLP of `block`: `mlp_dim`, or where that is None `mlp_ratio` times `width`."""
    if mlp_dim is None:
        return choice_of(mlp_ratio, f"{block}.mlp_ratio") * width
    return dim_of(mlp_dim, f"{block}.mlp_dim", sharing)


def block_of(
    width: Dim,
    attention: nn.Module,
    hidden: Dim,
    norm_eps: float,
    proj_drop: float,
    drop_path: float,
    init_values: float | None = None,
) -> plain.Block:
    """Return a block around `attention`; its DropPath modules, if any, get their rates when those are laid."""
    return plain.Block(
        ElasticLayerNorm(width, norm_eps),
        attention,
        ElasticLayerNorm(width, norm_eps),
        ElasticMlp(width, hidden, drop=proj_drop),
        *(None if init_values is None else LayerScale(width, init_values) for _ in range(2)),
        *(DropPath() if drop_path else None for _ in range(2)),
    )

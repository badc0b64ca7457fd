"""Searchable layers. With plain ints each computes what torch's (or timm's) does; with Choices and Dims it is elastic.

    layer.py       the contract of an elastic layer, Elastic; and how an export is put together from those of layers
    kept.py        what of a module goes into its export
    hooks.py       weights that a hook makes, such as pruned ones
    same.py        whether weights come from a space in which values use the same of them
    parts.py       the part in use of a parameter, to be read only
    linear.py      CyclicLinear; with choice/dim.py it explains the library
    norm.py        layer norm and layer scale
    conv.py        convolutions
    private.py     one layer for each value of a choice, of which the chosen one runs
    heads.py       how the width of q, k and v follows from the heads
    stacked.py     q, k and v in one weight, each cut by itself
    attention.py   attention over all tokens
    window.py      attention inside windows
    subsampled.py  attention to a coarser map
    mlp.py         two linear layers that share a hidden width
    images.py      the size of images, fixed or searched
    patches.py     counts of patches, and what does not fit
    embed.py       from images to tokens
    tokens.py      class token and positions
    drop_path.py   stochastic depth
    follow.py      what somebody puts in the place of a searchable layer
    depth.py       ShiftableIdentity: slots of which the first run

Imports cost and what stands before it.

Letters: B images, N tokens, H x W a map of them, D embedding width, H (in an MLP) hidden width, h heads, d width of q, k
and v each, P patch size; L the channels of a shared weight and K those in use; I and O input and output channels in use.
"""

from vitas.nn.attention import ElasticAttention
from vitas.nn.conv import ElasticConv2d
from vitas.nn.depth import ShiftableIdentity, shift_identities
from vitas.nn.drop_path import DropPath
from vitas.nn.embed import ElasticPatchEmbed
from vitas.nn.layer import Elastic
from vitas.nn.linear import CyclicLinear
from vitas.nn.mlp import ElasticMlp
from vitas.nn.norm import ElasticLayerNorm, LayerScale
from vitas.nn.private import Private
from vitas.nn.subsampled import ElasticSubsampledAttention
from vitas.nn.tokens import ElasticTokens
from vitas.nn.window import ElasticWindowAttention

__all__ = [
    "CyclicLinear",
    "DropPath",
    "Elastic",
    "ElasticAttention",
    "ElasticConv2d",
    "ElasticLayerNorm",
    "ElasticMlp",
    "ElasticPatchEmbed",
    "ElasticSubsampledAttention",
    "ElasticTokens",
    "ElasticWindowAttention",
    "LayerScale",
    "Private",
    "ShiftableIdentity",
    "shift_identities",
]

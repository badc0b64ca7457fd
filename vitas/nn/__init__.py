"""Searchable layers. With plain ints each computes what torch's (or timm's) does; with Choices and Dims it is elastic.

Letters: B images, N tokens, H x W a map of them, D embedding width, H (in an MLP) hidden width, h heads, d width of q, k
and v each, P patch size; L the channels of a shared weight and K those in use; I and O input and output channels in use.
"""

from vitas.nn.attention import ElasticAttention
from vitas.nn.conv import ElasticConv2d
from vitas.nn.embed import ElasticPatchEmbed, ElasticTokens
from vitas.nn.identity import DropPath, ShiftableIdentity, shift_identities
from vitas.nn.linear import CyclicLinear
from vitas.nn.mlp import ElasticMlp
from vitas.nn.norm import ElasticLayerNorm, LayerScale
from vitas.nn.private import Private
from vitas.nn.subsampled import ElasticSubsampledAttention
from vitas.nn.window import ElasticWindowAttention

__all__ = [
    "CyclicLinear",
    "DropPath",
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

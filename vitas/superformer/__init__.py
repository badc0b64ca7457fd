"""Superformers: whole searchable models, and the named spaces."""

from vitas.superformer.deit import DeiTSuperformer
from vitas.superformer.presets import create_superformer, list_published_subnets, list_superformers, published_subnet
from vitas.superformer.twins import TwinsSuperformer

__all__ = [
    "DeiTSuperformer",
    "TwinsSuperformer",
    "create_superformer",
    "list_published_subnets",
    "list_superformers",
    "published_subnet",
]

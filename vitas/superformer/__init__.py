"""Superformers: whole searchable models, and the named spaces."""

from vitas.superformer.deit import DeiTSuperformer
from vitas.superformer.presets import create_superformer, list_superformers

__all__ = ["DeiTSuperformer", "create_superformer", "list_superformers"]

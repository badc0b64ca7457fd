"""Superformers: whole searchable models, and the named spaces.

    arguments.py  what arguments become: one value is fixed, several make a choice
    blocks.py     the blocks, a floor below the models, with the options and values that they are made of
    base.py       what both families have in common
    deit.py       the DeiT family
    twins.py      the Twins family
    presets.py    spaces by name, and the networks that the method's authors published

Imports nn and what stands before it; not sample.
"""

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

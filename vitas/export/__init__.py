"""From a searchable model to a plain network, and to files.

    subnet.py        export_subnet and build_subnet
    network.py       plain networks as folders: save_subnet, load_subnet
    adapt.py       a superformer's file in a model of other values
    checkpoint.py    superformers as files: save_superformer, load_superformer
    formats.py       what formats of networks have in common: a description that says all, and can be built
    plain_format.py  networks of vitas.plain; their descriptions stand there
    timm_format.py   networks of timm; imports timm, so it is imported when needed
    timm_parts.py    parts of timm's networks
    positions.py     position tables for another image size
    origins.py       networks told by what they were made of
    register.py      saved networks under a name that timm.create_model knows
    hub.py           networks fetched from the hub of Hugging Face
    push.py          networks sent there: push_to_hub
    card.py          model cards
    files.py         files that appear complete or not at all

Imports wrapping and what stands before it.
"""

from vitas.export.checkpoint import load_superformer, save_superformer
from vitas.export.files import as_path, check_fits, read_text
from vitas.export.network import load_subnet, save_subnet
from vitas.export.push import push_to_hub
from vitas.export.register import register
from vitas.export.subnet import build_subnet, export_subnet

__all__ = [
    "as_path",
    "build_subnet",
    "check_fits",
    "export_subnet",
    "load_subnet",
    "load_superformer",
    "push_to_hub",
    "read_text",
    "register",
    "save_subnet",
    "save_superformer",
]

"""Model cards: what a saved network is, what it costs and how to load it, as Markdown; the same for the same network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitas.cost import count_flops, count_params
from vitas.errors import VitasError
from vitas.export import origins
from vitas.export.network import read_config
from vitas.nn.kept import on_meta
from vitas.space import unwrap
from vitas.wrapping.counted import image_of

_HEAD = """---
library_name: vitas
tags:
- vitas
- vision
---

# {title}

A plain network, found in a search space of Vision Transformers.

| | |
|---|---|
{facts}

## Load it

```python
import vitas

model = vitas.load_subnet("{place}")
```
"""


def model_card(module: nn.Module, folder: Path, place: str) -> str:
    """Return the card of a network.

    Args:
        module: The network.
        folder: What `save_subnet` wrote of it.
        place: What `load_subnet` is told to find it: a folder, or "hf-hub:user/name".
    """
    module, config = unwrap(module), read_config(folder)
    told = config["model"]
    facts = {"class": f"`{config['class']}`", "parameters": f"{count_params(module):,}"}
    if told:  # a network that is built here, which is called with images; of others nobody knows with what
        with suppress(VitasError):  # a Twins, which takes images of any size
            image = image_of(module)
            facts["image"] = " x ".join(map(str, image))
            facts["multiply-adds for one image"] = f"{_macs(module, image):,}"
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    card = _HEAD.format(title=place.partition(":")[2].partition("@")[0].rpartition("/")[2] or place, facts=rows, place=place)
    if not told:
        card = card.replace(f'("{place}")', f'("{place}", into=...)  # a module of the class above')
    if "model_args" in config:
        card += f'\n`timm.create_model("{place}", pretrained=True)` loads it too.\n'
    return "\n".join([card, "## What it is made of", "", *_made_of(told), ""]) if told else card


def _macs(module: nn.Module, image: tuple[int, int, int]) -> int:
    """Return the multiply-adds for one image, counted without memory."""
    dtype = next(module.parameters()).dtype
    return count_flops(on_meta(module, module), inputs=torch.empty(1, *image, device="meta", dtype=dtype)).total


def _made_of(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines: the original and the subnets taken of it in turn, or each size."""
    if not origins.is_origin(told):
        yield from _sizes(told)
        return
    source = told["source"]
    yield f"`{source['name']}` of {source['library']}, of which these values differ from the largest:"
    for subnet in told["subnets"]:
        yield from ("", "| choice | value |", "|---|---|", *(f"| `{name}` | {value} |" for name, value in subnet.items()))


def _sizes(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of the numbers of a description, then one with a row for each part in its lists."""
    alone = {name: value for name, value in told.items() if not _is_rows(value)}
    yield from ("| size | value |", "|---|---|", *(f"| `{name}` | {value} |" for name, value in alone.items()))
    for name, rows in told.items():
        if not _is_rows(rows):
            continue
        columns = [key for key in {key: None for row in rows for key in row} if not any(_is_rows(r.get(key)) for r in rows)]
        yield from ("", f"`{name}`:", "", f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns))
        for number, row in enumerate(rows):
            yield f"| {number} | {' | '.join(str(row.get(key, '')) for key in columns)} |"
        for number, row in enumerate(rows):
            for inner, parts in row.items():
                if _is_rows(parts):
                    yield from ("", f"`{name}.{number}`:", "", *list(_sizes({inner: parts}))[3:])


def _is_rows(value: object) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, dict) for row in value)

"""Networks whose blocks are all alike, as people scale them by hand: what a search does well to begin with."""

from __future__ import annotations

import math
import re

import numpy as np

from vitas.errors import ChoiceError
from vitas.sample import SubnetSampler
from vitas.space import Subnet

_STEPS = 8
_MOST = 100_000  # combinations


def alike(sampler: SubnetSampler, most: int) -> list[Subnet]:
    """Return subnets inside the budget of which all blocks (of all stages) are alike, the costliest first.

    Choices of a kind, `blocks.*.num_heads` say, stand at the same part of the way from their smallest to their largest
    value, in up to eight steps, fewer where there are many kinds; all combinations are looked at. Random draws hardly ever
    come near such networks.

    Source: ours.

    Args:
        sampler: What is inside the budget.
        most: How many are returned at most.

    Raises:
        ChoiceError: no sampler.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> sampler = vitas.SubnetSampler(model, flops=("40%", "50%"))
        >>> first = vitas.compressing.alike(sampler, 8)
        >>> evolution = vitas.Evolution(model, flops=("40%", "50%"), initial=first)
    """
    if not isinstance(sampler, SubnetSampler):
        raise ChoiceError(f"sampler: expected vitas.SubnetSampler(model, flops=...), got {type(sampler).__name__}")
    space = sampler.space
    left = [np.array(numbers) for numbers in space.encoding.left]  # of each choice, its values that are left
    names = [re.sub(r"\d+", "*", name) for name in space.choices]
    kinds = list(dict.fromkeys(names))
    longest = [max(len(own) for own, name in zip(left, names, strict=True) if name == kind) for kind in kinds]
    steps = next((n for n in range(_STEPS, 1, -1) if math.prod(min(n, own) for own in longest) <= _MOST), 1)
    parts = [np.linspace(0, 1, min(own, steps)) for own in longest]
    grid = np.stack(np.meshgrid(*parts, indexing="ij"), axis=-1).reshape(-1, len(kinds))  # (combinations, kinds)
    columns = [
        own[np.rint(grid[:, kinds.index(name)] * (len(own) - 1)).astype(int)] for own, name in zip(left, names, strict=True)
    ]
    codes = np.unique(space.canonical(np.stack(columns, axis=1)), axis=0)
    codes = codes[sampler.contains(codes)]
    order = np.argsort(-next(iter(sampler.costs(codes).values())), kind="stable")
    return [space.decode(code) for code in codes[order[:most]]]

"""Another subnet on each rank: what may differ, and a guard for what must not."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from vitas.checks import as_count
from vitas.choice import SIDES, outside_graphs
from vitas.errors import ChoiceError
from vitas.sample import SubnetSampler
from vitas.space import AnyChoice, Subnet, gated_children, search_space, unwrap
from vitas.train.unused import Hooks


def deciding(model: nn.Module) -> dict[str, AnyChoice]:
    """Return the choices that decide which modules run: depth, and whatever has private copies.

    The others are widths: whatever they are, the same modules run and the same parameters have gradients.

    Raises:
        ChoiceError: a model without choices.
    """
    gates = [gate for module in unwrap(model).modules() for _, _, gate in gated_children(module)]
    decide = {gate.choice for gate in gates if gate is not None}
    return {name: choice for name, choice in search_space(model).choices.items() if choice in decide}


class RankSampler:
    """Draws another subnet for each rank, all of the same depth, patch size and private head counts.

    Those choices (`deciding`) are a pure function of (seed, step), the widths of (seed, step, rank). So the same modules run
    on every rank, as FSDP2 needs; DistributedDataParallel with `find_unused_parameters=True` does not need it.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        seed: Any int of at least 0.
        rank: Number of this process; None: its rank in the default process group, or 0 without one.

    Raises:
        ChoiceError: a model without choices, or numbers that are not ints of at least 0.
    """

    def __init__(self, model: nn.Module, *, seed: int = 0, rank: int | None = None) -> None:
        if rank is None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self.sampler, self.rank = SubnetSampler(model, seed=seed), as_count(rank, "rank", 0)
        self._common = set(deciding(model))

    def sample(self, step: int, activate: bool = True) -> Subnet:
        """Return this rank's subnet of a step and make it the active one; in bilateral sharing with a side of its own.

        Args:
            step: Number of the step, an int of at least 0.
            activate: Whether to activate the subnet.

        Raises:
            ChoiceError: a step that is not such an int.
        """
        common, space = self.sampler.sample(step, activate=False), self.sampler.space
        random = np.random.default_rng([self.sampler.seed, step, self.rank])
        values = {
            name: value
            if name in self._common
            else random.choice(space.choices[name].values, p=space.choices[name].p).item()
            for name, value in common.items()
        }
        side = SIDES[random.integers(2)] if space.bilateral else None
        subnet = space.subnet(values)
        if activate:
            space.activate(subnet, side=side)
        return subnet


def guard_ranks(model: nn.Module) -> Hooks:
    """Compare before each training forward which modules run on each rank, and refuse on all of them where that differs.

    Under FSDP2 ranks that run different blocks or private copies wait for each other for ever; this raises instead, before
    the model's first collective. Costs an exchange of a few ints in each forward pass. Use it after `fully_shard`.

    Args:
        model: A model with choices; `torch.distributed` has to be initialised when it runs.

    Returns:
        An object whose `remove()` takes the hook off.

    Raises:
        ChoiceError: a model without choices; from the forward pass, where ranks differ, with name and values.
    """
    return Hooks(unwrap(model).register_forward_pre_hook(_Guard(deciding(model)), prepend=True))


class _Guard:
    """An object and not a function, so that a deep copy of the model guards the copy's choices."""

    def __init__(self, choices: dict[str, AnyChoice]) -> None:
        self.choices = choices

    @outside_graphs
    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        mine = torch.tensor([choice.index for choice in self.choices.values()], device=device)
        ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, mine)
        rows = torch.stack(ranks).tolist()
        for k, (name, choice) in enumerate(self.choices.items()):
            values = [choice.values[row[k]] for row in rows]
            if len(set(values)) > 1:
                shown = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(values[:8]))
                raise ChoiceError(f"{name}: expected the same value on all ranks, got {shown}; see RankSampler")

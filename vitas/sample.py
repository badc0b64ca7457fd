"""Draw subnets and activate them: shortcuts through the search space of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from vitas.choice import SIDES
from vitas.errors import BudgetError, ChoiceError, one_of
from vitas.space import SearchSpace, search_space
from vitas.subnet import Number, Subnet


def sample_subnet(
    model: nn.Module,
    *,
    flops: Any = None,
    params: Any = None,
    generator: torch.Generator | None = None,
    policy: str = "random",
    activate: bool = True,
) -> Subnet:
    """Draw a subnet from the prior and make it the active one; in bilateral sharing a random side of it.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: Budgets are not available yet.
        params: Budgets are not available yet.
        generator: Source of randomness; None: torch's default one.
        policy: "random", "largest" or "smallest".
        activate: Whether to activate the subnet.

    Raises:
        ChoiceError: a model without choices, or another policy.
        BudgetError: a budget.
    """
    _refuse_budgets(flops, params)
    if policy not in ("random", "largest", "smallest"):
        raise ChoiceError(f"policy: {one_of(['random', 'largest', 'smallest'], policy)}")
    space = search_space(model)
    if policy == "random":
        return _draw(space, generator, activate)
    subnet = space.largest() if policy == "largest" else space.smallest()
    if activate:
        space.activate(subnet)
    return subnet


def _draw(space: SearchSpace, generator: torch.Generator | None, activate: bool) -> Subnet:
    subnet = space.sample(generator)
    side = None
    if space.bilateral:
        device = generator.device if generator is not None else "cpu"
        side = SIDES[int(torch.randint(2, (), generator=generator, device=device))]
    if activate:
        space.activate(subnet, side=side)
    return subnet


def _refuse_budgets(flops: Any, params: Any) -> None:
    for name, budget in (("flops", flops), ("params", params)):
        if budget is not None:
            raise BudgetError(f"{name}={budget!r}: sampling inside a budget is not available in this version of vitas")


class SubnetSampler:
    """Draws subnets as a pure function of (seed, step): the same on all ranks and after a resume.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: Budgets are not available yet.
        params: Budgets are not available yet.
        seed: Any int of at least 0.

    Raises:
        ChoiceError: a model without choices, or a seed that is not such an int.
        BudgetError: a budget.
    """

    def __init__(self, model: nn.Module, *, flops: Any = None, params: Any = None, seed: int = 0) -> None:
        _refuse_budgets(flops, params)
        self.seed = _counted(seed, "seed")
        self.space = search_space(model)

    def sample(self, step: int, activate: bool = True) -> Subnet:
        """Return the subnet of a step and make it the active one; in bilateral sharing with the step's side.

        Args:
            step: Number of the step, an int of at least 0.
            activate: Whether to activate the subnet.

        Raises:
            ChoiceError: a step that is not such an int.
        """
        words = np.random.SeedSequence([self.seed, _counted(step, "step")]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0]) >> 1)
        return _draw(self.space, generator, activate)


def _counted(number: int, what: str) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
        raise ChoiceError(f"{what}: expected an int of at least 0, got {number!r}")
    return int(number)


def activate_subnet(model: nn.Module, subnet: Mapping[str, Number], *, side: str | None = None) -> None:
    """Make `subnet` the active one, all of it or, on an error, nothing.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of the model's space.
        side: "left" or "right", for bilateral sharing; None: "left".

    Raises:
        ChoiceError: a model without choices, not a subnet of its space, a side where no Dim has two.
    """
    search_space(model).activate(subnet, side=side)


def active_subnet(model: nn.Module) -> Subnet:
    """Return the active subnet.

    Raises:
        ChoiceError: a model without choices.
    """
    return search_space(model).active()


@contextmanager
def use_subnet(model: nn.Module, subnet: Mapping[str, Number], *, side: str | None = None) -> Iterator[Subnet]:
    """Activate `subnet` for the length of a with block; what was active comes back, also after an exception.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of the model's space.
        side: "left" or "right", for bilateral sharing; None: "left".

    Yields:
        The active subnet.

    Raises:
        ChoiceError: as activate_subnet.
    """
    space = search_space(model)
    state = space.state()
    try:
        space.activate(subnet, side=side)
        yield space.active()
    finally:
        state.put_back()

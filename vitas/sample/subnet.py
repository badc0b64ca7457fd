"""One subnet of a model: drawn, made active, asked for, counted among those inside a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from vitas.cost import Cost
from vitas.errors import BudgetError, ChoiceError, VitasError, is_one_of, one_of, shown
from vitas.sample.budget import budgets_of, window_of
from vitas.sample.chain import Chain
from vitas.sample.counting import SubnetCount, count_inside
from vitas.sample.lattice import extremes
from vitas.sample.sampler import SubnetSampler, decoded, draw_from_prior
from vitas.space import Number, StatesCost, Subnet, needs_tokens, search_space, unwrap


def sample_subnet(
    model: nn.Module,
    *,
    flops: Any = None,
    params: Any = None,
    latency: Any = None,
    generator: torch.Generator | None = None,
    policy: str = "random",
    activate: bool = True,
    inputs: Any = None,
    fixed: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
) -> Subnet:
    """Draw a subnet and make it the active one; in bilateral sharing a random side of it.

    With a budget the draw is exact: from the prior conditioned on the window. Every call sets the budget up anew, since the
    model may have changed meanwhile: 0.3 s on `vitas_deit`. For many draws make a SubnetSampler, which does it once. What
    `fixed` and `only` hold changes the prior of the choices that they name and of no other one.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: Budget in multiply-adds for one image: an upper bound, (low, high) of which either may be None, or
            percentages such as "60%" or ("40%", "60%") of the costliest subnet, whatever is held; text such as "1.3G" or
            "5e6" is read too. Bounds are included.
        params: Budget in parameters, spelled likewise; budgets that are given together all hold.
        latency: (table, budget): what `latency_table(model, inputs)` returned, and milliseconds, spelled likewise:
            (table, 8.0), (table, ("4 ms", "8 ms")), (table, "50%"). Exact as to the table.
        generator: Source of randomness; None: torch's default one.
        policy: "random", "largest" or "smallest"; the latter two take no budget.
        activate: Whether to activate the subnet.
        inputs: For a model that states no cost: tensors on which subnets are run and counted, see count_flops; the budget
            is for all of them. A few passes tell what every subnet costs, as long as that depends on the parts that run and
            their sizes; the draw is then as exact as any. Where it depends on more, such as how much a detector finds, up
            to 500 subnets are run at each draw, and percentages are of the one with the largest values.
        fixed: Name of a choice, or a glob such as "blocks.*.num_heads" -> the one value that it has; "largest" and
            "smallest" stand for the ends.
        only: Name or glob -> the values that it may have.

    Raises:
        ChoiceError: a model without choices, or another policy; as `SearchSpace.restrict`.
        BudgetError: a malformed budget; an empty window, with the nearest costs that can be reached.
        VitasError: a FLOPs budget for a model that states no cost, without `inputs`; a latency table of another model.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> subnet = vitas.sample_subnet(model, flops="50%")
        >>> model(torch.randn(1, 3, 16, 16)).shape  # runs this subnet
        torch.Size([1, 10])
    """
    if not is_one_of(["random", "largest", "smallest"], policy):
        raise ChoiceError(f"policy: {one_of(['random', 'largest', 'smallest'], policy)}")
    budgets = {"flops": flops, "params": params, "latency": latency}
    budgeted = any(budget is not None for budget in budgets.values())
    if policy != "random" and budgeted:
        raise BudgetError(f"policy {shown(policy)} takes no budget; draw at random, or leave the budget out")
    if budgeted:
        sampler = SubnetSampler(model, **budgets, inputs=inputs, fixed=fixed, only=only)
        rng = np.random.default_rng(_word(generator))
        return decoded(sampler.space, sampler.draw(1, rng)[0], rng, activate)
    space = search_space(model).restrict(fixed, only)
    if policy == "random":
        return draw_from_prior(space, generator, activate)
    subnet = space.largest() if policy == "largest" else space.smallest()
    if activate:
        space.activate(subnet)
    return subnet


def _word(generator: torch.Generator | None) -> int:
    """Draw a seed from a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ChoiceError(f"generator: expected a torch.Generator or None, got {shown(generator)}")
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def count_subnets(
    model: nn.Module,
    *,
    flops: Any = None,
    params: Any = None,
    latency: Any = None,
    inputs: Any = None,
    fixed: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
) -> SubnetCount:
    """Return the number of distinct networks inside a budget, whatever their prior.

    Args:
        model: A model with choices that states its cost, possibly wrapped by DDP or torch.compile.
        flops: As in sample_subnet.
        params: As in sample_subnet.
        latency: As in sample_subnet.
        inputs: As in sample_subnet.
        fixed: As in sample_subnet.
        only: As in sample_subnet.

    Returns:
        An int; its `exact` says whether it is the number itself, else an estimate with a `standard_error`.

    Raises:
        ChoiceError: a model without choices; as `SearchSpace.restrict`.
        BudgetError: a malformed budget. An empty window is no error: 0.
        VitasError: a model that states no cost, without `inputs`; one whose cost its parts do not tell, or with so many
            choices that interact that it cannot be counted.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.count_subnets(model, flops="10%")
        485,849,322
    """
    space = search_space(model).restrict(fixed, only)
    model = unwrap(model)
    own = isinstance(model, StatesCost) and not needs_tokens(model)
    given = {"flops": flops, "params": params, "latency": latency, "inputs": None if own else inputs}
    budgets = budgets_of(model, space, **given)
    costs = [_told(budget.cost(), model) for budget in budgets.values()]
    whole = Chain(space.whole, costs, counting=True)
    tops = extremes(whole)[1].tolist()
    windows = [window_of(budget.typed, name, top) for (name, budget), top in zip(budgets.items(), tops, strict=True)]
    ends = extremes(whole.restricted(space))
    binding = [k for k, w in enumerate(windows) if w.low > ends[0][k] or w.high < ends[1][k]]
    if not binding:
        return SubnetCount(space.size)
    return count_inside(Chain(space, [costs[k] for k in binding], counting=True), [windows[k] for k in binding])


def _told(cost: Cost | None, model: nn.Module) -> Cost:
    if cost is None:
        raise VitasError(
            f"flops: subnets of a {type(model).__name__} cannot be counted: its cost depends on more than its parts;"
            " draw some by sample_subnet(..., inputs=...)"
        )
    return cost


def activate_subnet(model: nn.Module, subnet: Mapping[str, Number], *, side: str | None = None) -> None:
    """Make `subnet` the active one, all of it or, on an error, nothing.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of the model's space.
        side: "left" or "right", for bilateral sharing; None: "left".

    Raises:
        ChoiceError: a model without choices, not a subnet of its space, a side where no Dim has two.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.activate_subnet(model, vitas.search_space(model).smallest())
        >>> vitas.active_subnet(model)["depth"]
        1
    """
    search_space(model).activate(subnet, side=side)


def active_subnet(model: nn.Module) -> Subnet:
    """Return the active subnet.

    Raises:
        ChoiceError: a model without choices.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> subnet = vitas.sample_subnet(model)
        >>> vitas.active_subnet(model) == subnet
        True
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

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> images = torch.randn(1, 3, 16, 16)
        >>> with vitas.use_subnet(model, vitas.search_space(model).smallest()):
        ...     logits = model(images)
        >>> vitas.active_subnet(model)["depth"]  # the largest is back
        6
    """
    with search_space(model).use(subnet, side=side) as active:
        yield active

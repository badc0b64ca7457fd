"""The sandwich rule: in each step the smallest and the largest subnet, and a few random ones between."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vitas.checks import ANY_INT, as_count
from vitas.choice import SIDES
from vitas.errors import ChoiceError, shown
from vitas.sample import SubnetSampler
from vitas.space import SearchSpace, Subnet, unwrap


def sandwich(
    model: nn.Module,
    n_random: int = 2,
    *,
    step: int,
    seed: int = 0,
    largest_last: bool = True,
    sampler: SubnetSampler | None = None,
    fixed: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
    smallest: Mapping[str, Any] | None = None,
    largest: Mapping[str, Any] | None = None,
) -> Iterator[Subnet]:
    """Return an iterator that activates one subnet after the other: smallest, random ones, largest.

    Loss, backward pass, scaler and accumulation stay in the caller's loop::

        for subnet in sandwich(model, step=step):
            criterion(model(images), labels).backward()
        optimizer.step()

    Gradients add up over the passes: the step is n_random + 2 times as long as with their mean. Adam and AdamW do not see
    the factor, SGD and the clipping of gradients do: divide the loss by n_random + 2 for them.

    Of every choice the smallest subnet has the smallest value and the largest the largest, which for a patch size is the
    fewest tokens and the cheapest network: say `largest={"patch_size": 4}` where it is searched, or take each size in turn,
    so that the weights of all are trained::

        ends = {"patch_size": (4, 7)[step % 2]}
        for subnet in sandwich(model, step=step, smallest=ends, largest=ends):
            ...

    The random subnets are a pure function of (seed, step): equal on all ranks and after a resume. In bilateral sharing they
    have random sides, and the smallest and largest take left and right in turn from step to step; `bilateral` inside the
    loop runs both.

    The largest comes last so that under DistributedDataParallel, with all passes but the last in `no_sync()`, the pass
    that communicates is the one whose gradients take longest and that uses every weight but private copies. First, it can
    teach the others (`distill_loss`).

    Source: Yu and Huang, arXiv:1903.05134v2, section 3.1; the order and the sides are ours.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        n_random: Number of random subnets.
        step: Number of the training step, an int of at least 0.
        seed: Any int of at least 0.
        largest_last: Whether the largest comes last or first.
        sampler: Draws the random subnets instead, such as one with a budget; its own seed then counts, and what it holds is
            held in the smallest and the largest too. One made before the loop also saves walking through the model in each
            step.
        fixed: As in sample_subnet, for all subnets; a sampler has its own.
        only: As in sample_subnet, likewise.
        smallest: Name or glob -> the one value that the smallest subnet has of a choice, as in `fixed`.
        largest: Likewise of the largest subnet.

    Raises:
        ChoiceError: a model without choices; numbers that are not ints of at least 0; a sampler of another model; `fixed` or
            `only` beside a sampler, or as `SearchSpace.restrict`; `smallest` or `largest` likewise.
    """
    n_random, step = as_count(n_random, "n_random", 0), as_count(step, "step", 0, ANY_INT)
    if sampler is None:
        sampler = SubnetSampler(model, seed=seed, fixed=fixed, only=only)
    elif not isinstance(sampler, SubnetSampler) or sampler.model is not unwrap(model):
        got = "one of another model" if isinstance(sampler, SubnetSampler) else shown(sampler)
        raise ChoiceError(f"sampler: expected a SubnetSampler of this model, got {got}")
    elif fixed is not None or only is not None:
        raise ChoiceError("fixed and only: give them to the SubnetSampler that is handed in")
    space = sampler.space
    ends = [_held(space, "smallest", smallest).smallest(), _held(space, "largest", largest).largest()]
    return _passes(sampler, n_random, step, ends, largest_last)


def _held(space: SearchSpace, end: str, held: Mapping[str, Any] | None) -> SearchSpace:
    try:
        return space if held is None else space.restrict(fixed=held)
    except ChoiceError as error:
        raise ChoiceError(f"{end}: {error}") from None


def _passes(sampler: SubnetSampler, n_random: int, step: int, ends: list[Subnet], largest_last: bool) -> Iterator[Subnet]:
    space = sampler.space
    side = SIDES[step % 2] if space.bilateral else None
    first, last = (ends[:1], ends[1:]) if largest_last else (ends[::-1], [])
    for subnet in first:
        space.activate(subnet, side=side)
        yield subnet
    for i in range(n_random):
        yield sampler.sample(step * n_random + i)
    for subnet in last:
        space.activate(subnet, side=side)
        yield subnet

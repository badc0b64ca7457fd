"""What every subnet costs, of a model that does not state it: learned from a few counted forward passes.

A pass tells how often each part is called and with how many positions. What a part costs for so many positions is known: a
layer states it, and a part without choices costs what was counted. The parts add up, each while it runs. Other passes
then have to cost exactly what this says; where they do not, what the model costs depends on more than its parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice, product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vitas.cost.count import counted
from vitas.cost.expression import ActiveIndices, Cost, Map
from vitas.errors import VitasError
from vitas.space import (
    SearchSpace,
    State,
    StatesCost,
    Subnet,
    arguments_of,
    eval_mode,
    gated_children,
    holders,
    needs_tokens,
    search_space,
    unwrap,
)

_RANDOM_PASSES = 6
_MOST_TOGETHER = 16  # combinations of values of choices that decide positions together, eight passes each

Shape = tuple[int, ...]


class Pass(NamedTuple):
    """A counted forward pass of one subnet."""

    code: dict[Any, int]
    """Choice -> number of its value."""
    counts: dict[str, dict[str, int]]
    """The multiply-adds of each module by operator, without those of its parts."""
    calls: dict[str, list[tuple[Shape, Shape]]]
    """The shapes of the first tensor that each module was given and returned, for each call."""

    def below(self, path: str) -> dict[tuple[str, str], int]:
        """Return what a module and its parts cost, by path and operator."""
        return {
            (where, operator): macs
            for where, operators in self.counts.items()
            if not path or where == path or where.startswith(f"{path}.")
            for operator, macs in operators.items()
        }

    @property
    def total(self) -> int:
        """The multiply-adds of the whole model."""
        return sum(self.below("").values())


def learned_cost(model: nn.Module, inputs: Any) -> Cost | None:
    """Return the multiply-adds of every subnet for all of `inputs`; None where passes do not tell.

    They are of the largest subnet, the smallest and six that are drawn with a fixed seed. Where these do not agree since one
    choice decides how many positions there are, as the size of patches does, so many tell for each of its values; where
    several decide it together, as with the size of images, for each of up to 16 combinations.

    Args:
        model: A model with choices, without wrappers.
        inputs: As in count_flops.

    Raises:
        ChoiceError: inputs without a tensor among them.
    """
    arguments, space = arguments_of(inputs), search_space(model)
    passes = list(_passes(model, arguments, _some(space)))
    cost = _added_up(model, passes)
    if cost is None or _fits(cost, passes):
        return cost
    deciding: list[str] = []
    for name, values in space.values.items():
        alone = space.subnet({name: values[0]}, fill="largest")
        if not _fits(cost, _passes(model, arguments, [alone])):
            deciding.append(name)
        if len(deciding) > 1 and math.prod(len(space.values[name]) for name in deciding) > _MOST_TOGETHER:
            return None
    by_value = Cost()
    for together in product(*(space.values[name] for name in deciding)):
        held = dict(zip(deciding, together, strict=True))
        own = list(_passes(model, arguments, _some(space.restrict(held))))
        part = _added_up(model, own)
        if part is None or len({one.total for one in own}) < 2 or not _fits(part, own):  # one pass alone proves nothing
            return None
        for name, value in held.items():
            part *= Cost.table(space.choices[name], (int(value == other) for other in space.choices[name].values))
        by_value += part
    return by_value if _fits(by_value, passes) else None


def _some(space: SearchSpace) -> Iterator[Subnet]:
    """Yield the subnets of a space that are counted."""
    generator = torch.Generator().manual_seed(0)
    yield from (space.largest(), space.smallest(), *(space.sample(generator) for _ in range(_RANDOM_PASSES)))


def _passes(model: nn.Module, arguments: tuple[Any, ...], subnets: Iterable[Subnet]) -> Iterator[Pass]:
    space, state = search_space(model), State.of_module(model)
    try:
        for subnet in subnets:
            space.activate(subnet)
            with eval_mode(model):
                counts, calls = _called(model, arguments)
            active = ActiveIndices()
            yield Pass({choice: active[choice] for choice in space.choices.values()}, counts, calls)
    finally:
        state.put_back()


def _added_up(model: nn.Module, passes: list[Pass]) -> Cost | None:
    """Return the sum of what the parts cost; None where a part never ran."""
    terms = list(_terms(model, "", Cost(1), passes, set()))
    found = [term for term in terms if term is not None]
    return sum(found, Cost()) if len(found) == len(terms) else None


def _fits(cost: Cost, passes: Iterable[Pass]) -> bool:
    return all(cost.at(one.code) == one.total for one in passes)


def _called(
    model: nn.Module, arguments: tuple[Any, ...]
) -> tuple[dict[str, dict[str, int]], dict[str, list[tuple[Shape, Shape]]]]:
    """Return the counts of a pass, and the calls of each module."""
    calls: dict[str, list[tuple[Shape, Shape]]] = {}

    def note(path: str, given: Any, returned: Any) -> None:
        calls.setdefault(path, []).append((_shape(given), _shape(returned)))

    hooks = [
        part.register_forward_hook(
            lambda _, args, named, output, path=path: note(path, (args, named), output), with_kwargs=True
        )
        for path, part in model.named_modules()
    ]
    try:
        return counted(model, arguments), calls
    finally:
        for hook in hooks:
            hook.remove()


def _shape(values: Any) -> Shape:
    first = list(islice((leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)), 1))
    return tuple(first[0].shape) if first else ()


def _terms(module: nn.Module, path: str, gate: Cost, passes: list[Pass], seen: set[int]) -> Iterator[Cost | None]:
    """Yield what the parts of a module cost, where it runs; None for a part of which the passes do not tell."""
    inner = unwrap(module)
    if id(inner) in seen:  # it stands under another name too, where all its calls are counted
        return
    seen.add(id(inner))
    path = next((f"{path}.{name}".strip(".") for name, part in module.named_modules() if part is inner), path)
    reached = [one for one in passes if gate.at(one.code)]
    forward = next((one for one in reached if path in one.calls or one.below(path)), None)
    if forward is None:
        yield None if not reached and any(True for _ in module.parameters()) else Cost()
        return
    cost = _known(inner, path, forward)
    if cost is not None:
        yield cost * gate
        return
    own = forward.counts.get(path, {})
    yield sum((Cost(macs).named(operator).under(path) for operator, macs in own.items()), Cost()) * gate
    for name, child, opens in gated_children(inner):
        when = gate
        if opens is not None:
            when = gate * Cost.table(opens.choice, (int(i in opens.indices) for i in range(len(opens.choice.values))))
        yield from _terms(child, f"{path}.{name}" if path else name, when, passes, seen)


def _known(module: nn.Module, path: str, forward: Pass) -> Cost | None:
    """Return what a part costs that a pass and what the part states agree on; None: its own parts have to tell."""
    found = forward.below(path)
    if not any(True for _ in holders(module)):
        return sum((Cost(macs).named(operator).under(where) for (where, operator), macs in found.items()), Cost())
    if not isinstance(module, StatesCost):
        return None
    total = sum(found.values())
    for cost in _stated(module, forward.calls.get(path, []), total, forward):
        if cost.at(forward.code) == total:
            return cost.under(path) if path else cost
    return None


def _stated(module: Any, calls: list[tuple[Shape, Shape]], total: int, forward: Pass) -> Iterator[Cost]:
    """Yield what a part may mean by what it states: for each image, or for positions of (B, ..., D) or (B, D, ...)."""
    try:
        if not needs_tokens(module):
            cost = module.cost()
            one = cost.at(forward.code)
            if one and total % one == 0:
                yield cost * (total // one)
            return
        for positions in (_channels_last, _channels_first):
            yield sum((module.cost(positions(*call)) * _times(*call) for call in calls), Cost())
    except (VitasError, TypeError, IndexError):  # of one's own: cost() of something else, or not for such positions
        return


def _times(given: Shape, _: Shape) -> int:
    return given[0] if len(given) > 2 else 1


def _channels_last(given: Shape, _: Shape) -> Cost:
    return Map(given[1], given[2]) if len(given) == 4 else Cost(given[-2])


def _channels_first(_: Shape, returned: Shape) -> Cost:
    return Map(returned[-2], returned[-1])

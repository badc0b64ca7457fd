"""Passes that belong together: both sides of a bilateral subnet, and a subnet with its complement."""

from collections.abc import Iterator

from torch import nn

from vitas.choice import SIDES, Choice, Dim
from vitas.errors import ChoiceError
from vitas.space import SearchSpace, Subnet, search_space


def bilateral(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Return an iterator that activates the left, then the right side of the active subnet, each with weight 1/2.

        for side, weight in bilateral(model):
            (weight * criterion(model(images), labels)).backward()

    Source: two losses of half weight as in BCNet's public code; the public ViTAS code (Su et al., July 2021) adds the
    logits of both sides before one loss, which takes twice the memory and is not how subnets are scored.

    Args:
        model: A model with bilateral Dims, possibly wrapped by DDP or torch.compile.

    Raises:
        ChoiceError: a model without choices, or none of them bilateral.
    """
    space = search_space(model)
    if not space.bilateral:
        raise ChoiceError(
            f"bilateral: no Dim of this {type(model).__name__} has two sides; build it with sharing='bilateral'"
        )
    return _sides(space, space.active())


def _sides(space: SearchSpace, subnet: Subnet) -> Iterator[tuple[str, float]]:
    for side in SIDES:
        space.activate(subnet, side=side)
        yield side, 1 / len(SIDES)


def complementary(model: nn.Module) -> Iterator[Subnet]:
    """Return an iterator that activates the active subnet on its left side, then its complement on the right.

    The complement has the same depth, heads and patches; each width c of L channels becomes L - c, made of just the
    channels that c leaves. A pair so uses each channel of such a Dim exactly once; with `bilateral` inside, exactly twice.
    Take an optimiser step for each of the two. A Dim without a complement keeps its width: at its largest, where L - c is
    not one of its values, or where the two runs do not tile the ring (half of the channels, under "cyclic-paired").

    Source: stochastic complementary training of BCNet's public code; for one-sided runs ours ("cyclic-paired").

    Args:
        model: A model whose Dims are shared by "bilateral" or "cyclic-paired", possibly wrapped by DDP or torch.compile.

    Raises:
        ChoiceError: a model without choices, or no width of any Dim has a complement.
    """
    space = search_space(model)
    if not any(_complement(space, name, value) for name, values in space.values.items() for value in values):
        raise ChoiceError(
            f"complementary: no width of this {type(model).__name__} has a complement; use sharing='bilateral' or"
            " 'cyclic-paired'"
        )
    return _pair(space, space.active())


def _pair(space: SearchSpace, subnet: Subnet) -> Iterator[Subnet]:
    other = {name: _complement(space, name, value) or value for name, value in subnet.items()}
    for side, one in zip(SIDES, (subnet, space.subnet(other)), strict=True):
        space.activate(one, side=side if space.bilateral else None)
        yield one


def _complement(space: SearchSpace, name: str, value: float) -> int | None:
    """Return the complement of a width where the space has it."""
    width = complement(space.choices[name], value)
    return width if width in space.values[name] else None


def complement(choice: Choice[int] | Choice[float], value: float) -> int | None:
    """Return the width of `choice` whose run is exactly the channels that `value` leaves; None where there is none."""
    if not isinstance(choice, Dim) or choice.largest - value not in choice.values:
        return None
    width = choice.largest - int(value)
    start, length = choice.sides[0][choice.index_of(value)]
    other = choice.sides[-1][choice.index_of(width)]
    return width if other[0] == (start + length) % choice.largest else None

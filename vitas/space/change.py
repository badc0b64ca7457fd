"""A trained space made narrower or wider: every subnet that stays computes bit for bit what it did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from vitas.errors import ChoiceError
from vitas.space.left import restricted, spoken_of
from vitas.space.model import unwrap
from vitas.space.space import search_space
from vitas.space.walk import AnyChoice, held

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class MayLack(Protocol):
    """A layer that cannot take every value of a choice that it holds, such as one that has weights for each value."""

    def lacks(self, choice: AnyChoice, value: Any) -> str | None:
        """Say why a value cannot join those of a choice; None: it can, as far as this layer knows."""


def narrow(model: M, *, fixed: Mapping[str, Any] | None = None, only: Mapping[str, Any] | None = None) -> M:
    """Take values out of the search space of a model, in place; every subnet that stays computes bit for bit what it did.

    The widths that stay use the channels that they used. Parameters keep their names, shapes and places, so optimisers, EMA
    copies, DistributedDataParallel and checkpoints go on; a choice of which one value stays is still named in subnets.
    `widen` puts values back. Search spaces, samplers and cost models that were made before are old, and say so.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile. Where the active subnet has a value that goes,
            the largest that stays becomes active.
        fixed: Name of a choice or a glob -> the one value that stays, "largest" or "smallest"; as in `sample_subnet`.
        only: Name or glob -> the values that stay.

    Returns:
        The model itself.

    Raises:
        ChoiceError: a model without choices; a name or glob of no choice, a value that the space does not have, a choice of
            which nothing is left. The model is then unchanged.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> model = vitas.narrow(model, only={"embed_dim": [64, 96]}, fixed={"blocks.*.num_heads": 4})
        >>> vitas.search_space(model).values["embed_dim"]
        (64, 96)
    """
    choices = search_space(model).choices
    before = tuple(choice.left for choice in choices.values())
    for choice, left, were in zip(choices.values(), restricted(choices, before, fixed, only), before, strict=True):
        if left != were:
            choice.leave(left)
    return model


def widen(model: M, values: Mapping[str, Iterable[Any]]) -> M:
    """Put values into the search space of a model, in place; every subnet that it had computes bit for bit what it did.

    Values that `narrow` took out come back as they were. Others have to lie below the largest, for which the weights were
    made, and need no weights of their own. A new width takes channels of the shared weights: where the pattern says it
    (ordinal, bilateral, paired) those, else the run whose channels serve the other widths least, of equal ones the first; it
    was not trained. A new value is as likely as the others are on average. Parameters stay as they are, as in `narrow`.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        values: Name of a choice or a glob -> values to be added to each; those that it has are passed over.

    Returns:
        The model itself.

    Raises:
        ChoiceError: a model without choices, a name or glob of no choice; a value above the largest, for which weights are
            missing; one that would need weights of its own (a patch size, private copies) or that a layer cannot have. The
            model is then unchanged.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> model = vitas.narrow(model, only={"embed_dim": [64, 96]})
        >>> model = vitas.widen(model, {"embed_dim": [72]})
        >>> vitas.search_space(model).values["embed_dim"]
        (64, 72, 96)
    """
    choices = search_space(model).choices
    asked = spoken_of("widen", values, choices)
    with all_or_nothing(choices.values()):
        for name, _, new in asked:
            known = choices[name].values
            try:
                choices[name].add(new)
            except ChoiceError as error:
                raise ChoiceError(f"widen: {name}: {str(error).removeprefix(f'{choices[name].label}: ')}") from None
            for value in choices[name].values:
                if value not in known and (reason := _lacking(unwrap(model), choices[name], value)):
                    raise ChoiceError(f"widen: {name}: {reason}")
    return model


def _lacking(model: nn.Module, choice: AnyChoice, value: Any) -> str | None:
    """Return why a layer that follows a choice cannot take a value that has joined it."""
    for path, part in model.named_modules():
        follows = any(choice in one.bases for _, one in held(part))
        if follows and isinstance(part, MayLack) and (reason := part.lacks(choice, value)):
            return f"{value}: {path or type(part).__name__} {reason}"
    return None


@contextmanager
def all_or_nothing(choices: Iterable[AnyChoice]) -> Iterator[None]:
    """Let choices, and the products that follow them, be as they were when a with block ends in an error."""
    own = {one: dict(vars(one)) for choice in choices for one in (choice, *choice.products)}
    try:
        yield
    except BaseException:
        for choice, before in own.items():
            vars(choice).clear()
            vars(choice).update(before)
        raise

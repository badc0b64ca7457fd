"""The names of choices, and the ties between them: equal names, broken ties and choices of two models are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from vitas.errors import ChoiceError
from vitas.space.walk import AnyChoice


def shortest_path(paths: list[tuple[str, ...]]) -> str:
    """Return the shortest of several attribute paths, joined by dots."""
    path = min(paths, key=lambda path: len(path))
    return ".".join(path)


def refuse_broken_ties(paths: Mapping[AnyChoice, Sequence[tuple[str, ...]]]) -> None:
    """Refuse copies of one choice in one model.

    Raises:
        ChoiceError: with both paths.
    """
    seen: dict[str, AnyChoice] = {}
    for choice, at in paths.items():
        twin = seen.setdefault(choice.origin, choice)
        if twin is not choice:
            here, there = ".".join(at[0]), ".".join(paths[twin][0])
            raise ChoiceError(
                f"{choice.name or here}: {here} and {there} hold two copies of what was one {type(choice).__name__}; a part"
                " of a model was copied alone and lost its tie: copy the whole model, or build the part anew with the same"
                " object; where these are two whole models, call with the one inside"
            )


def refuse_equal_names(names: Mapping[AnyChoice, str], paths: Mapping[AnyChoice, Sequence[tuple[str, ...]]]) -> None:
    """Refuse two choices of one name.

    Raises:
        ChoiceError: with both paths.
    """
    seen: dict[str, AnyChoice] = {}
    for choice, name in names.items():
        twin = seen.setdefault(name, choice)
        if twin is not choice:
            here, there = ".".join(paths[choice][0]), ".".join(paths[twin][0])
            raise ChoiceError(
                f"two choices are called {name!r}, at {there} and at {here}; call with one of the models inside, or give one"
                " another name="
            )


def claim_for_model(choice: AnyChoice, model: nn.Module, name: str) -> None:
    """Remember which model a choice stands in, and refuse another one that is neither part of it nor around it."""
    other = choice.owner
    if other is not None and other is not model:
        inside = any(module is model for module in other.modules())
        around = any(module is other for module in model.modules())
        if not inside and not around:
            raise ChoiceError(
                f"{name} stands in two models ({type(other).__name__} and {type(model).__name__}): activating one would"
                " change the other; give each its own, for instance by copy.deepcopy(model), or call with the model inside"
            )
        if inside:
            return
    choice.owner = model

"""The names of choices, and the ties between them: equal names, broken ties and choices of two models are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from vitas.errors import ChoiceError
from vitas.space.model import looks_like_a_wrapper, needs_tokens, unwrap
from vitas.space.walk import AnyChoice

Path = tuple[str, ...]
Paths = Mapping[AnyChoice, Sequence[Path]]
"""For each choice where it is held: the names of the modules, wrappers left out, and last that of the attribute."""


def names_of(model: nn.Module, paths: Paths) -> dict[AnyChoice, str]:
    """Return what each choice of a model is called: by its `name`, else by its shortest path.

    Where whole models stand side by side in it, such as a student and its teacher, the names of each begin with its path.

    Raises:
        ChoiceError: two choices of one name, or copies of one choice, that are not those of two whole models.
    """
    names = {choice: choice.name or _shortest(at) for choice, at in paths.items()}
    if len(set(names.values())) == len({choice.origin for choice in paths}) == len(paths):
        return names
    homes = {choice: _shared([path[:-1] for path in at]) for choice, at in paths.items()}
    parts = _whole_models(model, homes, names)
    if not parts:
        refuse_broken_ties(paths)
        refuse_equal_names(names, paths)
    for part in parts:
        n = len(part)
        inside = {choice: [path[n:] for path in at] for choice, at in paths.items() if homes[choice][:n] == part}
        own = names_of(_module_at(model, part), inside)
        names |= {choice: f"{'.'.join(part)}.{name}" for choice, name in own.items()}
    refuse_equal_names(names, paths)
    return names


def _shortest(paths: Sequence[Path]) -> str:
    path = min(paths, key=lambda path: len(path))
    return ".".join(path)


def _whole_models(model: nn.Module, homes: Mapping[AnyChoice, Path], names: Mapping[AnyChoice, str]) -> list[Path]:
    """Return where models stand whose choices have equal names, or were copied from one another; none where that is not so.

    They are no layers, do not run one after the other, and nothing around them holds a choice: else all is one model.

    Args:
        model: What they stand in.
        homes: Where the innermost module stands that has all holders of a choice inside.
        names: What each choice would be called alone.
    """
    groups: dict[tuple[str, str], list[Path]] = {}
    for choice, home in homes.items():
        groups.setdefault(("origin", choice.origin), []).append(home)
        groups.setdefault(("name", names[choice]), []).append(home)
    twins = [home for group in groups.values() if len(group) > 1 for home in group]
    around = _shared(twins)
    if any(around[: len(home)] == home for home in homes.values()):
        return []
    parts = list(dict.fromkeys(home[: len(around) + 1] for home in twins))
    row = isinstance(_module_at(model, around), nn.Sequential)
    return [] if row or any(needs_tokens(_module_at(model, part)) for part in parts) else parts


def _shared(paths: Sequence[Path]) -> Path:
    """Return what all paths begin with."""
    first, last = min(paths), max(paths)
    n = next((i for i, (one, other) in enumerate(zip(first, last)) if one != other), len(first))  # noqa: B905
    return first[:n]


def _module_at(model: nn.Module, path: Path) -> nn.Module:
    """Return the module at a path that leaves wrappers out."""
    model = unwrap(model)
    for name in path:
        while looks_like_a_wrapper(model):
            model = unwrap(next(iter(model._modules.values())))  # type: ignore[arg-type]
        model = unwrap(model._modules[name])  # type: ignore[arg-type]
    return model


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
                f"{choice.name or here}: {here} and {there} hold two copies of what was one {type(choice).__name__};"
                " copy the whole model, or build the part anew"
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
            raise ChoiceError(f"two choices are called {name!r}, at {there} and at {here}; give one another name=")


def claim_for_model(choice: AnyChoice, model: nn.Module, name: str) -> None:
    """Remember which model a choice stands in, and refuse another one that is neither part of it nor around it."""
    other = choice.owner
    if other is not None and other is not model:
        inside = any(module is model for module in other.modules())
        around = any(module is other for module in model.modules())
        if not inside and not around:
            raise ChoiceError(
                f"{name} stands in two models ({type(other).__name__} and {type(model).__name__}); give each its own, for"
                " instance by copy.deepcopy(model), or call with the model inside"
            )
        if inside:
            return
    choice.owner = model

"""Whether weights come from a space in which values use the same of them: noted beside a state_dict, compared on loading.

Names and shapes of weights do not tell which channels a width uses, so torch's metadata of a state_dict does: it adds no
key, and travels with the state_dict itself, also through torch.save. What is made anew of its tensors has none.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from vitas.choice import Choice
from vitas.errors import listed

NOTED = "vitas.uses"
"""Where the metadata of a module keeps it."""

ADVICE = (
    "Equal subnets would compute something else: build the space that the weights are of and vitas.narrow or vitas.widen it,"
    " or load a file of vitas.save_superformer with adapt=True. dict(state_dict) is loaded without a look."
)


def note_uses(choices: Mapping[str, Choice[Any]], metadata: dict[str, Any]) -> None:
    """Note what the values of choices, by the attributes of a module, use of its weights."""
    if choices:
        metadata[NOTED] = {name: choice.uses() for name, choice in choices.items()}


def differing(choices: Mapping[str, Choice[Any]], metadata: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yield an error for each choice of which a value that both have uses something else than was noted."""
    noted = metadata.get(NOTED, {})
    for name, choice in choices.items():
        here, there = _by_value(choice.uses()), _by_value(noted.get(name, ()))
        if others := [value for value, uses in here.items() if there.get(value, uses) != uses]:
            called = choice.label if choice.name or choice.bases != (choice,) else f"{prefix}{name}"
            values, one = listed(map(str, others)), others[0]
            yield (
                f"{called}: the weights are of a space in which {values} use other channels or blocks"
                f" ({one}: {there[one]} there, {here[one]} here)"
            )


def _by_value(uses: tuple[Any, ...]) -> dict[Any, list[tuple[Any, ...]]]:
    return {value: list(map(tuple, sides)) for value, *sides in zip(*uses, strict=True)}

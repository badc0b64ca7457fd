"""Private copies: one layer for each value of a choice, of which only the chosen one runs."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from vitas.choice import Choice, compiling, noted
from vitas.cost import Cost, cost_of, params_of
from vitas.errors import ChoiceError, shown
from vitas.nn.layer import Elastic, exported
from vitas.space import Gate


class Private(Elastic, nn.ModuleDict):
    """One copy of a layer for each value of `choice`; copies that are not chosen get no gradient at all.

    Shapes: those of the chosen copy.
    Cost: that of the chosen copy.
    Source: private class token, positions and q, k of the public ViTAS code (Su et al., July 2021).

    Args:
        choice: A choice of ints, such as the patch size or the head count.
        make: Called with each value, returns its copy.

    Raises:
        ChoiceError: anything but a Choice, or one whose values are not ints.
    """

    _chosen: nn.Module

    def __init__(self, choice: Choice[int], make: Callable[[int], nn.Module]) -> None:
        if not isinstance(choice, Choice) or not all(isinstance(value, int) for value in choice.values):
            raise ChoiceError(f"private copies need a choice of ints, got {shown(choice)}")
        super().__init__({str(value): make(value) for value in choice.values})
        self.choice = choice
        self._follow()

    def _follow(self) -> None:
        self.choice.follow(self)
        self.refresh()

    def refresh(self) -> None:
        """Choose the copy of the active value."""
        # Not a registered child: torch.compile takes its weights as inputs, so that one graph serves every copy.
        self.__dict__["_chosen"] = self[str(self.choice.values[self.choice.index])]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._follow()

    def chosen(self) -> nn.Module:
        """Return the copy of the active value."""
        return self._chosen if compiling() else self[str(self.choice.active)]

    def gate_of(self, name: str) -> Gate:
        """Say which value of the choice makes the copy `name` run."""
        return Gate(self.choice, frozenset({self.choice.index_of(int(name))}))

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that a value of the choice has no copy, where it has none."""
        return None if choice is not self.choice or str(value) in self else "has a copy of its weights for each value"

    def active_weights(self) -> dict[str, Tensor]:
        """Return the weights in use of the chosen copy."""
        return self.chosen().active_weights()  # type: ignore[operator, no-any-return]

    def forward(self, *inputs: Any) -> Any:
        """Run the chosen copy."""
        first, *rest = inputs
        return self.chosen()(noted(first, self.choice.mark), *rest)

    def _each(self) -> Iterator[tuple[Cost, nn.Module]]:
        for value in self.choice.values:
            yield Cost.table(self.choice, (int(value == other) for other in self.choice.values)), self[str(value)]

    def cost(self, tokens: Cost) -> Cost:
        """Return the chosen copy's."""
        return sum((chosen * cost_of(copy, tokens) for chosen, copy in self._each()), Cost())

    def param_count(self) -> Cost:
        """Return the chosen copy's."""
        return sum((chosen * params_of(copy) for chosen, copy in self._each()), Cost())

    def export(self) -> nn.Module:
        """Return the export of the chosen copy."""
        return exported(self.chosen())

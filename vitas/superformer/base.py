"""What both families of superformers have in common."""

from collections.abc import Sequence

from vitas.errors import ChoiceError
from vitas.nn import Elastic
from vitas.space import holders, search_space


class Superformer(Elastic):
    """Put before a plain model: its features are those of the active subnet, which it shows when printed."""

    needs_tokens = False

    def feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return the numbers of the features that `indices` means, of those that the active subnet has.

        Raises:
            ChoiceError: out of range.
        """
        try:
            return super().feature_indices(indices)  # type: ignore[misc, no-any-return]
        except ValueError as error:
            raise ChoiceError(str(error)) from None

    def extra_repr(self) -> str:
        try:
            return f"active: {search_space(self).active()!r}" if any(holders(self)) else ""
        except ChoiceError as error:  # printing must not fail where the space does
            return f"no search space: {error}"

"""What a search found: every evaluation, the front, the best subnet, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vitas.checks import ANY_INT, as_count
from vitas.errors import SearchError, needs
from vitas.plot import pictures
from vitas.search.aims import Aims
from vitas.search.genetic import Floats, hypervolume, nondominated
from vitas.search.storage import sound
from vitas.search.trials import drawable
from vitas.space import SearchSpace, Subnet


@dataclass(frozen=True)
class Evaluation:
    """A subnet and what was measured of it."""

    subnet: Subnet
    scores: Mapping[str, float] = field(default_factory=dict)
    """Everything that `evaluate` returned, and the counts that the model states; without the former if it failed."""
    error: str | None = None
    """Why there are no scores; None: there are."""


class SearchResult:
    """What a search found.

    Attributes:
        space: The search space; None from `load_search`.
        objectives: Name -> "max" or "min".
        windows: Measure -> (low, high), both included, of the budgets given; of a latency in nanoseconds.
        interrupted: Whether Ctrl-C ended this call of `evolve` before the search was over.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> result = vitas.evolve(model, lambda model: 0.5, population=4, generations=1, progress=False)
        >>> len(result.history)
        4
        >>> result.best in vitas.search_space(model)
        True
        >>> [found.subnet for found in result.top(1)] == [result.best]
        True
    """

    def __init__(
        self,
        history: list[Evaluation],
        space: SearchSpace | None,
        aims: Aims,
        population: int,
        windows: Mapping[str, tuple[int, int]],
        study: Any,
        interrupted: bool = False,
    ) -> None:
        self.history = history
        """Every evaluation, in the order in which the subnets were asked for; failed ones too."""
        self._stored = study
        self.space, self.objectives, self.windows = space, aims.objectives, windows
        self.interrupted = interrupted
        self._aims, self._population = aims, population

    @cached_property
    def study(self) -> Any:
        """An Optuna study for its own reports and pictures: a copy in memory, in which each choice is a parameter.

        The study that is stored keeps a network as one attribute, `subnet`. None from `Evolution`.
        """
        if self._stored is None:
            return None
        with sound(self._stored.study_name):
            return drawable(self._stored)

    @property
    def _good(self) -> list[Evaluation]:
        """Evaluations with scores that meet every limit."""
        return [e for e in self.history if e.error is None and self._aims.violation(e.scores) == 0]

    @property
    def front(self) -> list[Evaluation]:
        """Of the evaluations that meet every limit those that no other one dominates.

        Best first on the first objective, then on the others; of equal ones the one with the fewest multiply-adds, then the
        fewest parameters, where the model states them, then the earliest.
        """
        good = self._good
        if not good:
            return []
        return self._in_order([e for e, best in zip(good, nondominated(self._values(good)), strict=True) if best])

    def top(self, k: int) -> list[Evaluation]:
        """Return the best k of the evaluations that meet every limit, best first; fewer where there are not so many.

        The first objective decides, of equal ones the others in turn, then as in `front`: the first is that of `best`.

        Raises:
            SearchError: k is not an int of at least 1.
        """
        return self._in_order(self._good)[: as_count(k, "k", most=ANY_INT, error=SearchError)]

    def _values(self, evaluations: Sequence[Evaluation]) -> Floats:
        """Return the objectives, (evaluations, objectives), such that smaller is better."""
        values = [self._aims.values(evaluation.scores) for evaluation in evaluations]
        return np.array(values).reshape(len(evaluations), len(self.objectives))

    def _in_order(self, evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Return evaluations, best first on the first objective, then on the others, then the cheapest, the earliest."""
        costs = [[evaluation.scores.get(name, 0.0) for name in ("flops", "params")] for evaluation in evaluations]
        keys = np.hstack([self._values(evaluations), np.array(costs).reshape(len(evaluations), 2)])
        return [evaluations[position] for position in np.lexsort(keys.T[::-1])]  # its last key counts first

    @property
    def best(self) -> Subnet:
        """The best subnet on the first objective, and of equal ones the cheapest: the first of `front`.

        Raises:
            SearchError: nothing was evaluated, every evaluation failed, or no subnet met the limits.
        """
        front = self.front
        if front:
            return front[0].subnet
        scored = [evaluation for evaluation in self.history if evaluation.error is None]
        if scored:
            least = min(scored, key=lambda evaluation: self._aims.violation(evaluation.scores))
            found = ", ".join(f"{name} {least.scores[name]:g}" for name in self._aims.limits)
            raise SearchError(f"none of {len(scored)} subnets met the limits; the nearest had {found}")
        if self.history:
            raise SearchError(f"all {len(self.history)} evaluations failed; the last: {self.history[-1].error}")
        raise SearchError("nothing was evaluated")

    @property
    def scores(self) -> dict[Subnet, Mapping[str, float]]:
        """The scores of every subnet that has some."""
        return {evaluation.subnet: evaluation.scores for evaluation in self.history if evaluation.error is None}

    @property
    def hypervolume(self) -> float:
        """The volume between the front and the worst value of each objective among the first `population` evaluations."""
        values = [self._aims.values(evaluation.scores) for evaluation in self._good]
        if not values:
            return 0.0
        return hypervolume(np.stack(values)[nondominated(np.stack(values))], np.max(values[: self._population], axis=0))

    def to_pandas(self) -> Any:
        """Return the history as a pandas.DataFrame: a row for each evaluation with its choices, scores and error.

        NaN stands where a choice is not live. Rows are taken wherever a subnet is: `activate_subnet(model, table.iloc[0])`.

        Raises:
            VitasError: pandas is not installed.
        """
        with needs("search"):
            import pandas

        rows = [{**evaluation.subnet, **evaluation.scores, "error": evaluation.error} for evaluation in self.history]
        return pandas.DataFrame(rows)

    def plot(self) -> Any:
        """Return a matplotlib Figure: the progress, and the front (or score against cost) where a cost is known.

        Raises:
            VitasError: matplotlib is not installed.
        """
        names = list(self.objectives)
        scored = [evaluation for evaluation in self.history if evaluation.error is None]
        good = np.array([self._aims.violation(evaluation.scores) == 0 for evaluation in scored], dtype=bool)
        cost = next((name for name in ("latency", "flops", "params") if scored and name in scored[0].scores), None)
        across = names[1] if len(names) > 1 else cost
        figure = pictures.figure(1 if across is None else 2)
        first = np.array([evaluation.scores[names[0]] for evaluation in scored])
        pictures.progress(figure.axes[0], first, good, names[0], self.objectives[names[0]])
        if across is not None:
            x = np.array([evaluation.scores[across] for evaluation in scored])
            best = {evaluation.subnet for evaluation in self.front}
            marked = np.array([evaluation.subnet in best for evaluation in scored], dtype=bool)
            pictures.front(figure.axes[1], x, first, good, marked, across, names[0])
        return figure

    def __repr__(self) -> str:
        failed = sum(evaluation.error is not None for evaluation in self.history)
        lines = [f"SearchResult of {len(self.history)} evaluations" + (f", {failed} failed" if failed else "")]
        for evaluation in self.front[:1]:
            lines.append("  best: " + ", ".join(f"{name} {value:,.6g}" for name, value in evaluation.scores.items()))
        return "\n".join(lines)

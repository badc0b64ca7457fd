"""What a search is after: objectives and limits, read out of the scores that `evaluate` returns."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import torch

from vitas.checks import as_real
from vitas.errors import SearchError, fault_of_name, is_one_of, listed, one_of, shown
from vitas.search.genetic import Floats


class Aims:
    """Objectives and limits: what is read out of scores.

    Args:
        objectives: Name -> "max" or "min".
        limits: None, or name -> an upper bound or (low, high), either may be None; the latter of what is to be large.
        choices: Names that no score may have, since both are columns of one table.

    Raises:
        SearchError: what is not such a mapping.
    """

    def __init__(self, objectives: Any, limits: Any, choices: Container[str] = ()) -> None:
        self._choices = choices
        if not isinstance(objectives, Mapping) or not objectives:
            raise SearchError(
                f"objectives: expected names and directions such as {{'accuracy': 'max'}}, got {shown(objectives)}"
            )
        for name, direction in objectives.items():
            self._check_name("objectives", name)
            if not is_one_of(["max", "min"], direction):
                raise SearchError(f"objectives: {name}: {one_of(['max', 'min'], direction)}")
        if not isinstance(limits, (Mapping, type(None))):
            raise SearchError(f"limits: expected names and bounds such as {{'latency_ms': (None, 12)}}, got {shown(limits)}")
        self.objectives: dict[str, str] = dict(objectives)
        for name in limits or {}:
            self._check_name("limits", name)
        self.limits = {name: _bounds(name, bounds) for name, bounds in (limits or {}).items()}
        for name, bounds in (limits or {}).items():
            if self.objectives.get(name) == "max" and not isinstance(bounds, (tuple, list)):
                raise SearchError(f"limits: {name} is to be large; write (least, None) or (None, most), got {shown(bounds)}")
        self._signs = np.array([-1.0 if direction == "max" else 1.0 for direction in self.objectives.values()])

    def read(self, returned: Any, counts: Mapping[str, float]) -> dict[str, float]:
        """Return what `evaluate` returned as names and floats, with the model's own counts.

        A number is that one objective or limited value which is not counted. In a mapping a name that is counted too
        replaces the count: somebody counts otherwise.

        Raises:
            SearchError: not a number or a mapping of numbers; an objective or a limited value that is missing.
        """
        if not isinstance(returned, Mapping):
            measured = [name for name in {**self.objectives, **self.limits} if name not in counts]
            if len(measured) != 1:
                names = listed(measured) or "the names of what it measured, since every aim is counted"
                raise SearchError(f"evaluate: expected a mapping with {names}, got {shown(returned)}")
            returned = {measured[0]: returned}
        for name in returned:
            self._check_name("evaluate", name)
        scores = {**counts, **{name: checked_number(name, value) for name, value in returned.items()}}
        for what, wanted in (("the objective", self.objectives), ("the limited value", self.limits)):
            for name in wanted:
                if name not in scores:
                    got = listed(scores, 3) or "nothing"
                    raise SearchError(f"evaluate: {what} {shown(name, 40)} is missing; it returned {got}")
        return scores

    def failure(self, scores: Mapping[str, float]) -> str | None:
        """Return why scores cannot be used, such as NaN; None if they can."""
        bad = [name for name in {**self.objectives, **self.limits} if not math.isfinite(scores[name])]
        return f"evaluate returned {scores[bad[0]]} for {bad[0]}" if bad else None

    def values(self, scores: Mapping[str, float]) -> Floats:
        """Return the objectives, (objectives,), such that smaller is better."""
        return self._signs * [scores[name] for name in self.objectives]

    def excesses(self, scores: Mapping[str, float]) -> list[float]:
        """Return by how much each limit is broken, relative to the limit; at most 0: met."""
        excesses = []
        for name, (low, high) in self.limits.items():
            over = max(low - scores[name], scores[name] - high)
            excesses.append(over / max(abs(low if scores[name] < low else high), 1e-12) if over > 0 else min(over, 0.0))
        return [max(excess, -1e300) for excess in excesses]  # databases know no infinity

    def violation(self, scores: Mapping[str, float]) -> float:
        """Return the sum of what is broken; 0 where every limit is met."""
        return sum(max(0.0, excess) for excess in self.excesses(scores))

    def _check_name(self, what: str, name: Any) -> None:
        if fault := fault_of_name(name, 100):
            raise SearchError(f"{what}: a name: {fault}")
        if name in self._choices:
            raise SearchError(f"{what}: another name for {shown(name, 40)}, which is a choice of the model")


def _bounds(name: Any, bounds: Any) -> tuple[float, float]:
    low, high = bounds if isinstance(bounds, (tuple, list)) and len(bounds) == 2 else (None, bounds)
    numbers = [checked_number(f"limits: {name}", bound) for bound in (low, high) if bound is not None]
    if not numbers or any(math.isnan(number) for number in numbers):
        raise SearchError(f"limits: {name}: expected a number or (low, high), either may be None, got {shown(bounds)}")
    least, most = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    if least > most:
        raise SearchError(f"limits: {name}: the lower limit {low} is above the upper one {high}; they read (low, high)")
    return least, most


def checked_number(name: str, value: Any) -> float:
    """Return a value as an int or a float, also that of a tensor without axes.

    Raises:
        SearchError: not a number, or one that no float can hold.
    """
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        value = value.item()
    return as_real(value, name, SearchError, "a number")

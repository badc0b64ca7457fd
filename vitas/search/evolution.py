"""Evolutionary search: asks for subnets and is told their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from vitas.checks import as_count
from vitas.errors import SearchError
from vitas.search.archive import Archive
from vitas.search.result import Evaluation, SearchResult
from vitas.space import Subnet


class Evolution:
    """The search with the loop left to the caller: `ask` for subnets, `tell` their scores, in any order.

    Steady state: as soon as a score is told, the next subnet asked for can descend from it. The first `population` subnets
    are those of `initial`, then draws from the prior inside the budget. Then a parent is taken, the best of eight drawn from
    the best `population` so far (by rank and crowding distance with several objectives); with probability 1/2 its blocks are
    crossed with those of a second one; about one choice is mutated; and a child outside the budget is repaired. No subnet is
    asked for twice.

    Source: NSGA-II (Deb et al., 2002) for ranks and crowding; population and evaluations as in the public ViTAS code (Su et
    al., July 2021); steady state, crossover over blocks and repair are ours.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: Budget of multiply-adds: an upper bound, (low, high), or percentages of the costliest subnet as strings.
        params: Budget of parameters, likewise.
        latency: (table, budget): a `latency_table` and milliseconds, likewise, as in sample_subnet.
        inputs: For a FLOPs budget of a model that states no cost: what it is run on to be counted, see `count_flops`.
        limits: Name of a measured value -> an upper bound or (low, high), either may be None.
        objectives: Name -> "max" or "min". "flops" and "params" need not be measured.
        population: How many of the best subnets may be parents.
        seed: Any int of at least 0.
        fixed: Name of a choice or a glob -> the one value that it has, as in sample_subnet.
        only: Name or glob -> the values that it may have.
        initial: Subnets to be evaluated first, such as `[found.subnet for found in result.top(5)]`; each is evaluated once,
            and counts as an evaluation.

    Raises:
        BudgetError: a budget that cannot be read, that no subnet meets, or that an `initial` one does not.
        ChoiceError: a model without choices; as `SearchSpace.restrict`; an `initial` subnet of another space.
        SearchError: objectives, limits or numbers that cannot be used.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> evolution = vitas.Evolution(model, flops="50%", population=4)
        >>> for subnet in evolution.ask(4):
        ...     evolution.tell(subnet, {"accuracy": 0.5})  # your score
        >>> len(evolution.result().history)
        4
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        flops: Any = None,
        params: Any = None,
        latency: Any = None,
        inputs: Any = None,
        limits: Mapping[str, Any] | None = None,
        objectives: Mapping[str, str] | None = None,
        population: int = 50,
        seed: int = 0,
        fixed: Mapping[str, Any] | None = None,
        only: Mapping[str, Any] | None = None,
        initial: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        self._archive = Archive(
            model,
            flops=flops,
            params=params,
            latency=latency,
            inputs=inputs,
            limits=limits,
            objectives=objectives,
            population=population,
            seed=seed,
            fixed=fixed,
            only=only,
            initial=initial,
        )
        self.space, self.population, self.seed = self._archive.space, self._archive.population, self._archive.seed

    def ask(self, n: int = 1) -> list[Subnet]:
        """Return n subnets inside the budget that were not asked for before; fewer when no more can be found."""
        subnets: list[Subnet] = []
        for _ in range(as_count(n, "n", error=SearchError)):
            code = self._archive.candidate()
            if code is None:
                break
            self._archive.reserve(code)
            subnets.append(self.space.decode(code))
        return subnets

    def tell(self, subnet: Mapping[str, Any], scores: float | Mapping[str, float]) -> None:
        """Take the scores of a subnet, whether it was asked for or not; NaN: its evaluation failed.

        Raises:
            ChoiceError: not a subnet of the space, or of what is left of it.
            SearchError: scores that are not numbers, without an objective or a limited value; a subnet told before.
        """
        subnet = self.space.subnet(subnet)
        code = self.space.encode(subnet)
        if self._archive.is_evaluated(code):
            raise SearchError(f"tell: the scores of this subnet were told before\n{subnet}")
        aims = self._archive.aims
        read = aims.read(scores, self._archive.counts(code))
        self._archive.record(code, Evaluation(subnet, read, aims.failure(read)))

    def result(self) -> SearchResult:
        """Return what was found so far."""
        return self._archive.result()

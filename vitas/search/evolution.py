"""Evolutionary search: asks for subnets and is told their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from vitas.checks import ANY_INT, as_count
from vitas.errors import SearchError
from vitas.sample import SubnetSampler
from vitas.search.aims import Aims
from vitas.search.genetic import Codes, Floats, Genome, crossover, mutate, ranked, repair
from vitas.search.result import Evaluation, SearchResult
from vitas.space import SearchSpace, Subnet


class Evolution:
    """The search with the loop left to the caller: `ask` for subnets, `tell` their scores, in any order.

    Steady state: as soon as a score is told, the next subnet asked for can descend from it. The first `population` subnets
    are drawn from the prior inside the budget. Then a parent is taken, the best of eight drawn from the best `population` so
    far (by rank and crowding distance with several objectives); with probability 1/2 its blocks are crossed with those of a
    second one; about one choice is mutated; and a child outside the budget is repaired. No subnet is asked for twice.

    Source: NSGA-II (Deb et al., 2002) for ranks and crowding; population and evaluations as in the public ViTAS code (Su et
    al., July 2021); steady state, crossover over blocks and repair are ours.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: Budget of multiply-adds: an upper bound, (low, high), or percentages of the costliest subnet as strings.
        params: Budget of parameters, likewise.
        inputs: For a FLOPs budget of a model that states no cost: what it is run on to be counted, see `count_flops`.
        limits: Name of a measured value -> an upper bound or (low, high), either may be None.
        objectives: Name -> "max" or "min". "flops" and "params" need not be measured.
        population: How many of the best subnets may be parents.
        seed: Any int of at least 0.

    Raises:
        BudgetError: a budget that cannot be read or that no subnet meets.
        ChoiceError: a model without choices.
        SearchError: objectives, limits or numbers that cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        flops: Any = None,
        params: Any = None,
        inputs: Any = None,
        limits: Mapping[str, Any] | None = None,
        objectives: Mapping[str, str] | None = None,
        population: int = 50,
        seed: int = 0,
    ) -> None:
        self._aims = Aims({"accuracy": "max"} if objectives is None else objectives, limits)
        self.population, self.seed = (
            as_count(population, "population", 2, error=SearchError),
            as_count(seed, "seed", 0, ANY_INT, SearchError),
        )
        self._sampler = SubnetSampler(model, flops=flops, params=params, inputs=inputs)
        self.space: SearchSpace = self._sampler.space
        self._genome = Genome.of(self.space)
        self._told: dict[bytes, Evaluation | None] = {}  # None: asked for, no score yet
        self._best: list[tuple[bytes, Floats, float]] = []  # the parents, best first: key, values, violation
        self._first: list[Codes] = []
        self._reference: Floats | None = None

    # -- what to evaluate next ---------------------------------------------------------------------------------------

    def ask(self, n: int = 1) -> list[Subnet]:
        """Return n subnets inside the budget that were not asked for before; fewer when no more can be found."""
        subnets: list[Subnet] = []
        for _ in range(as_count(n, "n", error=SearchError)):
            code = self._next()
            if code is None:
                break
            self._told[code.tobytes()] = None
            subnets.append(self.space.decode(code))
        return subnets

    def _next(self, salt: Sequence[int] = ()) -> Codes | None:
        """Return a code that is new and inside the budget, None when none can be found.

        Args:
            salt: More ints for the seed, by which workers that know the same take different ways.
        """
        rng = np.random.default_rng([self.seed, len(self._told), *salt])
        if not self._first:
            self._first = list(self._sampler.draw(self.population, np.random.default_rng([self.seed])))
        if len(self._told) < self.population:
            for code in self._first:
                if self._is_new(code):
                    return code
        if len(self._told) >= self.population and len(self._best) > 1:
            for _ in range(8):
                child = self._child(rng)
                if child is not None:
                    return child
        for n in (64, 1024, 8192):
            drawn: list[Codes] = list(self._sampler.draw(n, rng))
            for code in drawn:
                if self._is_new(code):
                    return code
        return None

    def _is_new(self, code: Codes) -> bool:
        return code.tobytes() not in self._told

    def _child(self, rng: np.random.Generator, litter: int = 4) -> Codes | None:
        """Return the first of a few children that is new and inside the budget, after repair if need be."""
        parents = rng.integers(0, len(self._best), (8, 2 * litter)).min(axis=0)  # the best of eight
        codes = np.stack([np.frombuffer(self._best[parent][0], dtype=np.int64) for parent in parents])
        second = np.where(rng.random((litter, 1)) < 0.5, codes[litter:], codes[:litter])
        children = crossover(codes[:litter], second, self._genome, rng)
        children = mutate(children, self.space.liveness.of(children), self._genome, rng)
        canonical = self.space.canonical(children)
        inside = self._sampler.contains(canonical)
        for child, code, fits in zip(children, canonical, inside, strict=True):
            if not fits:
                mended = repair(child, code >= 0, self._genome, self._fits, rng)
                if mended is None:
                    continue
                code = self.space.canonical(mended[None])[0]
            if self._is_new(code):
                return np.ascontiguousarray(code)
        return None

    def _fits(self, codes: Codes) -> Any:
        return self._sampler.contains(self.space.canonical(codes))

    # -- what came of it ---------------------------------------------------------------------------------------------

    def tell(self, subnet: Mapping[str, Any], scores: float | Mapping[str, float]) -> None:
        """Take the scores of a subnet, whether it was asked for or not; NaN: its evaluation failed.

        Raises:
            ChoiceError: not a subnet of the space.
            SearchError: scores that are no numbers, without an objective or a limited value; a subnet told before.
        """
        subnet = self.space.subnet(subnet)
        code = self.space.encode(subnet)
        if self._told.get(code.tobytes()) is not None:
            raise SearchError(f"tell: the scores of this subnet were told before\n{subnet}")
        read = self._aims.read(scores, self._counts(code))
        self._record(code, Evaluation(subnet, read, self._aims.failure(read)))

    def _counts(self, code: Codes) -> dict[str, int]:
        return {name: int(counts[0]) for name, counts in self._sampler.costs(code[None]).items()}

    def _record(self, code: Codes, evaluation: Evaluation) -> None:
        key = code.tobytes()
        self._told[key] = evaluation
        if evaluation.error is None:
            values, violation = self._aims.values(evaluation.scores), self._aims.violation(evaluation.scores)
            self._best.append((key, values, violation))
            order = ranked(np.stack([values for _, values, _ in self._best]), np.array([v for _, _, v in self._best]))
            self._best = [self._best[place] for place in order[: self.population]]

    def _forget(self, code: Codes) -> None:
        """Take back that a subnet was asked for; it may be asked for again."""
        del self._told[code.tobytes()]

    def result(self) -> SearchResult:
        """Return what was found so far."""
        history = [evaluation for evaluation in self._told.values() if evaluation is not None]
        return SearchResult(history, self.space, self._aims, self.population, dict(self._sampler.windows), None)

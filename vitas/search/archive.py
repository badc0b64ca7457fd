"""What a search knows: which subnets were asked for, what was told of them, and what to evaluate next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vitas.checks import ANY_INT, are_several, as_count
from vitas.errors import BudgetError, ChoiceError, SearchError, shown
from vitas.sample import MEASURES, SubnetSampler
from vitas.search.aims import Aims
from vitas.search.genetic import Codes, Floats, Genome, crossover, mutate, ranked, repair
from vitas.search.result import Evaluation, SearchResult
from vitas.space import SearchSpace, TableRow


class Archive:
    """The subnets of a search, encoded, (choices,) each; how they come about is said at `Evolution`, arguments too.

    Attributes:
        space: The search space.
        sampler: Draws subnets inside the budget.
        aims: Objectives and limits.
        best: The parents, best first: (key, values, violation) each, where a key is the bytes of a code.
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
        self.population = as_count(population, "population", 2, error=SearchError)
        self.seed = as_count(seed, "seed", 0, ANY_INT, SearchError)
        self.sampler = SubnetSampler(
            model, flops=flops, params=params, latency=latency, inputs=inputs, fixed=fixed, only=only
        )
        self.space: SearchSpace = self.sampler.space
        self.aims = Aims({"accuracy": "max"} if objectives is None else objectives, limits, self.space.choices)
        self.best: list[tuple[bytes, Floats, float]] = []
        self._genome = Genome.of(self.space)
        self._evaluations: dict[bytes, Evaluation | None] = {}  # None: asked for, no scores yet
        self._first: list[Codes] = []
        self._initial = self._known(initial)

    def __len__(self) -> int:
        """How many subnets were asked for or told."""
        return len(self._evaluations)

    def __contains__(self, code: Codes) -> bool:
        """Whether a subnet was asked for or told."""
        return code.tobytes() in self._evaluations

    # -- what came of it ---------------------------------------------------------------------------------------------

    def reserve(self, code: Codes) -> None:
        """Note that a subnet was asked for."""
        self._evaluations.setdefault(code.tobytes(), None)

    def release(self, code: Codes) -> None:
        """Take back that a subnet was asked for; it may be asked for again."""
        self._evaluations.pop(code.tobytes(), None)

    def is_evaluated(self, code: Codes) -> bool:
        """Whether an evaluation of a subnet was recorded."""
        return self._evaluations.get(code.tobytes()) is not None

    def counts(self, code: Codes) -> dict[str, int | float]:
        """Return what a subnet costs, as far as the model states it, in the units in which budgets are typed."""
        return {name: MEASURES[name].value(costs[0]) for name, costs in self.sampler.costs(code[None]).items()}

    def record(self, code: Codes, evaluation: Evaluation) -> None:
        """Take an evaluation; without an error, the subnet may become a parent."""
        key = code.tobytes()
        self._evaluations[key] = evaluation
        if evaluation.error is None:
            values, violation = self.aims.values(evaluation.scores), self.aims.violation(evaluation.scores)
            self.best.append((key, values, violation))
            order = ranked(np.stack([values for _, values, _ in self.best]), np.array([v for _, _, v in self.best]))
            self.best = [self.best[position] for position in order[: self.population]]

    def result(self, study: Any = None, interrupted: bool = False) -> SearchResult:
        """Return what was found so far, with the Optuna study where there is one."""
        history = [evaluation for evaluation in self._evaluations.values() if evaluation is not None]
        windows = dict(self.sampler.windows)
        return SearchResult(history, self.space, self.aims, self.population, windows, study, interrupted)

    def _known(self, initial: Iterable[Mapping[str, Any]]) -> list[Codes]:
        """Return the codes of subnets to begin with.

        Raises:
            ChoiceError: not a subnet of the space, or of what is left of it.
            BudgetError: a subnet outside the budget.
            SearchError: no list of subnets.
        """
        if not are_several(initial) or isinstance(initial, (Mapping, TableRow)):
            raise SearchError(f"initial: expected a list of subnets, got {shown(initial)}")
        codes = []
        for number, subnet in enumerate(initial):
            try:
                code = self.space.encode(self.space.subnet(subnet))
            except ChoiceError as error:
                raise ChoiceError(f"initial: subnet {number}: {error}") from None
            if not self.sampler.contains(code[None])[0]:
                costs = ", ".join(f"{name} {self.counts(code)[name]:,}" for name in self.sampler.windows)
                raise BudgetError(f"initial: subnet {number}: expected {self.sampler.wanted()}, got {costs}")
            codes.append(code)
        return codes

    # -- what to evaluate next ---------------------------------------------------------------------------------------

    def candidate(self, salt: Sequence[int] = ()) -> Codes | None:
        """Return a subnet that is new and inside the budget, None when none can be found.

        Args:
            salt: More ints for the seed, by which workers that know the same take different ways; without them what is
                first is taken in order.
        """
        rng = np.random.default_rng([self.seed, len(self), *salt])
        if not self._first:
            self._first = list(self.sampler.draw(self.population, np.random.default_rng([self.seed])))
        for known in (self._initial, self._first if len(self) < self.population else []):
            left = [code for code in known if code not in self]
            if left:
                return left[int(rng.integers(len(left))) if salt else 0]
        if len(self) >= self.population and len(self.best) > 1:
            for _ in range(8):
                child = self._child(rng)
                if child is not None:
                    return child
        for n in (64, 1024, 8192):
            drawn: list[Codes] = list(self.sampler.draw(n, rng))
            for code in drawn:
                if code not in self:
                    return code
        return None

    def _child(self, rng: np.random.Generator, litter: int = 4) -> Codes | None:
        """Return the first of a few children that is new and inside the budget, after repair if need be."""
        parents = rng.integers(0, len(self.best), (8, 2 * litter)).min(axis=0)  # the best of eight
        genome = self._genome
        ranks = genome.ranks(np.stack([np.frombuffer(self.best[parent][0], dtype=np.int64) for parent in parents]))
        second = np.where(rng.random((litter, 1)) < 0.5, ranks[litter:], ranks[:litter])
        children = crossover(ranks[:litter], second, genome, rng)
        children = mutate(children, self.space.liveness.of(genome.codes(children)), genome, rng)
        canonical = self.space.canonical(genome.codes(children))
        inside = self.sampler.contains(canonical)
        for child, code, fits in zip(children, canonical, inside, strict=True):
            if not fits:
                mended = repair(child, code >= 0, genome, self._fits, rng)
                if mended is None:
                    continue
                code = self.space.canonical(genome.codes(mended[None]))[0]
            if code not in self:
                return np.ascontiguousarray(code)
        return None

    def _fits(self, ranks: Codes) -> NDArray[np.bool_]:
        return self.sampler.contains(self.space.canonical(self._genome.codes(ranks)))

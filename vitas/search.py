"""Evolutionary search: the best subnet under a budget, scored with the weights that it inherits.

The evolution is ours and knows nothing of files; Optuna stores, reports and plots. What the evolution asks for next is a
function of the seed, of how many subnets were asked for before, and of their scores: a search that was killed and goes on
takes the same way as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from vitas.aims import Aims, checked_count, checked_number
from vitas.choice import LONGEST_NAME
from vitas.errors import SearchError, VitasError, brief, fault_of_name, needs, shown
from vitas.genetic import Codes, Floats, Genome, crossover, mutate, ranked, repair
from vitas.result import Evaluation, SearchResult
from vitas.sample import SubnetSampler
from vitas.space import SearchSpace, search_space
from vitas.storage import Claim, Ledger, open_storage
from vitas.subnet import Subnet
from vitas.walk import AnyChoice, unwrap

Evaluate = Callable[[nn.Module], float | Mapping[str, float]]


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
        self.population, self.seed = checked_count("population", population, 2), checked_count("seed", seed, 0)
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
        for _ in range(checked_count("n", n, 1)):
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
        children = mutate(children, self.space.live(children), self._genome, rng)
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


def evolve(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    flops: Any = None,
    params: Any = None,
    inputs: Any = None,
    limits: Mapping[str, Any] | None = None,
    objectives: Mapping[str, str] | None = None,
    population: int = 50,
    generations: int = 40,
    seed: int = 0,
    storage: Any = None,
    name: str = "vitas",
    max_failures: int = 20,
    stale_after: float | None = None,
    progress: bool = True,
) -> SearchResult:
    """Search for the best subnets inside a budget; see `Evolution` for how.

    A search with a storage goes on where it stopped: no stored evaluation is lost or repeated, and an evaluation
    that was running when its process died is done again. Several processes, on one machine or many, that make the same call
    with the same storage and name work on one search. Ctrl-C returns what was found so far.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile; left as it was.
        evaluate: Called with the model while the subnet to be scored is active. Returns a number where one objective or
            limited value is measured, else a mapping with all of them and whatever else is to be kept; "flops" or "params"
            in it replace the counts. If it raises or returns NaN the evaluation is recorded as failed, the search goes on.
        flops: Budget of multiply-adds: an upper bound, (low, high), or percentages of the costliest subnet as strings.
        params: Budget of parameters, likewise.
        inputs: For a FLOPs budget of a model that states no cost: what it is run on to be counted, see `count_flops`.
        limits: Name of a measured value -> an upper bound or (low, high), either may be None: {"latency_ms": (None, 12)}.
        objectives: Name -> "max" or "min"; None: {"accuracy": "max"}. "flops" and "params" need not be measured.
        population: How many of the best subnets may be parents; also how many are drawn at random first.
        generations: population * generations evaluations are done in all, failed ones included. A search that is done
            goes on with a larger number.
        seed: Any int of at least 0. Same seed, same search, with one worker.
        storage: None (memory), the path of a journal file, a URL that Optuna takes, or an Optuna storage.
        name: Name of the search in the storage, at most 500 characters.
        max_failures: After so many failed evaluations in a row the search stops.
        stale_after: A worker on another machine is taken for dead, and its evaluation done again, when that has taken this
            many seconds; None: ten times the longest evaluation so far, and at least a minute. Dead processes of this
            machine are noticed at once. 0: there is no other worker.
        progress: Whether to show a progress bar: best score, hypervolume, evaluations a minute.

    Raises:
        BudgetError: a budget that cannot be read or that no subnet meets.
        ChoiceError: a model without choices.
        FileError: a storage file that is no journal.
        SearchError: objectives, limits or numbers that cannot be used; a storage made for another space, window, objectives,
            limits, settings or weights; what `evaluate` returned is no number or lacks an objective; too many failures.

    Example:
        >>> result = vitas.evolve(model, vitas.accuracy(loader), flops="50%", storage="search.log")
        >>> small = vitas.export_subnet(model, result.best)
    """
    if not callable(evaluate):
        raise SearchError(f"evaluate: expected a function of the model, got {shown(evaluate)}")
    if fault := fault_of_name(name, LONGEST_NAME):
        raise SearchError(f"name: {fault}")
    if stale_after is not None and not checked_number("stale_after", stale_after) >= 0:
        raise SearchError(f"stale_after: expected seconds, at least 0, got {shown(stale_after)}")
    total = checked_count("population", population, 2) * checked_count("generations", generations, 1)
    checked_count("max_failures", max_failures, 1)
    evolution = Evolution(
        model,
        flops=flops,
        params=params,
        inputs=inputs,
        limits=limits,
        objectives=objectives,
        population=population,
        seed=seed,
    )
    facts = _facts(evolution, model if storage is not None else None)
    ledger = Ledger(open_storage(storage), name, evolution._aims.objectives, facts)
    worker = _Worker(evolution, ledger, total, stale_after)
    worker.work(model, evaluate, max_failures, _Bar(worker) if progress else None)
    result = evolution.result()
    result.study = ledger.study
    return result


class _Job(NamedTuple):
    """A subnet that this worker has claimed."""

    trial_id: int
    subnet: Subnet
    counts: Mapping[str, int]


def _described(error: Exception | str | None) -> str:
    return f"{type(error).__name__}: {brief(error, 1500)}" if isinstance(error, Exception) else str(error)


class _Worker:
    """One of the processes that work on a search: keeps its evolution in step with the storage."""

    def __init__(self, evolution: Evolution, ledger: Ledger, total: int, stale_after: float | None) -> None:
        self.evolution, self.ledger, self.total, self.stale_after = evolution, ledger, total, stale_after
        self._values = {name: choice.values for name, choice in evolution.space.choices.items()}
        self._holders: dict[bytes, set[int]] = {}  # subnet -> numbers of its claims that stand
        self._orphans: dict[bytes, Codes] = {}  # claimed once, given up, not claimed since
        self._salt = int(ledger.token, 16)
        self.read()

    def read(self) -> None:
        """Take in what this and other workers have stored."""
        evolution = self.evolution
        for claim in self.ledger.news():
            code = evolution.space.encode(claim.params)
            key = code.tobytes()
            holders = self._holders.setdefault(key, set())
            if claim.state == "PRUNED":
                holders.discard(claim.number)
                if not holders:
                    self._orphans[key] = code
                    if key in evolution._told:
                        evolution._forget(code)
                continue
            holders.add(claim.number)
            self._orphans.pop(key, None)
            evolution._told.setdefault(key, None)
            if claim.state != "RUNNING" and evolution._told[key] is None:
                evolution._record(code, self._evaluation(claim, code))

    def _evaluation(self, claim: Claim, code: Codes) -> Evaluation:
        subnet = self.evolution.space.decode(code)
        counts = {name: claim.attrs[name] for name in ("flops", "params") if name in claim.attrs}
        if claim.state == "FAIL":
            return Evaluation(subnet, counts, claim.attrs.get("error", "no error was stored"))
        more = {name: math.nan if value is None else value for name, value in claim.attrs.get("scores", {}).items()}
        return Evaluation(
            subnet, {**counts, **more, **dict(zip(self.evolution._aims.objectives, claim.values or (), strict=True))}
        )

    def work(self, model: nn.Module, evaluate: Evaluate, max_failures: int, bar: _Bar | None) -> None:
        """Evaluate subnets until the search is over or is interrupted.

        Raises:
            SearchError: a mistake in what `evaluate` returns; `max_failures` failures in a row.
        """
        failures = 0
        try:
            while (job := self.next()) is not None:
                error = self.evaluate(model, evaluate, job)
                failures = failures + 1 if error is not None else 0
                if bar is not None:
                    bar.update()
                if failures >= max_failures:
                    cause = error if isinstance(error, Exception) else None
                    raise SearchError(f"{failures} evaluations failed in a row; the last: {_described(error)}") from cause
        except KeyboardInterrupt:
            pass  # what there is, is returned
        finally:
            self.ledger.withdraw_own()  # interrupted, or a mistake in what evaluate returns: to be done again
            self.read()
            if bar is not None:
                bar.close()

    def evaluate(self, model: nn.Module, evaluate: Evaluate, job: _Job) -> Exception | str | None:
        """Evaluate a claimed subnet and store what came of it; return the error if it failed."""
        try:
            with self.evolution.space.use(job.subnet):
                returned = evaluate(model)
        except Exception as error:
            self.ledger.fail(job.trial_id, _described(error))
            return error
        aims = self.evolution._aims
        scores = aims.read(returned, job.counts)
        failure = aims.failure(scores)
        if failure is not None:
            self.ledger.fail(job.trial_id, failure)
            return failure
        known = {*aims.objectives, *(name for name, count in job.counts.items() if scores[name] == count)}
        more = {name: value if math.isfinite(value) else None for name, value in scores.items() if name not in known}
        kept = {"scores": more} if more else {}  # None: JSON has no NaN and no infinity
        self.ledger.complete(job.trial_id, [scores[name] for name in aims.objectives], kept, aims.excesses(scores))
        return None

    def next(self) -> _Job | None:
        """Claim a subnet; None when the search is over."""
        salt: tuple[int, ...] = ()
        pause = 0.01
        while True:
            self.read()
            if self.ledger.running:
                self.ledger.withdraw_dead(self.stale_after)
                self.read()
            code = self._candidate(salt) if len(self.evolution._told) < self.total else None
            if code is not None:
                job = self._claim(code)
                if job is not None:
                    return job
                salt = (self._salt,)  # somebody was quicker: take another way than everybody who knows the same
            elif self.ledger.running:  # others are at work on the last ones; should they die, these are ours
                time.sleep(pause)
                pause = min(1.0, 1.5 * pause)
            else:
                return None

    def _candidate(self, salt: tuple[int, ...]) -> Codes | None:
        if self._orphans:
            waiting = list(self._orphans.values())
            return waiting[salt[0] % len(waiting) if salt else 0]
        return self.evolution._next(salt)

    def _claim(self, code: Codes) -> _Job | None:
        """Claim a subnet; None if another worker's claim on it is older, or if the search was full before."""
        subnet, counts = self.evolution.space.decode(code), self.evolution._counts(code)
        trial_id, number = self.ledger.claim(subnet, self._values, counts)
        self.read()
        if min(self._holders[code.tobytes()]) == number and not self._is_beyond(number):
            return _Job(trial_id, subnet, counts)
        self.ledger.withdraw(trial_id)
        return None

    def _is_beyond(self, number: int) -> bool:
        """Whether the claims before this one make up the whole search."""
        if len(self.evolution._told) <= self.total:
            return False
        return sum(min(holders, default=number) < number for holders in self._holders.values()) >= self.total


class _Bar:
    """The progress bar."""

    def __init__(self, worker: _Worker) -> None:
        with needs("search"):
            from tqdm import tqdm

        self._evolution = worker.evolution
        done = len(self._evolution.result().history)
        self._bar = tqdm(total=worker.total, initial=done, desc=worker.ledger.study.study_name, unit="subnet")
        self._started, self._before, self._shown = time.monotonic(), done, 0.0

    def update(self) -> None:
        """Show how far the search is; at most twice a second."""
        now = time.monotonic()
        if now - self._shown < 0.5:
            return
        self._shown = now
        self._show(now)

    def _show(self, now: float) -> None:
        result = self._evolution.result()
        front = result.front
        done = len(result.history)
        facts = {"per minute": f"{60 * (done - self._before) / max(now - self._started, 1e-9):.0f}"}
        if front:
            name = next(iter(result.objectives))
            facts = {f"best {name}": f"{front[0].scores[name]:.5g}", **facts}
            if len(result.objectives) > 1:
                facts["hypervolume"] = f"{result.hypervolume:.4g}"
        self._bar.n = done
        self._bar.set_postfix(facts)

    def close(self) -> None:
        """Show the end and leave the line."""
        self._show(time.monotonic())
        self._bar.close()


def _facts(evolution: Evolution, model: nn.Module | None) -> dict[str, Any]:
    """Return what a search is made for, as JSON values; None for the model: without its weights."""
    space = evolution.space
    described = {"choices": space.description(), "priors": {name: list(c.p) for name, c in space.choices.items()}}
    return {
        "search space": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16],
        "objectives": evolution._aims.objectives,
        "limits": {name: [_finite(low), _finite(high)] for name, (low, high) in evolution._aims.limits.items()},
        "budget": {name: [int(bound) for bound in window] for name, window in evolution._sampler.windows.items()},
        "population": evolution.population,
        "seed": evolution.seed,
        "weights": _fingerprint(model) if model is not None else None,
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _fingerprint(model: nn.Module) -> str:
    """Return a hash of the names, types, shapes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(unwrap(model).state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            if not value.is_meta:
                data = value.detach().cpu().contiguous().reshape(-1)
                digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def suggest_subnet(trial: Any, model: nn.Module) -> Subnet:
    """Return a subnet made of a trial's suggestions, for an Optuna study of one's own, with any sampler.

    One categorical parameter for each live choice, under its name in the search space. Nothing is activated.

    Args:
        trial: An `optuna.Trial`.
        model: A model with choices, possibly wrapped by DDP or torch.compile.

    Raises:
        ChoiceError: a model without choices.
        VitasError: not a trial.
    """
    if not hasattr(trial, "suggest_categorical"):
        raise VitasError(f"trial: expected an optuna.Trial, got {type(trial).__name__}")

    def pick(name: str, choice: AnyChoice) -> Any:
        return trial.suggest_categorical(name, choice.values)

    return search_space(model).compose(pick)

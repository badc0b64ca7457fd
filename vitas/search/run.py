"""A search from the first draw to the result."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from vitas.checks import ANY_INT, LONGEST_NAME, as_count, as_flag
from vitas.cost import Cost
from vitas.errors import SearchError, fault_of_name, shown
from vitas.measure.score import Score
from vitas.sample import MEASURES, SubnetSampler
from vitas.search.aims import checked_number
from vitas.search.archive import Archive
from vitas.search.ledger import Ledger
from vitas.search.progress import ProgressBar
from vitas.search.result import SearchResult
from vitas.search.storage import open_storage
from vitas.search.worker import Evaluate, Worker
from vitas.space import unwrap


def evolve(
    model: nn.Module,
    evaluate: Evaluate,
    *,
    flops: Any = None,
    params: Any = None,
    latency: Any = None,
    inputs: Any = None,
    limits: Mapping[str, Any] | None = None,
    objectives: Mapping[str, str] | None = None,
    population: int = 50,
    generations: int = 40,
    seed: int = 0,
    storage: Any = None,
    name: str = "vitas",
    restart: bool = False,
    max_failures: int = 20,
    stale_after: float | None = None,
    timeout: float | None = None,
    storage_timeout: float = 300.0,
    progress: bool = True,
    fixed: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
    initial: Iterable[Mapping[str, Any]] = (),
) -> SearchResult:
    """Search for the best subnets inside a budget; see `Evolution` for how.

    A search with a storage goes on where it stopped: no stored evaluation is lost or repeated, and an evaluation
    that was running when its process died is done again. Several processes, on one machine or many, that make the same call
    with the same storage and name work on one search. Ctrl-C returns what was found so far, and the result is
    `interrupted`.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile; left as it was.
        evaluate: Called with the model while the subnet to be scored is active. Returns a number where one objective or
            limited value is measured, else a mapping with all of them and whatever else is to be kept; "flops" or "params"
            in it replace the counts. If it raises or returns NaN the evaluation is recorded as failed, the search goes on.
        flops: Budget of multiply-adds: an upper bound, (low, high), or percentages of the costliest subnet as strings.
        params: Budget of parameters, likewise.
        latency: (table, budget): a `latency_table` and milliseconds, likewise, as in sample_subnet.
        inputs: For a FLOPs budget of a model that states no cost: what it is run on to be counted, see `count_flops`.
        limits: Name of a measured value -> an upper bound or (low, high), either may be None: {"latency_ms": (None, 12)}.
        objectives: Name -> "max" or "min"; None: {"accuracy": "max"}. "flops" and "params" need not be measured, nor
            "latency", in milliseconds, where a table is given. No score has the name of a choice.
        population: How many of the best subnets may be parents; also how many are drawn at random first.
        generations: population * generations evaluations are done in all, failed ones included. A search that is done
            goes on with a larger number.
        seed: Any int of at least 0. Same seed, same search, with one worker.
        storage: None (memory), the path of a journal file, a URL that Optuna takes, or an Optuna storage.
        name: Name of the search in the storage, at most 500 characters.
        restart: Whether a search of that name in the storage is removed first, with all that it found. Of several workers
            only the first one says so.
        max_failures: After so many failed evaluations in a row the search stops.
        stale_after: A worker on another machine is taken for dead, and its evaluation done again, when it has been seen at
            it for this many seconds by the clock of this one; None: `timeout` and a minute, without a timeout ten times the
            longest evaluation so far, and at least a minute. Dead processes of this machine, and searches of this thread
            that ended early, are noticed at once. 0: there is no other worker.
        timeout: Seconds that one evaluation may take; one that takes longer is recorded as failed. It is interrupted where
            that can be done, which is in the main thread, not on Windows, and as soon as it runs Python code; elsewhere it
            runs to its end, and no process can end a call that never comes back, so other workers take over from it.
        storage_timeout: How many seconds a database or server that is out of reach is tried again before the search stops;
            the result in hand is kept meanwhile and sent as soon as it answers. Opening it is tried for 10 seconds at
            most. A full disk stops the search at once.
        progress: Whether to show a progress bar: how fast, the best score, of several objectives the size of the front.
        fixed: Name of a choice or a glob -> the one value that it has, as in sample_subnet.
        only: Name or glob -> the values that it may have.
        initial: Subnets to be evaluated first, such as `[found.subnet for found in result.top(5)]`; each is evaluated once,
            and counts as an evaluation.

    Raises:
        BudgetError: a budget that cannot be read, that no subnet meets, or that an `initial` one does not.
        ChoiceError: a model without choices; as `SearchSpace.restrict`; an `initial` subnet of another space.
        FileError: a storage file that is not a journal, or one that lost lines; a disk that is full.
        SearchError: objectives, limits or numbers that cannot be used; a storage made for another space or part of it,
            window, objectives, limits, settings or weights; what `evaluate` returned is not a number or lacks an objective;
            too many failures; a storage out of reach.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> loader = [(torch.randn(8, 3, 16, 16), torch.randint(10, (8,)))]  # yours
        >>> result = vitas.evolve(
        ...     model, vitas.accuracy(loader), flops="50%", population=4, generations=2, progress=False
        ... )
        >>> small = vitas.export_subnet(model, result.best)
    """
    if not callable(evaluate):
        raise SearchError(f"evaluate: expected a function of the model, got {shown(evaluate)}")
    if fault := fault_of_name(name, LONGEST_NAME):
        raise SearchError(f"name: {fault}")
    _check_seconds(stale_after, timeout, storage_timeout)
    total = as_count(population, "population", 2, ANY_INT, SearchError) * as_count(
        generations, "generations", 1, ANY_INT, SearchError
    )
    as_count(max_failures, "max_failures", 1, ANY_INT, SearchError)
    restart = as_flag(restart, "restart", SearchError)
    archive = Archive(
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
    measured = [way for name, way in archive.aims.objectives.items() if name not in MEASURES]
    if isinstance(evaluate, Score) and any(way != evaluate.aim[1] for way in measured):
        better = "larger" if evaluate.aim[1] == "max" else "smaller"
        wanted = json.dumps(dict([evaluate.aim]))
        raise SearchError(f"objectives: the {better} the {evaluate.name} the better; pass objectives={wanted}")
    facts = _facts(archive, model if storage is not None else None)
    ledger = Ledger(open_storage(storage), name, archive.aims.objectives, facts, storage_timeout, restart)
    worker = Worker(archive, ledger, total, stale_after, timeout)
    over = worker.work(model, evaluate, max_failures, ProgressBar(archive, total, name) if progress else None)
    return archive.result(ledger.study, interrupted=not over)


def _check_seconds(stale_after: float | None, timeout: float | None, storage_timeout: float) -> None:
    if stale_after is not None and not checked_number("stale_after", stale_after) >= 0:
        raise SearchError(f"stale_after: expected seconds, at least 0, got {shown(stale_after)}")
    if timeout is not None and not checked_number("timeout", timeout) > 0:
        raise SearchError(f"timeout: expected seconds, more than 0, got {shown(timeout)}")
    if not checked_number("storage_timeout", storage_timeout) >= 0:
        raise SearchError(f"storage_timeout: expected seconds, at least 0, got {shown(storage_timeout)}")


def _facts(archive: Archive, model: nn.Module | None) -> dict[str, Any]:
    """Return what a search is made for, as JSON values; None for the model: without its weights."""
    space = archive.space.whole
    described = {"choices": space.description(), "priors": {name: list(c.p) for name, c in space.choices.items()}}
    left = {name: list(values) for name, values in archive.space.values.items() if values != space.values[name]}
    return {
        "search space": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16],
        "objectives": archive.aims.objectives,
        "limits": {name: [_finite(low), _finite(high)] for name, (low, high) in archive.aims.limits.items()},
        "budget": {name: [int(bound) for bound in window] for name, window in archive.sampler.windows.items()},
        "latency table": _digest(archive.sampler) if "latency" in archive.sampler.budgets else None,
        "values left": left or None,  # None: as in searches that were made before there was such a fact
        "population": archive.population,
        "seed": archive.seed,
        "weights": fingerprint(model) if model is not None else None,
    }


def _digest(sampler: SubnetSampler) -> str:
    """Return a hash of the latency table under which a search goes on."""
    name_of = {choice: name for name, choice in sampler.space.choices.items()}
    digest = hashlib.sha256()
    cost = sampler.budgets["latency"].cost() or Cost()
    for (path, _, bases), table in cost.terms.items():
        names = [name_of[base] for base in bases]
        order = sorted(range(len(names)), key=names.__getitem__)  # a cost keeps its choices in an order of its own
        digest.update(json.dumps([path, sorted(names), table.transpose(order).tolist()]).encode())
    return digest.hexdigest()[:16]


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the names, types, shapes and values of a model's parameters and buffers."""
    return digest_of(unwrap(model).state_dict())


def digest_of(values: Mapping[str, Any]) -> str:
    """Return a hash of named tensors; other values are passed over."""
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            if not value.is_meta:
                data = value.detach().cpu().contiguous().reshape(-1)
                digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]

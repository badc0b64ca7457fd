"""A search that runs or is done, opened to look at it."""

from __future__ import annotations

import math
import os
from typing import Any

from vitas.checks import ANY_INT, as_count
from vitas.errors import FileError, SearchError, one_of, shown
from vitas.sample import MEASURES, Window
from vitas.search.aims import Aims
from vitas.search.ledger import Claim, claims_of, facts_of, names_in
from vitas.search.result import Evaluation, SearchResult
from vitas.search.storage import OPENS_WITHIN, open_storage, persistently, sound
from vitas.search.worker import evaluation_of
from vitas.space import Subnet


def load_search(storage: Any, name: str = "vitas") -> SearchResult:
    """Return what a search in a storage has found so far, whether it is running or done; it joins and changes nothing.

    Args:
        storage: What `evolve` was given: a path, a URL or an Optuna storage.
        name: Name of the search.

    Returns:
        A SearchResult whose `space` is None, since there is no model.

    Raises:
        FileError: there is no such file, or it is not a journal.
        SearchError: no search of that name; a study that `evolve` did not make; no storage.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> search = {"population": 4, "generations": 1, "progress": False, "storage": "search.log"}
        >>> found = vitas.evolve(model, lambda model: 0.5, **search)
        >>> vitas.load_search("search.log").best == found.best
        True
    """
    if storage is None:
        raise SearchError("storage: expected the path or URL of a search, got None")
    if isinstance(storage, (str, os.PathLike)) and (file := _file_of(os.fspath(storage))) and not os.path.exists(file):
        raise FileError(f"storage: there is no file {shown(file)}")
    opened = open_storage(storage)
    with sound(name):
        facts, claims, study = persistently(lambda: _read(opened, name), OPENS_WITHIN, advice="")
        ends = (-math.inf, math.inf)  # JSON has None for them
        limits = {
            limited: tuple(end if bound is None else bound for bound, end in zip(bounds, ends, strict=True))
            for limited, bounds in facts["limits"].items()
        }
        aims = Aims(facts["objectives"], limits)
        history: dict[Subnet, Evaluation] = {}
        for claim in claims:
            if claim.state in ("COMPLETE", "FAIL"):
                subnet = Subnet(claim.params)
                history.setdefault(subnet, evaluation_of(claim, subnet, aims))
        population = as_count(facts["population"], "population", 1, ANY_INT, SearchError)
        windows = {measure: _window(measure, *bounds) for measure, bounds in facts["budget"].items()}
    return SearchResult(list(history.values()), None, aims, population, windows, study)


def _window(measure: str, *bounds: object) -> Window:
    if measure not in MEASURES:
        raise SearchError(f"budget: {one_of(list(MEASURES), measure)}")
    return Window(*(as_count(bound, "budget", 0, ANY_INT, SearchError) for bound in bounds))


def _file_of(storage: str) -> str:
    """Return the file that a path or URL names, which SQLite would make; "" for databases of servers and in memory."""
    scheme, _, place = storage.rpartition("://")
    if not scheme:
        return place
    file = place.removeprefix("/").partition("?")[0]
    return file if scheme.partition("+")[0] == "sqlite" and file != ":memory:" else ""


def _read(opened: Any, name: str) -> tuple[dict[str, Any], list[Claim], Any]:
    """Return the facts of a search, its claims and its study.

    Raises:
        SearchError: no search of that name.
    """
    import optuna

    names = names_in(opened)
    if name not in names:
        there = f"no search of that name: {one_of(names, name)}" if names else f"no search in it, looked for {shown(name)}"
        raise SearchError(f"storage: {there}")
    study = optuna.load_study(study_name=name, storage=opened, sampler=optuna.samplers.RandomSampler())
    return facts_of(opened, name), claims_of(opened, name), study

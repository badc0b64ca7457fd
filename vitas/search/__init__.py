"""The best subnets under a budget, by evolution; Optuna keeps what was evaluated.

    run.py        evolve: a search from the first draw to the result
    evolution.py  Evolution: asks for subnets and is told their scores
    archive.py    what a search knows, and what it evaluates next
    genetic.py    crossover, mutation, repair, ranks: pure functions of encoded subnets
    aims.py       objectives and limits, read out of scores
    result.py     what was found
    worker.py     one process of a search: claims, evaluates, stores
    ledger.py     claims on subnets in a study
    trials.py     which trials are new, which network each is of, a copy that Optuna can draw
    storage.py    memory, journal file or database; one that is out of reach is tried again
    journal.py    a journal file on a disk that may fail
    timeout.py    a limit on the time of one evaluation
    progress.py   the progress bar
    load.py       load_search: a search opened to look at it
    suggest.py    subnets for an Optuna study of one's own

Imports sample, plot and what stands before them; never train.
"""

from vitas.search.evolution import Evolution
from vitas.search.load import load_search
from vitas.search.result import SearchResult
from vitas.search.run import evolve
from vitas.search.suggest import suggest_subnet

__all__ = [
    "Evolution",
    "SearchResult",
    "evolve",
    "load_search",
    "suggest_subnet",
]

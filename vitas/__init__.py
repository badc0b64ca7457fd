"""Searchable Vision Transformer layers: train one superformer in your own loop, search it, export plain torch."""

import importlib
import sys
from types import ModuleType
from typing import Any, NoReturn

from vitas import nn, plain, plot, sharing, superformer, train
from vitas.choice import Choice, Dim
from vitas.compressing import Compressed, compress
from vitas.cost import CostModel, FlopCount, cost_model, count_flops, count_params
from vitas.errors import BudgetError, ChoiceError, VitasError
from vitas.export import (
    build_subnet,
    export_subnet,
    load_subnet,
    load_superformer,
    push_to_hub,
    register,
    save_subnet,
    save_superformer,
)
from vitas.measure import (
    Latency,
    LatencyTable,
    accuracy,
    cross_entropy,
    flop_analysis,
    latency_table,
    measure_latency,
    zero_cost,
)
from vitas.sample import SubnetSampler, activate_subnet, active_subnet, count_subnets, sample_subnet, use_subnet
from vitas.search import Evolution, SearchResult, evolve, load_search, suggest_subnet
from vitas.space import SearchSpace, Subnet, narrow, search_space, widen
from vitas.superformer import create_superformer, list_published_subnets, list_superformers, published_subnet
from vitas.wrapping import check_records, export_report, wrap

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Choice",
    "ChoiceError",
    "Compressed",
    "CostModel",
    "Dim",
    "Evolution",
    "FlopCount",
    "Latency",
    "LatencyTable",
    "SearchResult",
    "SearchSpace",
    "Subnet",
    "SubnetSampler",
    "VitasError",
    "accuracy",
    "activate_subnet",
    "active_subnet",
    "build_subnet",
    "check_records",
    "compress",
    "cost_model",
    "count_flops",
    "count_params",
    "count_subnets",
    "create_superformer",
    "cross_entropy",
    "evolve",
    "export_report",
    "export_subnet",
    "flop_analysis",
    "latency_table",
    "list_published_subnets",
    "list_superformers",
    "load_search",
    "load_subnet",
    "load_superformer",
    "measure_latency",
    "narrow",
    "nn",
    "plain",
    "plot",
    "published_subnet",
    "push_to_hub",
    "register",
    "sample_subnet",
    "save_subnet",
    "save_superformer",
    "search_space",
    "sharing",
    "suggest_subnet",
    "superformer",
    "train",
    "use_subnet",
    "widen",
    "wrap",
    "zero_cost",
]


_MEANT = {
    "vitas.choice": "vitas.Choice or vitas.Dim",
    "vitas.compressing": "vitas.compress",
    "vitas.cost": "vitas.count_flops or vitas.cost_model",
    "vitas.export": "vitas.export_subnet",
    "vitas.measure": "vitas.accuracy, vitas.measure_latency or vitas.latency_table",
    "vitas.plot": "a function of it, such as vitas.plot.subnet_card",
    "vitas.sample": "vitas.sample_subnet or vitas.SubnetSampler",
    "vitas.search": "vitas.evolve",
    "vitas.sharing": "vitas.sharing.coverage, or pass sharing= where a model is made",
    "vitas.space": "vitas.search_space",
    "vitas.superformer": "vitas.create_superformer",
    "vitas.train": "a function of it in your own loop, such as vitas.train.sandwich",
    "vitas.wrapping": "vitas.wrap",
}


class _Folder(ModuleType):
    """A folder of the library: called by mistake, as in vitas.search(model), it names what was meant."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickles of functions (cloudpickle) hold a folder by its name."""
        return importlib.import_module, (self.__name__,)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise VitasError(f"{self.__name__} is a folder of the library; call {_MEANT[self.__name__]}")


for _name in _MEANT:
    sys.modules[_name].__class__ = _Folder


def __dir__() -> list[str]:
    """Return the public names, which is what a prompt completes; the other folders hold nothing that is called there."""
    return [*__all__, "cost", "errors", "__all__", "__doc__", "__file__", "__name__", "__path__", "__version__"]

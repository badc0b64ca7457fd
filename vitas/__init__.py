"""Searchable Vision Transformer layers: train one superformer in your own loop, search it, export plain torch."""

from vitas import nn, plain, sharing, superformer
from vitas.choice import Choice, Dim
from vitas.cost import CostModel, FlopCount, cost_model, count_flops, count_params
from vitas.errors import BudgetError, ChoiceError, VitasError
from vitas.export import build_subnet, export_subnet
from vitas.sample import SubnetSampler, activate_subnet, active_subnet, count_subnets, sample_subnet, use_subnet
from vitas.saving import load_subnet, load_superformer, save_subnet, save_superformer
from vitas.search import Evolution, SearchResult, evolve, suggest_subnet
from vitas.space import SearchSpace, search_space
from vitas.subnet import Subnet
from vitas.superformer import create_superformer, list_published_subnets, list_superformers, published_subnet

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Choice",
    "ChoiceError",
    "CostModel",
    "Dim",
    "Evolution",
    "FlopCount",
    "SearchResult",
    "SearchSpace",
    "Subnet",
    "SubnetSampler",
    "VitasError",
    "activate_subnet",
    "active_subnet",
    "build_subnet",
    "cost_model",
    "count_flops",
    "count_params",
    "count_subnets",
    "create_superformer",
    "evolve",
    "export_subnet",
    "list_published_subnets",
    "list_superformers",
    "load_subnet",
    "load_superformer",
    "nn",
    "plain",
    "published_subnet",
    "sample_subnet",
    "save_subnet",
    "save_superformer",
    "search_space",
    "sharing",
    "suggest_subnet",
    "superformer",
    "use_subnet",
]

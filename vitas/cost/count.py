"""The multiply-adds and parameters of one subnet: added up from what its parts state, or counted by running it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitas.choice import Choice
from vitas.cost.expression import ActiveIndices
from vitas.cost.stated import stated_cost, stated_params
from vitas.errors import ChoiceError, shown
from vitas.space import Number, State, arguments_of, eval_mode, holders, search_space, unwrap
from vitas.tables import html_table, text_table


@contextmanager
def unfused() -> Iterator[None]:
    """Have attention run as the matrix products that a counter sees, for the length of a with block."""
    from torch.nn.attention import SDPBackend, sdpa_kernel  # slow to import, and seldom used

    fast = torch.backends.mha.get_fastpath_enabled()  # of nn.MultiheadAttention, where no gradient is wanted
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _traced(model: nn.Module, subnet: Mapping[str, Number] | None, inputs: Any, convention: str) -> FlopCount:
    """Count by running the active path."""
    if convention != "exact":
        raise ChoiceError(f"convention: a count by running is exact, got {shown(convention)}")
    arguments = arguments_of(inputs)
    state = State.of_module(model)
    try:
        if subnet is not None:
            search_space(model).activate(subnet)
        with eval_mode(model):
            own = counted(model, arguments)
    finally:
        state.put_back()
    by_operator: dict[str, int] = {}
    for operators in own.values():
        for word, macs in operators.items():
            by_operator[word] = by_operator.get(word, 0) + macs
    by_module = {path: sum(operators.values()) for path, operators in own.items()}
    return FlopCount(sum(by_operator.values()), by_operator, by_module, NOT_COUNTED)


def counted(model: nn.Module, arguments: tuple[Any, ...]) -> dict[str, dict[str, int]]:
    """Return the multiply-adds of a model run on `arguments`, by torch's counter: by module path and operator.

    Of each module stands what it computes itself, without its parts, so that all of it adds up; modules that compute
    nothing are left out.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and seldom used

    own: dict[str, dict[str, int]] = {}
    running: list[tuple[Counter[str], Counter[str]]] = []  # of each module that runs: counted before it, and in its parts
    counter = FlopCounterMode(display=False, custom_mapping=_of_vectors())

    def so_far() -> Counter[str]:
        total: Counter[str] = Counter()
        for operator, flops in counter.get_flop_counts().get("Global", {}).items():
            word = str(operator).split(".")[-1]
            total[_OPERATORS.get(word, word)] += flops // 2
        return total

    def enter(*_: Any) -> None:
        running.append((so_far(), Counter()))

    def leave(path: str) -> None:
        before, parts = running.pop()
        whole = so_far() - before
        for word, macs in (whole - parts).items():
            operators = own.setdefault(path, {})
            operators[word] = operators.get(word, 0) + macs
        if running:
            running[-1][1].update(whole)

    hooks = []
    for path, part in model.named_modules():
        hooks.append(part.register_forward_pre_hook(enter))
        hooks.append(part.register_forward_hook(lambda *_, path=path: leave(path)))
    try:
        # With gradients on: the counter fails on views of parameters that have no gradient function (torch 2.14).
        with torch.enable_grad(), unfused(), counter:
            model(*arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return own


def _of_vectors() -> dict[Any, Any]:
    """Return how many FLOPs products with a vector take, which torch's counter does not know."""
    aten = torch.ops.aten
    return {
        aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
        aten.addmv: lambda bias, matrix, vector, **_: 2 * math.prod(matrix),
        aten.dot: lambda one, other, **_: 2 * math.prod(one),
    }


_OPERATORS = {"mm": "linear", "addmm": "linear", "mv": "linear", "addmv": "linear", "convolution": "conv"}
_OPERATORS |= {"bmm": "matmul", "baddbmm": "matmul", "dot": "matmul"}


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one subnet for one image.

    Attributes:
        total: Sum of all parts.
        by_operator: Parts by fvcore's names: "linear", "conv", "matmul".
        by_module: Parts by module path; only leaves stand here.
        not_counted: What costs time but is left out.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> count = vitas.count_flops(model)
        >>> count.total, count.by_operator["conv"], count.by_module["head"]
        (7927872, 73728, 960)
    """

    total: int
    by_operator: dict[str, int]
    by_module: dict[str, int]
    not_counted: tuple[str, ...]

    def __int__(self) -> int:
        return self.total

    def _rows(self) -> list[tuple[str, str, str]]:
        whole = self.total or 1
        rows = [(name, f"{amount:,}", f"{amount / whole:.1%}") for name, amount in amounts_by_block(self).items()]
        return [*rows, ("total", f"{self.total:,}", "multiply-adds")]

    def __str__(self) -> str:
        return f"{text_table(self._rows(), '<>')}\nnot counted: {', '.join(self.not_counted)}"

    def _repr_html_(self) -> str:
        return html_table(self._rows())


def amounts_by_block(count: FlopCount) -> dict[str, int]:
    """Return the parts as tables show them: one for each block, one for each other module."""
    amounts: dict[str, int] = {}
    for path, amount in count.by_module.items():
        numbered = re.match(r"(.*?\bblocks(\.\d+)+)\.", path)
        name = (numbered[1] if numbered else path) or "model"
        amounts[name] = amounts.get(name, 0) + amount
    return amounts


NOT_COUNTED = ("bias", "layer norm", "softmax", "activation", "scaling", "residual add", "positions", "pooling")


def _indices(model: nn.Module, subnet: Mapping[str, Number] | None) -> Mapping[Choice[Any], int]:
    """Return the number of every choice's value in `subnet`, or in the active one."""
    nothing = isinstance(subnet, Mapping) and not subnet and not any(holders(model))  # to choose
    if subnet is None or nothing:
        return ActiveIndices()
    return search_space(model).indices(subnet)


def count_flops(
    model: nn.Module,
    subnet: Mapping[str, Number] | None = None,
    *,
    inputs: Any = None,
    convention: str = "exact",
) -> FlopCount:
    """Return the multiply-adds of a subnet for one image, whichever attention kernel runs.

    Args:
        model: A model that states its cost, such as a superformer; possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.
        inputs: A tensor or a tuple of arguments for a model that states no cost: the active path is run on them with
            unfused attention and counted by torch's FlopCounterMode; the count is for all of `inputs`.
        convention: "exact": all linear layers, convolutions and matrix products that run. "vitas" (DeiT only): as the
            method's authors count, see DeiTSuperformer.cost.

    Raises:
        ChoiceError: not a subnet of the model's space, or another convention.
        VitasError: a model that states no cost; inputs without a tensor among them.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> subnet = vitas.search_space(model).smallest()
        >>> vitas.count_flops(model, subnet).total
        761216
    """
    model = unwrap(model)
    if inputs is not None:
        return _traced(model, subnet, inputs, convention)
    cost = stated_cost(model, convention)
    by_operator: dict[str, int] = {}
    by_module: dict[str, int] = {}
    for path, operator, amount in cost.parts(_indices(model, subnet)):
        if amount:
            by_operator[operator] = by_operator.get(operator, 0) + amount
            by_module[path] = by_module.get(path, 0) + amount
    return FlopCount(sum(by_module.values()), by_operator, by_module, NOT_COUNTED)


def count_params(model: nn.Module, subnet: Mapping[str, Number] | None = None) -> int:
    """Return the number of parameters of a subnet: those of its export.

    Args:
        model: A model with or without elastic layers, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.

    Raises:
        ChoiceError: not a subnet of the model's space.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.count_params(model, vitas.search_space(model).smallest())
        10426
    """
    return stated_params(model).at(_indices(unwrap(model), subnet))

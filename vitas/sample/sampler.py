"""Subnets as a function of seed and step, inside a budget or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitas.checks import ANY_INT, as_count
from vitas.choice import SIDES, Depth
from vitas.cost import Cost, count_flops, stated_params
from vitas.cost.model import TableSum
from vitas.cost.watch import Stated, Watch
from vitas.errors import BudgetError, ChoiceError, VitasError, shown
from vitas.sample.budget import MEASURES, Budget, Window, budgets_of, flops_of, window_of
from vitas.sample.chain import Chain, TooManyNodes
from vitas.sample.conditional import BINS, Conditional
from vitas.sample.lattice import extremes
from vitas.sample.nearest import explain_empty, is_empty
from vitas.space import SearchSpace, StatesCost, Subnet, codes_of, held, needs_tokens, search_space, unwrap

_BLOCK = 64  # subnets that a sampler draws at once


def draw_from_prior(space: SearchSpace, generator: torch.Generator | None, activate: bool) -> Subnet:
    """Draw a subnet from the prior; under bilateral sharing it is activated with a random side."""
    subnet = space.sample(generator)
    side = None
    if space.bilateral:
        device = generator.device if generator is not None else "cpu"
        side = SIDES[int(torch.randint(2, (), generator=generator, device=device))]
    if activate:
        space.activate(subnet, side=side)
    return subnet


def decoded(space: SearchSpace, code: NDArray[np.int64], rng: np.random.Generator, activate: bool) -> Subnet:
    """Return the subnet of a code, (choices,); under bilateral sharing it is activated with a random side."""
    subnet = space.decode(code)
    if activate:
        space.activate(subnet, side=SIDES[int(rng.integers(2))] if space.bilateral else None)
    return subnet


class SubnetSampler:
    """Draws subnets as a pure function of (seed, step): the same on all ranks and after a resume.

    A budget is set up once, here; draws inside it are then exact and quick. A model that costs something else later, after
    `set_input_size` or with another head, needs a new sampler, and the next draw says so.

    Source: ours; see vitas.sample.conditional.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: As in sample_subnet.
        params: As in sample_subnet.
        latency: As in sample_subnet.
        seed: Any int of at least 0.
        inputs: As in sample_subnet.
        fixed: As in sample_subnet.
        only: As in sample_subnet.

    Attributes:
        model: The model, without DDP or torch.compile.
        space: The search space, restricted to what `fixed` and `only` leave.
        budgets: Measure -> what was asked, and what subnets cost.
        windows: Measure -> (low, high), both included, of the budgets given; of a latency in nanoseconds.

    Raises:
        ChoiceError: a model without choices, a seed that is not such an int, or as `SearchSpace.restrict`.
        BudgetError: a malformed budget, or an empty window.
        VitasError: a FLOPs budget for a model that states no cost, without `inputs`; a latency table of another model.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> sampler = vitas.SubnetSampler(model, flops=("40%", "60%"), seed=0)
        >>> sampler.sample(7) == sampler.sample(7)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        flops: Any = None,
        params: Any = None,
        latency: Any = None,
        seed: int = 0,
        inputs: Any = None,
        fixed: Mapping[str, Any] | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> None:
        self.seed = as_count(seed, "seed", 0, ANY_INT)
        self.space = search_space(model).restrict(fixed, only)
        self.model = unwrap(model)
        self._inputs = None if isinstance(self.model, StatesCost) and not needs_tokens(self.model) else inputs
        self.budgets = budgets_of(self.model, self.space, flops=flops, params=params, latency=latency, inputs=self._inputs)
        budgets, costs = self.budgets, {name: budget.cost() for name, budget in self.budgets.items()}
        known = {name: cost for name, cost in costs.items() if cost is not None}
        self._traced = len(known) < len(costs)
        self._conditional: Conditional | None = None
        self._watch: Watch | None = None
        self._tables: dict[str, TableSum] = {}
        self._block: tuple[int, NDArray[np.int64]] = (-1, np.empty((0, 0), dtype=np.int64))
        self.windows: dict[str, Window] = {}
        if not budgets:
            return
        self._tables = {name: TableSum(self.space.whole, cost) for name, cost in known.items()}
        self._watch = _watch_of(self.model, budgets, known)
        whole = None if self._traced else _chain(self.space.whole, list(known.values()))
        if whole is not None:
            greatest = dict(zip(budgets, extremes(whole)[1].tolist(), strict=True))
        else:
            largest = self.space.whole.encode(self.space.whole.largest())[None]
            greatest = {name: int(self._measure(name, largest)[0]) for name in budgets}
        self.windows = {name: window_of(budget.typed, name, greatest[name]) for name, budget in budgets.items()}
        if whole is not None:
            self._conditional = conditional_of(whole.restricted(self.space), self.windows, _has_whole_rows(self.model))

    def sample(self, step: int, activate: bool = True) -> Subnet:
        """Return the subnet of a step and make it the active one; in bilateral sharing with the step's side.

        Args:
            step: Number of the step, an int of at least 0.
            activate: Whether to activate the subnet.

        Raises:
            ChoiceError: a step that is not such an int.
            BudgetError: no subnet inside the budget was found in a bounded number of proposals.
            VitasError: the model has changed, and its costs with it.
        """
        step = as_count(step, "step", 0, ANY_INT)
        if not self.windows:
            words = np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)
            return draw_from_prior(self.space, torch.Generator().manual_seed(int(words[0]) >> 1), activate)
        self._check()
        number, position = divmod(step, _BLOCK)
        if self._block[0] != number:
            self._block = (number, self.draw(_BLOCK, np.random.default_rng([self.seed, number])))
        return decoded(self.space, self._block[1][position], np.random.default_rng([self.seed, step, 1]), activate)

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return `n` subnets inside the budget, encoded as by `space.encode`, (n, choices); nothing is activated.

        Raises:
            ChoiceError: n is not an int of at least 0, or rng not a numpy Generator.
            BudgetError: not found in a bounded number of proposals.
            VitasError: the model has changed, and its costs with it.
        """
        self._check()
        n = as_count(n, "n", 0, ANY_INT)
        if not isinstance(rng, np.random.Generator):
            raise ChoiceError(f"rng: expected a numpy.random.Generator, got {shown(rng)}")
        found: list[NDArray[np.int64]] = [np.empty((0, len(self.space)), dtype=np.int64)]
        arrived, proposed, batch = 0, 0, n
        if self._traced:
            return self._draw_by_running(n, rng)
        most = 10**6 + 1000 * n
        while arrived < n:
            if proposed >= most:
                raise BudgetError(self._not_found(proposed, arrived))
            batch = min(max(batch, 16), 8192, most - proposed)
            codes = self._propose(batch, rng)
            proposed += batch
            found.append(codes)
            arrived += len(codes)
            batch = int(1.2 * (n - arrived) * proposed / max(arrived, 1)) + 1
        return np.concatenate(found)[:n]

    def _check(self) -> None:
        if self._watch is not None:
            self._watch.check()

    def _propose(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        if self._conditional is not None:
            codes, _ = self._conditional.propose(n, rng)
            return self.space.encoding.completed(codes, self._conditional.chain.free, rng)
        codes = self._from_prior(n, rng)
        return codes[self.contains(codes)]

    def _not_found(self, proposed: int, arrived: int) -> str:
        asked = self.wanted()
        share = f"; at most {self._conditional.bound:.1e} of the prior lies there" if self._conditional else ""
        return f"{asked}: {arrived} subnets found in {proposed:,} proposals{share}; widen the budget"

    def wanted(self) -> str:
        """Return the windows as messages show them."""
        return " and ".join(f"{name} {MEASURES[name].span(window)}" for name, window in self.windows.items())

    def contains(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which encoded subnets, (n, choices), are inside the budget and have values that are left, (n,).

        Raises:
            ChoiceError: not encoded subnets of the space.
            VitasError: the model has changed, and its costs with it.
        """
        self._check()
        codes = codes_of(codes, len(self.space), "codes")
        inside = self.space.encoding.holds(codes)
        for name, (low, high) in self.windows.items():
            costs = self._measure(name, codes)
            inside &= (costs >= low) & (costs <= high)
        return inside

    def costs(self, codes: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return what encoded subnets, (n, choices), cost, (n,) each.

        That is "flops" where the model states it, "params", and "latency" in nanoseconds where a table was given.

        Raises:
            ChoiceError: not encoded subnets of the space.
            VitasError: the model has changed, and its costs with it.
        """
        self._check()
        names = ["flops", "params"] if self._traced or self._stated is not None else ["params"]
        names += [name for name in self._tables if name not in names]
        return {name: self._measure(name, codes) for name in names}

    @cached_property
    def _stated(self) -> Cost | None:
        try:
            return flops_of(self.model, self._inputs)
        except VitasError:  # a module that states none, or a layer, whose cost depends on its tokens
            return None

    def _measure(self, name: str, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        if name != "flops" or not self._traced:
            if name not in self._tables:
                cost = self._stated or Cost() if name == "flops" else stated_params(self.model)
                self._tables[name] = TableSum(self.space.whole, cost)
            return self._tables[name].of(codes)  # type: ignore[no-any-return]
        different, places = np.unique(codes, axis=0, return_inverse=True)
        subnets = [self.space.whole.decode(code) for code in different]
        counts = [int(count_flops(self.model, subnet, inputs=self._inputs)) for subnet in subnets]
        return np.array(counts, np.int64)[places.reshape(-1)]

    def _draw_by_running(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return `n` subnets inside the budget, each of which was run; among them some more than once where few were seen.

        Half of the proposals are from the prior. Of what they missed, the nearest below and above the window are crossed.

        Raises:
            BudgetError: none was seen, with the range of what was.
        """
        ends = [self.space.encode(subnet) for subnet in (self.space.smallest(), self.space.largest())]
        seen: dict[bytes, tuple[NDArray[np.int64], bool, dict[str, int]]] = {}
        inside: list[NDArray[np.int64]] = []

        def run(codes: NDArray[np.int64]) -> None:
            new = [code for code in codes if code.tobytes() not in seen]
            costs = {name: self._measure(name, np.array(new)) for name in self.windows} if new else {}
            for k, code in enumerate(new):
                own = {name: int(amounts[k]) for name, amounts in costs.items()}
                fits = all(low <= own[name] <= high for name, (low, high) in self.windows.items())
                seen[code.tobytes()] = (code, fits, own)
            inside.extend(code for code in codes if seen[code.tobytes()][1])

        for _ in range(_PROPOSALS_BY_RUNNING // (2 * _RUNS)):
            run(self._from_prior(_RUNS, rng))
            if len(inside) >= n:
                return np.array(inside[:n])
        if not inside:
            run(np.array(ends))
        for _ in range(_PROPOSALS_BY_RUNNING // (2 * _RUNS)):
            if inside:
                break
            run(self._crossed(list(seen.values()), rng))
        if not inside:
            raise BudgetError(self._not_seen([own for _, _, own in seen.values()]))
        return np.array(inside)[np.arange(n) % len(inside)] if n else np.empty((0, len(self.space)), dtype=np.int64)

    def _from_prior(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        return self.space.encoding.completed(np.zeros((n, len(self.space)), dtype=np.int64), range(len(self.space)), rng)

    def _crossed(self, seen: Sequence[tuple[Any, bool, dict[str, int]]], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return children of those that are the nearest below and above the windows: each gene of either, or drawn anew."""
        below = sorted(seen, key=lambda one: self._distance(one[2], above=False))[:4]
        above = sorted(seen, key=lambda one: self._distance(one[2], above=True))[:4]
        children = self._from_prior(_RUNS, rng)
        for child in children:
            mother, father = (near[int(rng.integers(len(near)))][0] for near in (below, above))
            genes = np.where(rng.random(len(child)) < 0.5, mother, father)
            keep = (genes >= 0) & (rng.random(len(child)) > 1 / len(child))
            child[keep] = genes[keep]
        return np.array([self.space.encode(self.space.decode(child)) for child in children])

    def _distance(self, costs: Mapping[str, int], above: bool) -> float:
        """Return how far costs lie outside the windows, relative to these; those on the other side are farthest."""
        far = 0.0
        for name, (low, high) in self.windows.items():
            gap = costs[name] - high if costs[name] > high else costs[name] - low if costs[name] < low else 0
            far += abs(gap) / max(high, 1) if not gap or (gap > 0) == above else inf
        return far

    def _not_seen(self, costs: Sequence[Mapping[str, int]]) -> str:
        asked, said = self.wanted(), {name: MEASURES[name].said for name in self.windows}
        ends = {name: (min(own[name] for own in costs), max(own[name] for own in costs)) for name in self.windows}
        reach = " and ".join(f"{name} from {said[name](low)} to {said[name](high)}" for name, (low, high) in ends.items())
        near = min(costs, key=lambda own: min(self._distance(own, False), self._distance(own, True)))
        nearest = " and ".join(f"{name} {said[name](amount)}" for name, amount in near.items())
        return f"{asked}: none of {len(costs):,} networks that were run; they reach {reach}, the nearest {nearest}"


_PROPOSALS_BY_RUNNING = 512
_RUNS = 16


def _watch_of(model: nn.Module, budgets: Mapping[str, Budget], costs: Mapping[str, Cost]) -> Watch | None:
    """Return what notices that costs are old; None where every draw is counted by running the model as it is."""
    if not costs:
        return None
    return Watch(model, "SubnetSampler", [Stated(budgets[name].cost, cost) for name, cost in costs.items()])


def _chain(space: SearchSpace, costs: Sequence[Cost]) -> Chain | None:
    """Return a space as a chain of decisions; None where it is none."""
    try:
        return Chain(space, costs)
    except TooManyNodes:
        return None


def _has_whole_rows(model: nn.Module) -> bool:
    """Say whether there are rows of blocks all of which always run, where some could leave."""
    choices = (choice for module in model.modules() for _, choice in held(module))
    return any(isinstance(choice, Depth) and choice.fixed and choice.largest > 1 for choice in choices)


def conditional_of(chain: Chain, windows: Mapping[str, Window], whole_rows: bool = False) -> Conditional:
    """Return the prior inside the windows, with bins fine enough that a fair share of proposals arrives.

    Raises:
        BudgetError: the windows are empty.
    """
    conditional = Conditional(chain, list(windows.values()))
    for finer in (4, 16):
        if not conditional.bound:
            raise BudgetError(explain_empty(chain, windows, whole_rows))
        arrived = len(conditional.propose(512, np.random.default_rng(0))[0])
        if arrived >= 16 or not windows:
            return conditional
        conditional = Conditional(chain, list(windows.values()), bins=finer * BINS[len(windows)], memory=40_000_000)
    if not conditional.bound or is_empty(chain, list(windows.values())):
        raise BudgetError(explain_empty(chain, windows, whole_rows))
    return conditional

"""Draw subnets and activate them, from the prior or from the prior conditioned on a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitas.budget import Window, window_of
from vitas.choice import SIDES
from vitas.conditional import BINS, Conditional, extremes
from vitas.cost import Cost, CostModel, count_flops, params_of, stated_cost
from vitas.counting import SubnetCount, count_inside, outermost
from vitas.elimination import Chain, TooManyRows
from vitas.errors import BudgetError, ChoiceError, VitasError, is_one_of, one_of, shown
from vitas.space import SearchSpace, codes_of, search_space
from vitas.subnet import Number, Subnet
from vitas.walk import unwrap

_BLOCK = 64  # subnets that a sampler draws at once


def sample_subnet(
    model: nn.Module,
    *,
    flops: Any = None,
    params: Any = None,
    generator: torch.Generator | None = None,
    policy: str = "random",
    activate: bool = True,
    inputs: Any = None,
) -> Subnet:
    """Draw a subnet and make it the active one; in bilateral sharing a random side of it.

    With a budget the draw is exact: from the prior conditioned on the window. Every call sets the budget up anew, since the
    model may have changed meanwhile: 0.3 s on `vitas_deit`. For many draws make a SubnetSampler, which does it once.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: Budget in multiply-adds for one image: an upper bound, (low, high) of which either may be None, or
            percentages of the costliest subnet such as "60%" or ("40%", "60%"). Bounds are included.
        params: Budget in parameters, spelled likewise; with both, both hold.
        generator: Source of randomness; None: torch's default one.
        policy: "random", "largest" or "smallest"; the latter two take no budget.
        activate: Whether to activate the subnet.
        inputs: For a model that states no cost: tensors on which a subnet is run and counted, see count_flops. Percentages
            are then of the subnet with the largest values, and a draw is a bounded search.

    Raises:
        ChoiceError: a model without choices, or another policy.
        BudgetError: a malformed budget; an empty window, with the nearest costs that can be reached.
        VitasError: a FLOPs budget for a model that states no cost, without `inputs`.

    Example:
        >>> sampler = vitas.SubnetSampler(model, flops="50%")  # in a training loop: once, before it
        >>> sampler.sample(step)  # and this in place of sample_subnet(model, flops="50%")
    """
    if not is_one_of(["random", "largest", "smallest"], policy):
        raise ChoiceError(f"policy: {one_of(['random', 'largest', 'smallest'], policy)}")
    if policy != "random" and (flops is not None or params is not None):
        raise BudgetError(f"policy {shown(policy)} takes no budget; draw at random, or leave the budget out")
    if flops is not None or params is not None:
        sampler = SubnetSampler(model, flops=flops, params=params, inputs=inputs)
        rng = np.random.default_rng(_word(generator))
        return sampler._activated(sampler.draw(1, rng)[0], rng, activate)
    space = search_space(model)
    if policy == "random":
        return _draw(space, generator, activate)
    subnet = space.largest() if policy == "largest" else space.smallest()
    if activate:
        space.activate(subnet)
    return subnet


def _word(generator: torch.Generator | None) -> int:
    """Draw a seed from a generator."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ChoiceError(f"generator: expected a torch.Generator or None, got {shown(generator)}")
    device = generator.device if generator is not None else "cpu"
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def _draw(space: SearchSpace, generator: torch.Generator | None, activate: bool) -> Subnet:
    subnet = space.sample(generator)
    side = None
    if space.bilateral:
        device = generator.device if generator is not None else "cpu"
        side = SIDES[int(torch.randint(2, (), generator=generator, device=device))]
    if activate:
        space.activate(subnet, side=side)
    return subnet


class SubnetSampler:
    """Draws subnets as a pure function of (seed, step): the same on all ranks and after a resume.

    A budget is set up once, here; draws inside it are then exact and quick.

    Source: ours; see vitas.conditional.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        flops: As in sample_subnet.
        params: As in sample_subnet.
        seed: Any int of at least 0.
        inputs: As in sample_subnet.

    Attributes:
        model: The model, without DDP or torch.compile.
        space: The search space.
        windows: Measure -> (low, high), both included, of the budgets given.

    Raises:
        ChoiceError: a model without choices, or a seed that is not such an int.
        BudgetError: a malformed budget, or an empty window.
        VitasError: a FLOPs budget for a model that states no cost, without `inputs`.
    """

    def __init__(
        self, model: nn.Module, *, flops: Any = None, params: Any = None, seed: int = 0, inputs: Any = None
    ) -> None:
        self.seed = _counted(seed, "seed")
        self.space = search_space(model)
        self.model = unwrap(model)
        budgets = {name: budget for name, budget in (("flops", flops), ("params", params)) if budget is not None}
        self._traced = inputs if "flops" in budgets and getattr(self.model, "cost", None) is None else None
        self._conditional: Conditional | None = None
        self._block: tuple[int, NDArray[np.int64]] = (-1, np.empty((0, 0), dtype=np.int64))
        self.windows: dict[str, Window] = {}
        if not budgets:
            return
        chain = self._chain(budgets)
        if chain is not None:
            greatest = dict(zip(budgets, extremes(chain)[1].tolist(), strict=True))
        else:
            largest = self.space.encode(self.space.largest())[None]
            greatest = {name: int(self._measure(name, largest)[0]) for name in budgets}
        self.windows = {name: window_of(budget, name, greatest[name]) for name, budget in budgets.items()}
        if chain is not None:
            self._conditional = conditional_of(chain, self.windows)

    def _chain(self, measures: Iterable[str]) -> Chain | None:
        """Return the space as a chain of decisions; None where it is none, or a cost is only known by running the model."""
        if self._traced is not None:
            return None
        costs = [stated_cost(self.model) if name == "flops" else params_of(self.model) for name in measures]
        try:
            return Chain(self.space, costs)
        except TooManyRows:
            return None

    def sample(self, step: int, activate: bool = True) -> Subnet:
        """Return the subnet of a step and make it the active one; in bilateral sharing with the step's side.

        Args:
            step: Number of the step, an int of at least 0.
            activate: Whether to activate the subnet.

        Raises:
            ChoiceError: a step that is not such an int.
            BudgetError: no subnet inside the budget was found in a bounded number of proposals.
        """
        step = _counted(step, "step")
        if not self.windows:
            words = np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)
            return _draw(self.space, torch.Generator().manual_seed(int(words[0]) >> 1), activate)
        number, place = divmod(step, _BLOCK)
        if self._block[0] != number:
            self._block = (number, self.draw(_BLOCK, np.random.default_rng([self.seed, number])))
        return self._activated(self._block[1][place], np.random.default_rng([self.seed, step, 1]), activate)

    def _activated(self, codes: NDArray[np.int64], rng: np.random.Generator, activate: bool) -> Subnet:
        subnet = self.space.decode(codes)
        if activate:
            side = SIDES[int(rng.integers(2))] if self.space.bilateral else None
            self.space.activate(subnet, side=side)
        return subnet

    def draw(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return `n` subnets inside the budget, encoded as by `space.encode`, (n, choices); nothing is activated.

        Raises:
            ChoiceError: n is not an int of at least 0, or rng no numpy Generator.
            BudgetError: not found in a bounded number of proposals.
        """
        n = _counted(n, "n")
        if not isinstance(rng, np.random.Generator):
            raise ChoiceError(f"rng: expected a numpy.random.Generator, got {shown(rng)}")
        found: list[NDArray[np.int64]] = [np.empty((0, len(self.space)), dtype=np.int64)]
        arrived, proposed, batch = 0, 0, n
        most = _PROPOSALS_BY_RUNNING if self._traced is not None else 10**6 + 1000 * n
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

    def _propose(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        if self._conditional is not None:
            codes, _ = self._conditional.propose(n, rng)
            return self.space.completed(codes, self._conditional.chain.free, rng)
        codes = self.space.completed(np.zeros((n, len(self.space)), dtype=np.int64), range(len(self.space)), rng)
        return codes[self.contains(codes)]

    def _not_found(self, proposed: int, arrived: int) -> str:
        asked = " and ".join(f"{name} from {window}" for name, window in self.windows.items())
        share = f"; at most {self._conditional.bound:.1e} of the prior lies there" if self._conditional else ""
        return f"{asked}: {arrived} subnets found in {proposed:,} proposals{share}; widen the budget"

    def contains(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which encoded subnets, (n, choices), are inside the budget, (n,).

        Raises:
            ChoiceError: not encoded subnets of the space.
        """
        codes = codes_of(codes, len(self.space), "codes")
        inside = np.ones(len(codes), dtype=bool)
        for name, (low, high) in self.windows.items():
            costs = self._measure(name, codes)
            inside &= (costs >= low) & (costs <= high)
        return inside

    def costs(self, codes: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Return what encoded subnets, (n, choices), cost: "flops" where the model states it, and "params", (n,) each.

        Raises:
            ChoiceError: not encoded subnets of the space.
        """
        names = ["flops", "params"] if self._traced is not None or self._stated is not None else ["params"]
        return {name: self._measure(name, codes) for name in names}

    @cached_property
    def _stated(self) -> Cost | None:
        try:
            return stated_cost(self.model)
        except VitasError:  # a module that states none, or a layer, whose cost depends on its tokens
            return None

    @cached_property
    def _costs(self) -> CostModel:
        return CostModel(self.space, self._stated or Cost(), params_of(self.model))

    def _measure(self, name: str, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        if name == "params":
            return self._costs.params(codes)  # type: ignore[no-any-return]
        if self._traced is None:
            return self._costs.flops(codes)  # type: ignore[no-any-return]
        subnets = [self.space.decode(code) for code in codes]
        return np.array([int(count_flops(self.model, subnet, inputs=self._traced)) for subnet in subnets], np.int64)


_PROPOSALS_BY_RUNNING = 500


def conditional_of(chain: Chain, windows: Mapping[str, Window]) -> Conditional:
    """Return the prior inside the windows, with bins fine enough that a fair share of proposals arrives.

    Raises:
        BudgetError: the windows are empty.
    """
    conditional = Conditional(chain, list(windows.values()))
    for finer in (4, 16):
        if not conditional.bound:
            raise BudgetError(_empty(chain, windows))
        arrived = len(conditional.propose(512, np.random.default_rng(0))[0])
        if arrived >= 16 or not windows:
            return conditional
        conditional = Conditional(chain, list(windows.values()), bins=finer * BINS[len(windows)], memory=40_000_000)
    if not conditional.bound or _is_empty(chain, list(windows.values())):
        raise BudgetError(_empty(chain, windows))
    return conditional


def _is_empty(chain: Chain, windows: list[Window]) -> bool:
    """Return whether no subnet at all is inside the windows, where that can be told."""
    try:
        return len(windows) == 1 and outermost(chain, windows[0], 1) is None
    except TooManyRows:
        return False


def _empty(chain: Chain, windows: Mapping[str, Window]) -> str:
    """Say what can be reached instead of empty windows."""
    least, greatest = (ends.tolist() for ends in extremes(chain))
    parts = []
    for measure, (name, window) in enumerate(windows.items()):
        low, high = least[measure], greatest[measure]
        wanted = f"of at least {window.low:,}" if window.low > high else f"from {window}"
        part = f"{name} {wanted}: the subnets reach from {low:,} to {high:,}"
        try:
            if len(windows) > 1:
                part += ", inside the other budget"
                raise TooManyRows("two budgets")
            below = _nearest(chain, min(window.low - 1, high), low, -1)
            above = _nearest(chain, max(window.high + 1, low), high, 1)
            word = "nearest"
        except TooManyRows:
            below, above = (_near(chain, list(windows.values()), measure, side) for side in (-1, 1))
            word = "near"
        found = [f"{cost:,} {where}" for cost, where in ((below, "below"), (above, "above")) if cost is not None]
        parts.append(part + (f", {word}: {' and '.join(found)}" if found else " none"))
    return "no subnet has " + "; ".join(parts)


def _nearest(chain: Chain, edge: int, limit: int, side: int) -> int | None:
    """Return the cost nearest to `edge` on the way to `limit`, below (side -1) or above (1), exactly; None: there is none.

    Raises:
        TooManyRows: too many costs to go through.
    """
    if (limit - edge) * side < 0:
        return None
    for share in (100, 10, 1):  # a zone near the edge is reached from fewer costs
        far = edge + (limit - edge) // share
        found = outermost(chain, Window(min(edge, far), max(edge, far)), side)
        if found is not None:
            return found
    return None


def _near(chain: Chain, windows: list[Window], measure: int, side: int) -> int | None:
    """Return a cost near a window below (side -1) or above (1) it, inside the other windows; None: none was found.

    It is the nearest of those that are drawn; networks that are rare in the prior may lie nearer. A zone beside the window
    is widened until a draw from it arrives, and then closed in on.
    """
    window = windows[measure]
    limit = int(extremes(chain)[0 if side < 0 else 1][measure])
    edge = window.low - 1 if side < 0 else window.high + 1
    best: int | None = None
    rounds, part = (60, 10**4) if len(windows) == 1 else (5, 64)  # two budgets at once cost much more
    reach, rng = max(abs(limit - edge) // part, 1), np.random.default_rng(0)
    near = edge
    if any(w.low > high for w, high in zip(windows, extremes(chain)[1], strict=True) if w is not window):
        return None
    for _ in range(rounds):
        if (near < limit) if side < 0 else (near > limit):
            return best
        far = near + side * reach
        zone = Window(max(far, 0), near) if side < 0 else Window(near, far)
        conditional = Conditional(chain, [*windows[:measure], zone, *windows[measure + 1 :]])
        if not conditional.bound:
            if best is not None and (far < best if side < 0 else far > best):
                return best
            near, reach = far + side, reach * 8
            continue
        costs = np.concatenate([conditional.propose(4096, rng)[1][:, measure] for _ in range(2)])
        if not len(costs):
            reach = max(reach // 4, 1)
            if reach == 1:
                return best
            continue
        best = int(costs.max() if side < 0 else costs.min())
        if best == near:
            return best
        reach = max(abs(near - best) - 1, 0)
    return best


def count_subnets(model: nn.Module, *, flops: Any = None, params: Any = None) -> SubnetCount:
    """Return the number of distinct networks inside a budget, whatever their prior.

    Args:
        model: A model with choices that states its cost, possibly wrapped by DDP or torch.compile.
        flops: As in sample_subnet.
        params: As in sample_subnet.

    Returns:
        An int; its `exact` says whether it is the number itself, else an estimate with a `standard_error`.

    Raises:
        ChoiceError: a model without choices.
        BudgetError: a malformed budget. An empty window is no error: 0.
        VitasError: a model that states no cost, or so many choices that interact that it cannot be counted.
    """
    space = search_space(model)
    model = unwrap(model)
    budgets = {name: budget for name, budget in (("flops", flops), ("params", params)) if budget is not None}
    costs = [stated_cost(model) if name == "flops" else params_of(model) for name in budgets]
    ends = extremes(Chain(space, costs, counting=True))
    windows = [window_of(budget, name, top) for (name, budget), top in zip(budgets.items(), ends[1].tolist(), strict=True)]
    binding = [k for k, w in enumerate(windows) if w.low > ends[0][k] or w.high < ends[1][k]]
    if not binding:
        return SubnetCount(space.size)
    return count_inside(Chain(space, [costs[k] for k in binding], counting=True), [windows[k] for k in binding])


def _counted(number: int, what: str) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 0:
        raise ChoiceError(f"{what}: expected an int of at least 0, got {shown(number)}")
    return int(number)


def activate_subnet(model: nn.Module, subnet: Mapping[str, Number], *, side: str | None = None) -> None:
    """Make `subnet` the active one, all of it or, on an error, nothing.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of the model's space.
        side: "left" or "right", for bilateral sharing; None: "left".

    Raises:
        ChoiceError: a model without choices, not a subnet of its space, a side where no Dim has two.
    """
    search_space(model).activate(subnet, side=side)


def active_subnet(model: nn.Module) -> Subnet:
    """Return the active subnet.

    Raises:
        ChoiceError: a model without choices.
    """
    return search_space(model).active()


@contextmanager
def use_subnet(model: nn.Module, subnet: Mapping[str, Number], *, side: str | None = None) -> Iterator[Subnet]:
    """Activate `subnet` for the length of a with block; what was active comes back, also after an exception.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of the model's space.
        side: "left" or "right", for bilateral sharing; None: "left".

    Yields:
        The active subnet.

    Raises:
        ChoiceError: as activate_subnet.
    """
    with search_space(model).use(subnet, side=side) as active:
        yield active

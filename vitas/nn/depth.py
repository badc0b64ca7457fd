"""Depth as a choice: slots of which some run, and drop path laid over the blocks that run."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import comb
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitas import plain
from vitas.checks import check_rates, is_int, is_number
from vitas.choice import Choice, Depth, mark_sizes, noted, outside_graphs, restored
from vitas.cost import Cost, cost_of, params_of
from vitas.errors import ChoiceError, VitasError, listed, shown
from vitas.nn.drop_path import DropPath
from vitas.nn.layer import Elastic, exported, like
from vitas.space import Gate, State

T = TypeVar("T")


_noted_eagerly = outside_graphs(noted)


class ShiftableIdentity(Elastic, plain.Blocks):
    """A row of slots, each a block or an identity; identities are shifted to the tail, so the first `depth` slots run.

    Shifting makes one network one subnet: the same blocks in the same order have one encoding, wherever the identities
    stood. A block's choices travel with it; the weights are those of the slot it comes to stand in.

    Shapes: those of the blocks.
    Cost: the sum over the blocks that run.
    Source: identity shifting is a reconstruction from the abstract of arXiv:2106.13700v2 (ViTAS, ECCV 2022); drawing the
    identities independently (binomial depth) is the public ViTAS code; the uniform depth law is ours.

    Args:
        blocks: One module for each slot.
        min_depth: Smallest number of blocks that run.
        step: Slots that become identities together, from the tail: 2 shifts pairs. Divides what may be left out.
        p: Depth law. None: every depth equally likely. A float: each slot is an identity with this probability, so the
            depth is binomial (given that it is at least `min_depth`). A sequence: the probability of each depth. Without
            shifting only None (0.5) or a float; with a `step` a float is the probability of each group of slots, which
            has to divide all slots.
        leave: Numbers of slots in the order in which they become identities; after them the others, the last first.
        shift: False keeps a gene for each slot, for comparison: (q + 1)^n networks instead of the sum of q^m.
        name: Name of the depth choice.

    Raises:
        ChoiceError: no blocks, a depth outside 1..n, a law that fits neither; slots to leave that are not different numbers
            in 0..n - 1, or without shifting.

    Warns:
        UserWarning: a slot that runs in fewer than 1 of n draws is hardly trained.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        *,
        min_depth: int = 1,
        step: int = 1,
        p: float | Sequence[float] | None = None,
        leave: Iterable[int] = (),
        shift: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(*blocks)
        n = len(self)
        if n == 0:
            raise ChoiceError("blocks: expected at least one block, got none")
        if not is_int(min_depth, 1, n):
            raise ChoiceError(f"min_depth: expected an int in 1..{n}, got {shown(min_depth)}")
        if not is_int(step, 1) or (n - min_depth) % step:
            raise ChoiceError(f"step: expected a divisor of {n} - {min_depth}, got {shown(step)}")
        self.shift = shift
        if shift:
            law: Any = _group_law(n, p, min_depth, step) if is_number(p) else p
            self.depth = Depth(range(min_depth, n + 1, step), leave=leave, p=law, name=name)
            self._warn_of_starving_slots()
        elif step > 1:
            raise ChoiceError(f"step: without shifting every slot is free, got {step}")
        elif leave != ():
            raise ChoiceError(f"leave: without shifting every slot is free, got {shown(leave)}")
        else:
            self.use = _slot_choices(n, p, min_depth, name)

    def _warn_of_starving_slots(self) -> None:
        n, laws = len(self), self.depth.p
        reach = [sum(p for depth, p in zip(self.depth.values, laws, strict=True) if depth > turn) for turn in range(n)]
        if reach[-1] < 1 / n - 1e-9:
            first = next(turn for turn in range(n) if reach[turn] < 1 / n - 1e-9)
            rare = sorted(self.depth.turns.index(turn) for turn in range(first, n))
            slots = f"{rare[0]}..{rare[-1]}" if rare == list(range(rare[0], rare[0] + len(rare))) else listed(map(str, rare))
            warnings.warn(
                f"depth law: slots {slots} run in fewer than 1 of {n} draws, the last in {reach[-1]:.2g};"
                " a uniform law (p=None) trains all",
                stacklevel=3,
            )

    def __getitem__(self, index: Any) -> Any:
        """Return one slot's block.

        Raises:
            VitasError: for a slice, since its depth would be another choice.
        """
        if isinstance(index, slice):
            raise VitasError(
                "a row whose depth can be searched is not sliced: list(row)[1:] gives the blocks,"
                " row.running()[1:] those that run"
            )
        return super().__getitem__(index)

    def runs(self, slot: int) -> bool:
        """Say whether a slot runs in the active subnet."""
        return self.depth.runs(slot) if self.shift else bool(self.use[slot].active)

    @property
    def uses(self) -> tuple[Choice[int], ...]:
        """The choices whose values add up to the number of blocks that run: the depth, or one for each slot."""
        return (self.depth,) if self.shift else tuple(self.use)

    @outside_graphs
    def running(self) -> list[nn.Module]:
        """Return the blocks that run, in order."""
        return [block for slot, block in enumerate(self) if self.runs(slot)]

    @outside_graphs(recursive=False)
    def forward(
        self,
        x: Tensor,
        after_first: nn.Module | None = None,
        taken: dict[int, Tensor] | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Run the blocks of the active subnet, see plain.Blocks.

        torch.compile compiles a block, not the row, so depth adds no graphs.
        """
        x = _noted_eagerly(x, *(choice.mark for choice in self.uses))
        x = super().forward(x, after_first, taken, last)
        mark_sizes(x)
        return x

    @outside_graphs(recursive=False)
    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one block."""
        mark_sizes(x)
        x = super().run(block, x)
        mark_sizes(x)
        return x

    @outside_graphs(recursive=False)
    def recomputed(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run a block without keeping its activations; the recomputation runs the same subnet, whatever is active then.

        Under torch.compile such a block runs eagerly.
        """
        state = State.of_module(block)

        @contextmanager
        def again() -> Iterator[None]:
            with state.restored(), restored():
                yield

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), again()

        return checkpoint(block, x, use_reentrant=False, context_fn=contexts)  # type: ignore[no-any-return]

    def gate_of(self, name: str) -> Gate:
        """Say which depths make the slot `name` run."""
        choice, threshold = (self.depth, self.depth.turns[int(name)]) if self.shift else (self.use[int(name)], 0)
        return Gate(choice, frozenset(i for i, value in enumerate(choice.values) if value > threshold))

    def lacks(self, choice: Choice[Any], value: Any) -> str | None:
        """Say that a row without blocks is none."""
        return "runs at least one block" if self.shift and choice is self.depth and value < 1 else None

    def lay_drop_path(self, rate: float) -> None:
        """Let the DropPath modules of the slots rise linearly from 0 to `rate` over the blocks that run."""
        lay_drop_path(rate, [self])

    def cost(self, tokens: Cost) -> Cost:
        """Return the sum over slots of "the slot runs" times its block's cost."""
        slots = self._gated(cost_of(block, tokens) for block in self)
        return sum((cost.under(str(slot)) for slot, cost in enumerate(slots)), Cost())

    def param_count(self) -> Cost:
        """Return the parameters of the blocks that run."""
        return sum(self._gated(params_of(block) for block in self), Cost())

    def _gated(self, costs: Iterable[Cost]) -> Iterable[Cost]:
        for slot, cost in enumerate(costs):
            yield cost * (Cost.above(self.depth, self.depth.turns[slot]) if self.shift else Cost(self.use[slot]))

    def export(self) -> plain.Blocks:
        """Return the plain blocks that run."""
        blocks = like(self, plain.Blocks(*(exported(block) for block in self.running())))
        blocks.grad_checkpointing = self.grad_checkpointing
        return blocks

    def extra_repr(self) -> str:
        return f"depth={self.depth.brief()}" if self.shift else f"use={[choice.active for choice in self.use]}"


def lay_drop_path(rate: float, rows: Sequence[ShiftableIdentity]) -> None:
    """Let the DropPath modules of several rows in turn rise linearly from 0 to `rate` over all blocks that run."""
    total = [use for row in rows for use in row.uses]
    earlier: list[Choice[int]] = []
    for row in rows:
        for slot, block in enumerate(row):
            for module in block.modules():
                if isinstance(module, DropPath) and row.shift:
                    module.lay(rate, slot, earlier, total, row.depth)
                elif isinstance(module, DropPath):
                    module.lay(rate, 0, [*earlier, *row.uses[:slot]], total)
        earlier = [*earlier, *row.uses]


def shift_identities(slots: Sequence[T | None]) -> list[T | None]:
    """Move the identities (None) of a row of slots behind its blocks, which keep their order.

    Source: the canonical form of identity shifting (see ShiftableIdentity). Idempotent.

    Args:
        slots: Blocks, and None for each identity.
    """
    blocks = [slot for slot in slots if slot is not None]
    return [*blocks, *(None for _ in range(len(slots) - len(blocks)))]


def binomial_law(n: int, identity: float, min_depth: int = 1) -> list[float]:
    """Return the probability of each depth min_depth..n when each of n slots is an identity with probability `identity`.

    Raises:
        ChoiceError: a probability outside [0, 1).
    """
    check_rates(p=identity)
    return [comb(n, m) * (1 - identity) ** m * identity ** (n - m) for m in range(min_depth, n + 1)]


def _group_law(n: int, identity: float, min_depth: int, step: int) -> list[float]:
    if n % step or min_depth % step:
        raise ChoiceError(
            f"p: groups of {step} slots do not divide {n} slots, of which at least {min_depth} run; give a law"
        )
    return binomial_law(n // step, identity, min_depth // step)


def _slot_choices(n: int, p: float | Sequence[float] | None, min_depth: int, name: str | None) -> list[Choice[int]]:
    if min_depth != 1:
        raise ChoiceError(f"min_depth: without shifting every slot is free, got {min_depth}")
    identity = 0.5 if p is None else p
    if not is_number(identity) or not 0 <= identity < 1:
        raise ChoiceError(f"p: without shifting one identity probability in [0, 1), got {shown(p)}")
    return [Choice([0, 1], p=[identity, 1 - identity], name=None if name is None else f"{name}.{slot}") for slot in range(n)]

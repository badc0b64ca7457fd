"""All choices of a model: the one door through which subnets are drawn, checked and activated."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from html import escape
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitas.choice import SIDES, Dim
from vitas.errors import ChoiceError, VitasError, brief, is_one_of, listed, one_of, shown
from vitas.space.codes import codes_of
from vitas.space.liveness import Condition, connected, gates_first, weakest
from vitas.space.model import StatesCost, needs_tokens, unwrap
from vitas.space.naming import claim_for_model, refuse_broken_ties, refuse_equal_names, shortest_path
from vitas.space.state import State
from vitas.space.subnet import Number, Subnet
from vitas.space.table import readable_amount, readable_size
from vitas.space.walk import AnyChoice, Gate, holders


class _Entry(NamedTuple):
    name: str
    choice: AnyChoice
    condition: int  # position in SearchSpace._conditions
    cumulative: list[float]
    index_of: dict[Any, int]  # the choice's own


class SearchSpace:
    """The choices of a model by name, and the subnets that they span.

    Made by `search_space(model)`, which walks the model once; nothing here walks again, so make a new one after
    changing the model. A choice is *live* if a module that holds it runs: a subnet names live choices only.

    Attributes:
        choices: Name -> Choice or Dim, in the order of encoded subnets.
    """

    def __init__(
        self,
        found: Mapping[str, tuple[AnyChoice, Sequence[tuple[Gate, ...]]]],
        cost: Callable[[], Any] | None = None,
    ) -> None:
        self._cost = cost
        number = {choice: k for k, (choice, _) in enumerate(found.values())}
        conditions: dict[Condition, int] = {((),): 0}
        self._entries: list[_Entry] = []
        for name, (choice, alternatives) in found.items():
            condition = tuple(
                dict.fromkeys(tuple((number[gate.choice], gate.indices) for gate in gates) for gates in alternatives)
            )
            condition = ((),) if () in condition else condition
            place = conditions.setdefault(condition, len(conditions))
            self._entries.append(_Entry(name, choice, place, list(accumulate(choice.p)), choice._index_of))
        self._conditions = list(conditions)
        self._choices = tuple(entry.choice for entry in self._entries)
        self.choices: dict[str, AnyChoice] = {entry.name: entry.choice for entry in self._entries}

    def __len__(self) -> int:
        return len(self._entries)

    # -- which choices live ------------------------------------------------------------------------------------------

    def _is_true(self, condition: int, indices: Sequence[int]) -> bool:
        for conjunction in self._conditions[condition]:
            for k, allowed in conjunction:
                if indices[k] not in allowed:
                    break
            else:
                return True
        return False

    def _walk(self, indices: list[int]) -> Iterator[tuple[int, _Entry]]:
        """Yield the live entries in order; the caller fills in `indices` (-1 so far) as it goes."""
        true: list[bool | None] = [None] * len(self._conditions)
        true[0] = True
        for k, entry in enumerate(self._entries):
            lives = true[entry.condition]
            if lives is None:
                lives = true[entry.condition] = self._is_true(entry.condition, indices)
            if lives:
                yield k, entry

    def _subnet(self, indices: Sequence[int]) -> Subnet:
        return Subnet({e.name: e.choice.values[i] for e, i in zip(self._entries, indices, strict=True) if i >= 0})

    def _encoded(self, values: Mapping[str, Number], fill: str | None = None, strict: bool = True) -> list[int]:
        """Return the number of each value, -1 for choices that are not live.

        Raises:
            ChoiceError: unknown names, illegal values, missing choices; with `strict` also choices that are not live.
        """
        indices = [-1] * len(self._entries)
        missing, named = [], 0
        for k, entry in self._walk(indices):
            value = values.get(entry.name)
            if value is not None:
                index = entry.index_of.get(value)
                indices[k] = _refused(entry.name, entry.choice, value) if index is None else index
                named += 1
            elif fill is None:
                missing.append(entry.name)
                indices[k] = len(entry.choice.values) - 1
            else:
                indices[k] = len(entry.choice.values) - 1 if fill == "largest" else 0
        if named < len(values):
            self._refuse_names(values, indices, strict)
        if missing:
            raise ChoiceError(f"missing choices: {listed(missing)}; give them, or fill='largest' or 'smallest'")
        return indices

    def _refuse_names(self, values: Mapping[str, Number], indices: Sequence[int], strict: bool) -> None:
        for name, value in values.items():
            if name not in self.choices:
                raise ChoiceError(f"unknown choice: {one_of(list(self.choices), name)}")
            if value not in self.choices[name]._index_of:
                _refused(name, self.choices[name], value)
        if strict:
            dead = [e.name for e, i in zip(self._entries, indices, strict=True) if i < 0 and e.name in values]
            raise ChoiceError(f"not live in this subnet: {listed(dead)}; space.subnet(...) leaves such choices out")

    # -- subnets -----------------------------------------------------------------------------------------------------

    def subnet(self, values: Mapping[str, Number], *, fill: str | None = None) -> Subnet:
        """Return the canonical subnet of these values: complete, live choices only, in the order of the space.

        Args:
            values: Name -> value; choices that are not live (a block beyond the depth) are left out.
            fill: What a live choice that is not named gets: "largest", "smallest", or None for an error.

        Raises:
            ChoiceError: an unknown name, an illegal value, a missing choice.
        """
        if not is_one_of([None, "largest", "smallest"], fill):
            raise ChoiceError(f"fill: {one_of(['largest', 'smallest'], fill)}")
        return self._subnet(self._encoded(Subnet(values), fill, strict=False))

    def sample(self, generator: torch.Generator | None = None) -> Subnet:
        """Draw a subnet from the prior: every live choice from its own `p`.

        Args:
            generator: Source of randomness; None: torch's default one. A draw takes the same amount of it every time.

        Raises:
            ChoiceError: a generator that is none.
        """
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ChoiceError(f"generator: expected a torch.Generator or None, got {shown(generator)}")
        device = generator.device if generator is not None else "cpu"
        uniform = torch.rand(len(self._entries), generator=generator, dtype=torch.float64, device=device).tolist()
        indices = [-1] * len(self._entries)
        for k, entry in self._walk(indices):
            indices[k] = bisect_right(entry.cumulative, uniform[k] * entry.cumulative[-1])
        return self._subnet(indices)

    def compose(self, pick: Callable[[str, AnyChoice], Number]) -> Subnet:
        """Return the subnet whose values `pick(name, choice)` gives; it is asked for live choices only, in order.

        Raises:
            ChoiceError: `pick` gives an illegal value.
        """
        indices = [-1] * len(self._entries)
        for k, entry in self._walk(indices):
            indices[k] = entry.choice.index_of(pick(entry.name, entry.choice))
        return self._subnet(indices)

    def largest(self) -> Subnet:
        """Return the subnet with the largest value of every choice."""
        return self.subnet({}, fill="largest")

    def smallest(self) -> Subnet:
        """Return the subnet with the smallest value of every choice."""
        return self.subnet({}, fill="smallest")

    def __contains__(self, subnet: object) -> bool:
        try:
            self._encoded(Subnet(subnet))  # type: ignore[arg-type]
        except ChoiceError:
            return False
        return True

    # -- activation --------------------------------------------------------------------------------------------------

    def activate(self, subnet: Mapping[str, Number], *, side: str | None = None) -> None:
        """Make `subnet` the active one, all of it or, on an error, nothing.

        Args:
            subnet: A subnet of this space. Choices that are not live go to their largest value.
            side: "left" or "right", for bilateral sharing; None: "left".

        Raises:
            ChoiceError: not a subnet of this space, or a side where no Dim has two.
        """
        if not isinstance(subnet, Subnet):
            subnet = Subnet(subnet)
        indices = self._encoded(subnet._values)
        number = self._side_number(side)
        for dim in self._two_sided:
            dim._side = number
        for choice, index in zip(self._choices, indices, strict=True):
            choice._set(index if index >= 0 else len(choice.values) - 1)

    @contextmanager
    def use(self, subnet: Mapping[str, Number], *, side: str | None = None) -> Iterator[Subnet]:
        """Activate `subnet` for the length of a with block; what was active comes back, also after an exception.

        Args:
            subnet: A subnet of this space.
            side: As in `activate`.

        Yields:
            The active subnet.

        Raises:
            ChoiceError: as `activate`.
        """
        state = self.state()
        try:
            self.activate(subnet, side=side)
            yield self.active()
        finally:
            state.put_back()

    def _side_number(self, side: str | None) -> int:
        if side is None:
            return 0
        if not is_one_of(SIDES, side):
            raise ChoiceError(f"side: {one_of(SIDES, side)}")
        if not self.bilateral:
            raise ChoiceError(f"side: got {shown(side)}, but no Dim of this model is bilateral")
        return SIDES.index(side)

    @cached_property
    def _two_sided(self) -> list[Dim]:
        return [choice for choice in self._choices if isinstance(choice, Dim) and len(choice.sides) > 1]

    @property
    def bilateral(self) -> bool:
        """Whether any Dim has a left and a right side."""
        return bool(self._two_sided)

    @property
    def side(self) -> str | None:
        """The active side; None where no Dim is bilateral."""
        return self._two_sided[0].side if self._two_sided else None

    def active(self) -> Subnet:
        """Return the active subnet, canonical."""
        indices = [-1] * len(self._entries)
        for k, entry in self._walk(indices):
            indices[k] = entry.choice._index
        return self._subnet(indices)

    def state(self) -> State:
        """Return everything that is active, sides and choices that are not live included."""
        return State.of(self._choices)

    # -- vectors and counts ------------------------------------------------------------------------------------------

    def encode(self, subnet: Mapping[str, Number]) -> NDArray[np.int64]:
        """Return the number of each choice's value, (n,); -1 for choices that are not live.

        Raises:
            ChoiceError: not a subnet of this space.
        """
        return np.array(self._encoded(Subnet(subnet)), dtype=np.int64)

    def decode(self, vector: Sequence[int] | NDArray[Any]) -> Subnet:
        """Return the subnet of a vector as `encode` makes it; numbers of choices that are not live are ignored.

        Raises:
            ChoiceError: wrong length, not ints, numbers out of range.
        """
        numbers = codes_of([vector], len(self), "vector")[0]
        indices = [-1] * len(self._entries)
        for k, entry in self._walk(indices):
            if not 0 <= numbers[k] < len(entry.choice.values):
                raise ChoiceError(f"{entry.name}: expected a number in 0..{len(entry.choice.values) - 1}, got {numbers[k]}")
            indices[k] = int(numbers[k])
        return self._subnet(indices)

    def live(self, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which choices are live in each vector, (n, choices) ints -> (n, choices); other numbers may be anything."""
        live = np.ones(codes.shape, dtype=bool)
        true: list[NDArray[np.bool_] | None] = [None] * len(self._conditions)
        for k, entry in enumerate(self._entries):
            if entry.condition:
                lives = true[entry.condition]
                if lives is None:
                    lives = np.zeros(len(codes), dtype=bool)
                    for conjunction in self._conditions[entry.condition]:
                        holds = np.ones(len(codes), dtype=bool)
                        for gate, allowed in conjunction:
                            table = np.zeros(len(self._entries[gate].choice.values), dtype=bool)
                            table[list(allowed)] = True
                            holds &= live[:, gate] & table[codes[:, gate]]
                        lives |= holds
                    true[entry.condition] = lives
                live[:, k] = lives
        return live

    def canonical(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return vectors with -1 for the choices that are not live: equal networks have equal vectors."""
        return np.where(self.live(codes), codes, -1)

    def numbers(self, subnet: Mapping[str, Number]) -> list[int]:
        """Return the number of each choice's value as a list; 0 for choices that are not live.

        Raises:
            ChoiceError: not a subnet of this space.
        """
        values = subnet._values if isinstance(subnet, Subnet) else Subnet(subnet)._values
        return [index if index > 0 else 0 for index in self._encoded(values)]

    def completed(self, codes: NDArray[np.int64], drawn: Iterable[int], rng: np.random.Generator) -> NDArray[np.int64]:
        """Return encoded subnets, (n, choices), with the entries `drawn` drawn from the prior and -1 where not live."""
        codes = codes.copy()
        for k in drawn:
            cumulative = self._entries[k].cumulative
            codes[:, k] = np.searchsorted(cumulative, rng.random(len(codes)) * cumulative[-1], side="right")
        return self.canonical(codes)

    def indices(self, subnet: Mapping[str, Number]) -> dict[AnyChoice, int]:
        """Return the number of each choice's value; 0 for choices that are not live.

        Raises:
            ChoiceError: not a subnet of this space.
        """
        return dict(zip(self._choices, self.numbers(subnet), strict=True))

    @cached_property
    def size(self) -> int:
        """Exact number of distinct networks."""
        return self._count(list(range(len(self._entries))), {})

    def _count(self, entries: list[int], given: dict[int, int]) -> int:
        """Count the combinations of `entries`, the values numbered in `given` being settled."""
        gates: dict[int, set[int]] = {}
        for k in entries:
            alternatives = [
                {gate for gate, _ in conjunction if gate not in given}
                for conjunction in self._conditions[self._entries[k].condition]
                if all(given[gate] in allowed for gate, allowed in conjunction if gate in given)
            ]
            if alternatives:  # else it is dead
                gates[k] = set() if set() in alternatives else set().union(*alternatives)
        total = 1
        for group in connected(gates):
            first = next((k for k in group if not gates[k] and any(k in gates[other] for other in group)), None)
            if first is None:
                total *= len(self._entries[group[0]].choice.values)
                continue
            rest = [k for k in group if k != first]
            values = range(len(self._entries[first].choice.values))
            total *= sum(self._count(rest, {**given, first: index}) for index in values)
        return total

    def description(self) -> dict[str, Any]:
        """Return names, values and runs of all choices as plain JSON values: equal for equal spaces."""
        return {
            entry.name: {
                "values": list(entry.choice.values),
                "runs": [[list(run) for run in side] for side in getattr(entry.choice, "sides", ())],
            }
            for entry in self._entries
        }

    def costs(self) -> tuple[int, int, int] | None:
        """Return the multiply-adds of the cheapest, a middle (median of 101 draws) and the costliest network.

        None where the model states no cost, or where too many choices interact for the exact extremes.
        """
        if self._cost is None:
            return None
        try:
            cost = self._cost()
        except VitasError:  # a model with a part that states none
            return None
        extremes = cost.extremes()
        if extremes is None:
            return None
        generator = torch.Generator().manual_seed(0)
        draws = sorted(cost.at(self.indices(self.sample(generator))) for _ in range(101))
        return extremes[0], draws[50], extremes[1]

    def _rows(self) -> list[tuple[str, str]]:
        """Return the choices as a table shows them: blocks of equal choices in one row."""
        rows: dict[tuple[str, tuple[Any, ...]], list[str]] = {}
        for entry in self._entries:
            pattern = re.sub(r"\.\d+\.(?!.*\.\d+\.)", ".*.", f".{entry.name}").removeprefix(".")  # the last number
            rows.setdefault((pattern, entry.choice.values), []).append(entry.name)
        return [
            (names[0], ", ".join(map(str, values)))
            if len(names) == 1
            else (pattern, ", ".join(map(str, values)) + f"  (x{len(names)})")
            for (pattern, values), names in rows.items()
        ]

    def _summary(self) -> str:
        try:
            costs = self.costs()
        except Exception as error:  # printing must not fail where a user's own cost() does
            return f"no cost: {type(error).__name__}: {brief(error)}"
        if costs is None:
            return ""
        return " / ".join(map(readable_amount, costs)) + " multiply-adds (cheapest / median / costliest)"

    def __repr__(self) -> str:
        rows, summary = self._rows(), self._summary()
        width = max(len(pattern) for pattern, _ in rows)
        lines = [
            f"SearchSpace of {len(self)} choices, {readable_size(self.size)} networks",
            *([f"  {summary}"] if summary else []),
        ]
        return "\n".join([*lines, *(f"  {pattern:<{width}}  {values}" for pattern, values in rows)])

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in self._rows())
        head = f"<b>{len(self)} choices, {readable_size(self.size)} networks</b>"
        return f"{head}<br>{escape(self._summary())}<table>{cells}</table>"


def _refused(name: str, choice: AnyChoice, value: Number) -> NoReturn:
    raise ChoiceError(f"{name}: {one_of(choice.values, value)}")


def search_space(model: nn.Module) -> SearchSpace:
    """Return the search space of a model: one walk over its modules finds every choice and names it.

    A choice is called by its `name`, else by the shortest attribute path to a module that holds it; wrappers (DDP, compile,
    EMA) leave no trace in names.

    Raises:
        ChoiceError: no choices; two of one name; a copy that lost its tie; a choice that stands in another model too.
    """
    model = unwrap(model)
    paths: dict[AnyChoice, list[tuple[str, ...]]] = {}
    gates: dict[AnyChoice, list[tuple[Gate, ...]]] = {}
    for choice, path, conditions in holders(model):
        paths.setdefault(choice, []).append(path)
        gates.setdefault(choice, []).append(conditions)
    if not paths:
        raise ChoiceError(
            f"{type(model).__name__} has no choices: build it from vitas.nn layers with Choices and Dims of several values, "
            "or make a timm model searchable by vitas.wrap"
        )
    refuse_broken_ties(paths)
    gates = {choice: weakest(alternatives) for choice, alternatives in gates.items()}
    names = {choice: choice.name or shortest_path(at) for choice, at in paths.items()}
    refuse_equal_names(names, paths)
    for choice in paths:
        claim_for_model(choice, model, names[choice])
    ordered = gates_first(gates)
    cost = model.cost if isinstance(model, StatesCost) and not needs_tokens(model) else None
    return SearchSpace({names[choice]: (choice, gates[choice]) for choice in ordered}, cost)

"""All choices of a model: the one door through which subnets are drawn, checked and activated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitas.choice import SIDES, Depth, Dim
from vitas.errors import ChoiceError, VitasError, brief, is_one_of, listed, one_of, shown
from vitas.space.codes import Encoding
from vitas.space.left import Left, is_glob, named, restricted
from vitas.space.liveness import Liveness, conditions_of, gates_first, weakest
from vitas.space.model import StatesCost, needs_tokens, unwrap
from vitas.space.naming import claim_for_model, names_of
from vitas.space.state import State
from vitas.space.subnet import Number, Subnet, TableRow, as_subnet, is_missing
from vitas.space.table import readable_costs, space_html, space_text
from vitas.space.walk import AnyChoice, Gate, holders

BASE_LAYER = "base_layer"
"""What peft's adapters, and those made like them, call the layer that they run beside."""


class SearchSpace:
    """The choices of a model by name, and the subnets that they span.

    Made by `search_space(model)`, which walks the model once; nothing here walks again, so make a new one after
    changing the model. A choice is *live* if a module that holds it runs: a subnet names live choices only.

    Attributes:
        choices: Name -> Choice or Dim, in the order of encoded subnets.
        values: Name -> the values that subnets may have, ascending: those of the choice, or what `restrict` left of them.
        liveness: Which choices are live, for given values of the others.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> space = vitas.search_space(model)
        >>> space.size
        1994118000
        >>> subnet = space.subnet({"depth": 2, "embed_dim": 64}, fill="smallest")
        >>> subnet in space
        True
        >>> space.decode(space.encode(subnet)) == subnet
        True
    """

    def __init__(
        self,
        found: Mapping[str, tuple[AnyChoice, Sequence[tuple[Gate, ...]]]],
        cost: Callable[[], Any] | None = None,
        adapted: Mapping[str, str] | None = None,
    ) -> None:
        self._cost, self._adapted = cost, adapted or {}
        self.choices: dict[str, AnyChoice] = {name: choice for name, (choice, _) in found.items()}
        sizes = [len(choice.values) for choice in self.choices.values()]
        self.liveness = Liveness(sizes, conditions_of(dict(found.values())))
        self._whole: SearchSpace | None = None
        self._version = sum(choice.version for choice in self.choices.values())
        self._leave(tuple(choice.left for choice in self.choices.values()))
        self._two_sided = [isinstance(choice, Dim) and len(choice.sides) > 1 for choice in self.choices.values()]

    def _leave(self, left: Left) -> None:
        """Say what values subnets may have."""
        self._encoding = Encoding(self.choices, self.liveness, left)
        self.values: dict[str, tuple[Number, ...]] = {
            name: tuple(choice.values[number] for number in numbers)
            for (name, choice), numbers in zip(self.choices.items(), left, strict=True)
        }

    @property
    def encoding(self) -> Encoding:
        """Subnets as vectors of ints, one or many at once.

        Raises:
            ChoiceError: values were taken out of the space of the model, or joined it, since this was made.
        """
        self.check()
        return self._encoding

    def check(self) -> None:
        """Go on where the choices of the model have the values that they had when this was made.

        Raises:
            ChoiceError: they do not.
        """
        if sum([choice.version for choice in self.choices.values()]) != self._version:
            raise ChoiceError(
                "this search space, or what it belongs to (a sampler, a cost_model), is old: since it was made the model was"
                " narrowed or widened; make a new one"
            )

    def restrict(self, fixed: Mapping[str, Any] | None = None, only: Mapping[str, Any] | None = None) -> SearchSpace:
        """Return the part of this space in which some choices are held: the same choices and vectors, fewer values.

        A choice that is not live has no value, so holding it excludes nothing. Draws follow the prior: each choice its own
        `p`, conditioned on the values that are left.

        Args:
            fixed: Name of a choice -> its one value, "largest" or "smallest". A name may be a glob, whose star also stands
                for dots: "blocks.*.num_heads" for the heads of all blocks, "blocks.*" for all that blocks have.
            only: Name or glob -> several values, of which each of these choices keeps those. All that is said holds at once.

        Raises:
            ChoiceError: a name or glob of no choice, a value that is not legal, a choice of which nothing is left.
        """
        left = restricted(self.choices, self.encoding.left, fixed, only)
        if left == self.encoding.left:
            return self
        part = copy(self)
        part.__dict__.pop("size", None)
        part._whole = self.whole
        part._leave(left)
        return part

    @property
    def whole(self) -> SearchSpace:
        """The space without what is held; itself where nothing is."""
        return self._whole or self

    def __len__(self) -> int:
        return len(self.choices)

    @cached_property
    def size(self) -> int:
        """Exact number of distinct networks."""
        return self.liveness.count(self.encoding.left)

    # -- subnets -----------------------------------------------------------------------------------------------------

    def subnet(self, values: Mapping[str, Number], *, fill: str | None = None) -> Subnet:
        """Return the canonical subnet of these values: complete, live choices only, in the order of the space.

        Args:
            values: Name or glob, such as "blocks.*.mlp_dim", of which a name counts more -> value; choices that are not live
                (a block beyond the depth) are left out. Or a row of a table,
                such as one of `SearchResult.to_pandas()`, of which only the columns that are choices count. NaN and None
                say that a choice is not live.
            fill: What a live choice that is not named gets: "largest", "smallest", or None for an error.

        Raises:
            ChoiceError: an unknown name, an illegal value, a missing choice; NaN or None for a live choice.
        """
        if not is_one_of([None, "largest", "smallest"], fill):
            raise ChoiceError(f"fill: {one_of(['largest', 'smallest'], fill)}")
        said = self._spread(self._said(values))
        subnet = self.encoding.subnet(self.encoding.code(as_subnet(said), fill=fill, strict=False))
        if wrong := [name for name, value in said.items() if is_missing(value) and name in subnet]:
            raise ChoiceError(
                f"missing choices: {listed(wrong, 3)}; NaN and None say that a choice is not live, and here it is"
            )
        return subnet

    def read(self, values: Mapping[str, Number] | TableRow) -> Subnet:
        """Return what is said of choices as a Subnet, complete or not; of a row of a table its columns that are choices.

        Raises:
            ChoiceError: neither a mapping nor a row; names or values that no subnet may have.
        """
        return as_subnet(self._said(values))

    def _said(self, values: Mapping[str, Number] | TableRow) -> Mapping[str, Number]:
        """Return what is said of choices: of a row of a table its columns that are choices; all of anything else."""
        if isinstance(values, TableRow) and not isinstance(values, Mapping):
            columns = set(values.keys())
            return {name: values[name] for name in self.choices if name in columns}
        return values

    def _spread(self, said: Mapping[str, Number]) -> Mapping[str, Number]:
        """Return what is said with the names that each glob stands for; what is said of a name itself counts more."""
        globs = [name for name in said if is_glob(name) and name not in self.choices] if isinstance(said, Mapping) else []
        if not globs:
            return said
        spread = {name: said[glob] for glob in globs for name in named("subnet", glob, list(self.choices))}
        return spread | {name: value for name, value in said.items() if name not in globs}

    def largest(self) -> Subnet:
        """Return the subnet with the largest value of every choice."""
        return self.subnet({}, fill="largest")

    def smallest(self) -> Subnet:
        """Return the subnet with the smallest value of every choice."""
        return self.subnet({}, fill="smallest")

    def sample(self, generator: torch.Generator | None = None) -> Subnet:
        """Draw a subnet from the prior: every live choice from its own `p`.

        Args:
            generator: Source of randomness; None: torch's default one. A draw takes the same amount of it every time.

        Raises:
            ChoiceError: not a generator.
        """
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ChoiceError(f"generator: expected a torch.Generator or None, got {shown(generator)}")
        device = generator.device if generator is not None else "cpu"
        uniform = torch.rand(len(self), generator=generator, dtype=torch.float64, device=device).tolist()
        prior = self.encoding.cumulative
        return self._filled(lambda k: bisect_right(prior[k], uniform[k] * prior[k][-1]))

    def compose(self, pick: Callable[[str, AnyChoice], Number]) -> Subnet:
        """Return the subnet whose values `pick(name, choice)` gives; it is asked for live choices only, in order.

        Raises:
            ChoiceError: `pick` gives an illegal value.
        """
        named = list(self.choices.items())
        return self._filled(lambda k: self.encoding.left_number(k, named[k][1].index_of(pick(*named[k]))))

    def active(self) -> Subnet:
        """Return the active subnet, canonical."""
        choices = list(self.choices.values())
        return self._filled(lambda k: choices[k].index)

    def _filled(self, number_of: Callable[[int], int]) -> Subnet:
        return self.encoding.subnet(self.liveness.fill(number_of))

    def __contains__(self, subnet: object) -> bool:
        try:
            self.encode(subnet)  # type: ignore[arg-type]
        except ChoiceError:
            return False
        return True

    # -- activation --------------------------------------------------------------------------------------------------

    def activate(self, subnet: Mapping[str, Number], *, side: str | None = None) -> None:
        """Make `subnet` the active one, all of it or, on an error, nothing; an interrupt is raised when all is done.

        Args:
            subnet: A subnet of this space, or a row of a table. Choices that are not live go to the largest value that the
                space of the model has.
            side: "left" or "right", for bilateral sharing; None: "left".

        Raises:
            ChoiceError: not a subnet of this space, or a side where no Dim has two; a part of a layer beside an adapter
                that is as wide as all of it.
        """
        code = self.encoding.code(self.read(subnet))
        self._refuse_adapted(code)
        if side is not None and not is_one_of(SIDES, side):
            raise ChoiceError(f"side: {one_of(SIDES, side)}")
        if side is not None and not self.bilateral:
            raise ChoiceError(f"side: got {shown(side)}, but no Dim of this model is bilateral")
        right = side == "right"
        parts = zip(code, self.whole.encoding.left, self._two_sided, strict=True)
        states = [(number if number >= 0 else left[-1], int(right and two_sided)) for number, left, two_sided in parts]
        State(tuple(self.choices.values()), tuple(states)).put_back()

    def _refuse_adapted(self, code: Sequence[int]) -> None:
        """Refuse a layer of which only a part would run beside an adapter of its full width."""
        if not self._adapted:
            return
        for (name, choice), number in zip(self.choices.items(), code, strict=True):
            if name in self._adapted and 0 <= number < len(choice.values) - 1:
                raise ChoiceError(
                    f"{name}: only {choice.largest} runs, the adapter on {self._adapted[name]} being so wide;"
                    " merge it into the weights, or adapt what export_subnet returns"
                )

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

    def state(self) -> State:
        """Return everything that is active, sides and choices that are not live included."""
        return State.of(self.choices.values())

    @property
    def bilateral(self) -> bool:
        """Whether any Dim has a left and a right side."""
        return any(self._two_sided)

    @property
    def side(self) -> str | None:
        """The active side; None where no Dim is bilateral."""
        dims = zip(self.choices.values(), self._two_sided, strict=True)
        return next((dim.side for dim, two_sided in dims if two_sided and isinstance(dim, Dim)), None)

    # -- vectors -----------------------------------------------------------------------------------------------------

    def encode(self, subnet: Mapping[str, Number]) -> NDArray[np.int64]:
        """Return the number of each choice's value, (n,); -1 for choices that are not live.

        Raises:
            ChoiceError: not a subnet of this space.
        """
        return np.array(self.encoding.code(self.read(subnet)), dtype=np.int64)

    def decode(self, vector: Sequence[int] | NDArray[Any]) -> Subnet:
        """Return the subnet of a vector as `encode` makes it; numbers of choices that are not live are ignored.

        Raises:
            ChoiceError: wrong length, not ints, numbers out of range.
        """
        return self.encoding.decoded(vector)

    def canonical(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return vectors with -1 for the choices that are not live: equal networks have equal vectors."""
        return self.encoding.canonical(codes)

    def indices(self, subnet: Mapping[str, Number]) -> dict[AnyChoice, int]:
        """Return the number of each choice's value, as costs take them; 0 for choices that are not live.

        Raises:
            ChoiceError: not a subnet of this space.
        """
        code = self.encoding.code(self.read(subnet))
        return {choice: number if number > 0 else 0 for choice, number in zip(self.choices.values(), code, strict=True)}

    # -- what it looks like ------------------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """Return names, values and runs of all choices as plain JSON values: equal for equal spaces."""
        return {
            name: {
                "values": list(self.values[name]),
                "runs": [[list(side[k]) for k in left] for side in choice.sides] if isinstance(choice, Dim) else [],
                **({"turns": list(choice.turns)} if isinstance(choice, Depth) and not choice.from_the_end else {}),
            }
            for (name, choice), left in zip(self.choices.items(), self.encoding.left, strict=True)
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
        extremes = cost.extremes(left=dict(zip(self.choices.values(), self.encoding.left, strict=True)))
        if extremes is None:
            return None
        generator = torch.Generator().manual_seed(0)
        draws = sorted(cost.at(self.indices(self.sample(generator))) for _ in range(101))
        return extremes[0], draws[50], extremes[1]

    def _summary(self) -> str:
        try:
            costs = self.costs()
        except Exception as error:  # printing must not fail where a user's own cost() does
            return f"no cost: {type(error).__name__}: {brief(error)}"
        return "" if costs is None else readable_costs(costs)

    def __repr__(self) -> str:
        return space_text(self.values, self.size, self._summary())

    def _repr_html_(self) -> str:
        return space_html(self.values, self.size, self._summary())


def search_space(model: nn.Module) -> SearchSpace:
    """Return the search space of a model: one walk over its modules finds every choice and names it.

    A choice is called by its `name`, else by the shortest attribute path to a module that holds it; wrappers (DDP, compile,
    EMA) leave no trace in names. Where whole models stand side by side, such as a student and its teacher in a ModuleDict,
    the names of each begin with its path: "student.depth". Called with one of them, all functions use its own names.

    Raises:
        ChoiceError: no choices; two of one name; a copy that lost its tie; a choice that stands in another model too.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> print(vitas.search_space(model))
        SearchSpace of 21 choices, 1.994e+9 networks
          165 K / 2.77 M / 33.7 M multiply-adds (cheapest / median / costliest)
          embed_dim           32, 48, 64, 80, 96
          patch_size          2, 4
          depth               1, 2, 3, 4, 5, 6
          blocks.*.num_heads  2, 4  (x6)
          blocks.*.qkv_dim    32, 64, 96  (x6)
          blocks.*.mlp_dim    48, 96, 144, 192  (x6)
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
    names = names_of(model, paths)
    gates = {choice: weakest(alternatives) for choice, alternatives in gates.items()}
    for choice in paths:
        claim_for_model(choice, model, names[choice])
    ordered = gates_first(gates)
    cost = model.cost if isinstance(model, StatesCost) and not needs_tokens(model) else None
    return SearchSpace({names[choice]: (choice, gates[choice]) for choice in ordered}, cost, _adapted(paths, names))


def _adapted(paths: Mapping[AnyChoice, list[tuple[str, ...]]], names: Mapping[AnyChoice, str]) -> dict[str, str]:
    """Return the choices of layers that stand inside an adapter, which calls them `base_layer`, and where it stands."""
    found: dict[str, str] = {}
    for choice, several in paths.items():
        for path in several:
            if BASE_LAYER in path:
                found.setdefault(names[choice], ".".join(path[: path.index(BASE_LAYER)]))
    return found

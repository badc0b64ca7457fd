"""Which choices are live: those that some module which runs holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitas.space.walk import AnyChoice, Gate

Condition = tuple[tuple[tuple[int, frozenset[int]], ...], ...]
"""Alternatives, each a conjunction of (entry, values' numbers); () alone is never true, ((),) always."""


def connected(links: Mapping[int, set[int]]) -> list[list[int]]:
    """Return the groups of entries that depend on one another."""
    group_of = {k: [k] for k in links}
    for k, others in links.items():
        for other in others:
            if group_of[k] is not group_of[other]:
                joined = group_of[k] + group_of[other]
                for member in joined:
                    group_of[member] = joined
    return [sorted(group) for group in {id(group): group for group in group_of.values()}.values()]


def weakest(alternatives: Sequence[tuple[Gate, ...]]) -> list[tuple[Gate, ...]]:
    """Drop the alternatives that another one implies: a holder inside a private copy of its own choice adds nothing."""
    distinct = list(dict.fromkeys(alternatives))
    return [gates for gates in distinct if not any(set(other) < set(gates) for other in distinct)]


def gates_first(gates: Mapping[AnyChoice, Sequence[tuple[Gate, ...]]]) -> list[AnyChoice]:
    """Order choices as found, but each after the choices that decide whether it is live."""
    ordered: dict[AnyChoice, None] = {}

    def place(choice: AnyChoice) -> None:
        if () not in gates[choice]:
            for conjunction in gates[choice]:
                for gate in conjunction:
                    if gate.choice not in ordered:
                        place(gate.choice)
        ordered[choice] = None

    for choice in gates:
        if choice not in ordered:
            place(choice)
    return list(ordered)

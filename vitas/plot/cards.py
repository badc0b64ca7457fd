"""Cards for notebooks: a subnet, a search space, the difference of two subnets, as HTML that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vitas.cost import count_flops, count_params
from vitas.cost.count import amounts_by_block
from vitas.errors import FileError, VitasError, brief
from vitas.export import as_path
from vitas.plot.template import BLUE, GREEN, ORANGE, Cell, Table, card_html
from vitas.space import AnyChoice, Number, SearchSpace, Subnet, readable_amount, readable_size, search_space
from vitas.tables import by_block, pattern_of


@dataclass(frozen=True)
class Card:
    """A picture for notebooks: HTML there, text elsewhere.

    Attributes:
        html: A fragment with its styles inside; no scripts, nothing loaded.
        text: The same as text.
    """

    html: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path) -> None:
        """Write a page that follows the reader's choice of light or dark.

        Raises:
            FileError: a file that cannot be written.
        """
        style = (
            "body{font-family:system-ui,sans-serif;margin:24px;color-scheme:light dark;background:Canvas;color:CanvasText}"
        )
        head = f"<meta charset=utf-8><title>vitas</title><style>{style}</style>"
        try:
            as_path(path).write_text(f"<!doctype html>{head}\n{self.html}\n", encoding="utf-8")
        except OSError as error:
            raise FileError(f"{path}: cannot be written ({brief(error)})") from None


def subnet_card(model: nn.Module, subnet: Mapping[str, Number] | None = None) -> Card:
    """Return what a subnet chooses, block by block, with what each block costs.

    A bar is a value's share of the largest one of its choice; the share of the cost is that of the subnet's multiply-adds.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        subnet: A subnet of its space; None: the active one.

    Raises:
        ChoiceError: a model without choices, or not a subnet of its space.
    """
    space = search_space(model)
    subnet = space.active() if subnet is None else space.subnet(subnet)
    single, words, blocks = by_block(subnet)
    shares, total = _shares(model, subnet)
    parameters = count_params(model, subnet)
    body = []
    for block, row in blocks.items():
        cells = [_bar(row[word], space.choices[f"{block}.{word}"], BLUE) if word in row else Cell() for word in words]
        if shares:
            share = shares.pop(block, 0.0)
            cells.append(Cell(f"{share:.1%}", share=share, colour=ORANGE) if share else Cell())
        body.append([Cell(block), *cells])
    tables = [Table(["", *words, *(["share of the cost"] if total else [])], body)]
    if single:
        tables.insert(
            0, Table([], [[Cell(name), _bar(value, space.choices[name], GREEN)] for name, value in single.items()])
        )
    notes = []
    if rest := [f"{name} {share:.1%}" for name, share in shares.items() if share >= 0.0005]:
        notes.append("elsewhere: " + ", ".join(rest))
    if left_out := [block for block in _blocks_of(space) if block not in blocks]:
        notes.append(f"left out: {_ranges(left_out)}")
    html = card_html("Subnet", [total, f"{readable_amount(parameters)} parameters"], tables, notes)
    return Card(html, f"{subnet!r}\n{total}, {parameters:,} parameters".strip())


def difference_card(model: nn.Module, a: Mapping[str, Number], b: Mapping[str, Number]) -> Card:
    """Return what two subnets choose differently, and what each costs.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.
        a: A subnet of its space.
        b: Another one.

    Raises:
        ChoiceError: a model without choices, or not a subnet of its space.
    """
    space = search_space(model)
    first, second = space.subnet(a), space.subnet(b)
    differing = [name for name in space.choices if first.get(name) != second.get(name)]
    totals = [("parameters", count_params(model, first), count_params(model, second))]
    flops = _total(model, first), _total(model, second)
    if flops[0] is not None and flops[1] is not None:
        totals.insert(0, ("multiply-adds", flops[0], flops[1]))
    facts = [f"{len(differing)} choices differ, {len({*first, *second}) - len(differing)} are alike"]
    rows = _differences(space, first, second, differing)
    for word, one, other in totals:
        change = Cell(f"{readable_amount(other)} ", faint=_change(one, other))
        rows.append([Cell(word, bold=True), Cell(readable_amount(one)), change])
    text = [*facts, *(f"{name}: {first.get(name, '-')} -> {second.get(name, '-')}" for name in differing)]
    text += [f"{word}: {one:,} -> {other:,} ({_change(one, other)})" for word, one, other in totals]
    return Card(card_html("Difference", facts, [Table(["", "first", "second"], rows)]), "\n".join(text))


def _differences(space: SearchSpace, first: Subnet, second: Subnet, differing: Sequence[str]) -> list[list[Cell]]:
    """Return a row for each choice that differs; blocks that one subnet leaves out share a row."""
    blocks = [set(by_block(subnet)[2]) for subnet in (first, second)]
    alone = [[block for block in _blocks_of(space) if block in own - other] for own, other in (blocks, blocks[::-1])]
    rows = []
    for name in differing:
        if not any(name.rpartition(".")[0] in block for block in alone):
            bars = [
                _bar(subnet[name], space.choices[name], colour) if name in subnet else Cell(faint="left out")
                for subnet, colour in ((first, BLUE), (second, ORANGE))
            ]
            rows.append([Cell(name), *bars])
    for block, words in zip(alone, (["runs", "left out"], ["left out", "runs"]), strict=True):
        if block:
            rows.append([Cell(_ranges(block)), *(Cell(faint=word) for word in words)])
    return rows


def space_card(model: nn.Module) -> Card:
    """Return the choices of a model, their values and how likely each is, and the range of costs.

    Blocks with the same choices share a row. The height of a bar is the value's probability, relative to the likeliest.

    Args:
        model: A model with choices, possibly wrapped by DDP or torch.compile.

    Raises:
        ChoiceError: a model without choices.
    """
    space = search_space(model)
    groups: dict[tuple[str, tuple[Any, ...], tuple[float, ...]], int] = {}
    for name, choice in space.choices.items():
        key = (pattern_of(name), space.values[name], tuple(choice.p[number] for number in choice.left))
        groups[key] = groups.get(key, 0) + 1
    rows = [
        [
            Cell(f"{pattern} ", faint=f"\u00d7 {times}" if times > 1 else ""),
            Cell(columns=[weight / max(p) for weight in p[:32]]),
            Cell(_listed(values)),
        ]
        for (pattern, values, p), times in groups.items()
    ]
    facts = [f"{len(space)} choices", f"{_power(space.size)} networks"]
    costs = space.costs()
    if costs is not None:
        facts.append(f"{' / '.join(map(readable_amount, costs))} multiply-adds (cheapest / median / costliest)")
    return Card(card_html("Search space", facts, [Table(["choice", "prior", "values"], rows)]), repr(space))


def _total(model: nn.Module, subnet: Subnet) -> int | None:
    try:
        return count_flops(model, subnet).total
    except VitasError:  # a model that states no cost
        return None


def _shares(model: nn.Module, subnet: Subnet) -> tuple[dict[str, float], str]:
    """Return the share of each block and other module in the cost, and the total in words; nothing where none is stated."""
    if _total(model, subnet) is None:
        return {}, ""
    count = count_flops(model, subnet)
    largest = count.total or 1
    return {
        name: amount / largest for name, amount in amounts_by_block(count).items()
    }, f"{readable_amount(count.total)} multiply-adds"


def _blocks_of(space: SearchSpace) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in space.choices if "." in name))


def _ranges(names: Sequence[str]) -> str:
    """Return "blocks.3 to blocks.7" for neighbours."""
    spans: list[list[str]] = []
    for name in names:
        before, _, number = name.rpartition(".")
        last = spans[-1][-1] if spans else ""
        if number.isdigit() and last == f"{before}.{int(number) - 1}":
            spans[-1].append(name)
        else:
            spans.append([name])
    return ", ".join(span[0] if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans)


_SUPERSCRIPTS = str.maketrans("0123456789", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def _power(size: int) -> str:
    digits, e, exponent = readable_size(size).partition("e+")
    return f"{digits} \u00b7 10{exponent.translate(_SUPERSCRIPTS)}" if e else digits


def _change(one: int, other: int) -> str:
    return f"{(other - one) / one:+.1%}" if one else ""


def _listed(values: Sequence[Any], most: int = 12) -> str:
    if len(values) <= most:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[: most - 2]))}, ... {values[-1]} ({len(values)} values)"


def _bar(value: Number, choice: AnyChoice, colour: str) -> Cell:
    share = value / choice.largest if choice.largest else 0.0
    return Cell(str(value), faint=f" of {choice.largest}", share=share, colour=colour)

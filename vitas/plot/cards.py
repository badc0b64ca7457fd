"""Cards for notebooks: a subnet, a search space, the difference of two subnets, as HTML that needs nothing else.

Colours work on light and dark pages: text takes the page's own, bars lie on a translucent grey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import nn

from vitas.cost import count_flops, count_params
from vitas.errors import FileError, VitasError, brief
from vitas.export import as_path
from vitas.space import AnyChoice, Number, SearchSpace, Subnet, by_block, readable_amount, readable_size, search_space

BLUE, ORANGE, GREEN = "#3f86c6", "#d9822b", "#3a9d74"  # at least 3 : 1 on white and on black


_TRACK = "rgba(128,128,128,.22)"


_CELL = "padding:2px 10px 2px 0;text-align:left;border:0;background:none;vertical-align:middle;white-space:nowrap"


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
    single, words, rows = by_block(subnet)
    shares, total = _shares(model, subnet)
    shown = [word for word in words if any(word in row for row in rows.values())]
    header = ["", *shown, *(["share of the cost"] if shares else [])]
    body = []
    for before, row in rows.items():
        cells = [escape(before)]
        cells += [_bar(row[word], space.choices[f"{before}.{word}"], BLUE) if word in row else "" for word in shown]
        if shares:
            share = shares.pop(before, 0.0)
            cells.append(_measure(share, f"{share:.1%}", ORANGE) if share else "")
        body.append(cells)
    lines = [_title("Subnet", [total, f"{readable_amount(count_params(model, subnet))} parameters"])]
    lines.append(_chips(single, space))
    lines.append(_table(header, body))
    rest = [f"{name} {share:.1%}" for name, share in shares.items() if share >= 0.0005]
    lines.append(_note("elsewhere: " + ", ".join(rest)) if rest else "")
    left_out = [before for before in _rows_of(space) if before not in rows]
    lines.append(_note(f"left out: {_ranges(left_out)}") if left_out else "")
    return Card(_framed(lines), f"{subnet!r}\n{total}, {count_params(model, subnet):,} parameters".strip())


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
    costs = [(_total(model, subnet), count_params(model, subnet)) for subnet in (first, second)]
    differing = [name for name in space.choices if first.get(name) != second.get(name)]
    body = []
    blocks = [{name.rpartition(".")[0] for name in subnet} for subnet in (first, second)]
    alone = [[block for block in _rows_of(space) if block in own - other] for own, other in (blocks, blocks[::-1])]
    for name in differing:
        if any(name.rpartition(".")[0] in block for block in alone):
            continue  # said in one row below
        bars = [
            _bar(subnet[name], space.choices[name], colour) if name in subnet else _muted("left out")
            for subnet, colour in ((first, BLUE), (second, ORANGE))
        ]
        body.append([escape(name), *bars])
    for block, cells in zip(alone, (["runs", "left out"], ["left out", "runs"]), strict=True):
        if block:
            body.append([_ranges(block), *map(_muted, cells)])
    alike = len({*first, *second}) - len(differing)
    facts = [f"{len(differing)} choices differ, {alike} are alike"]
    totals = [("parameters", costs[0][1], costs[1][1])]
    if costs[0][0] is not None and costs[1][0] is not None:
        totals.insert(0, ("multiply-adds", costs[0][0], costs[1][0]))
    for word, one, other in totals:
        body.append([f"<b>{word}</b>", readable_amount(one), f"{readable_amount(other)} {_muted(_change(one, other))}"])
    text = [facts[0], *(f"{name}: {first.get(name, '-')} -> {second.get(name, '-')}" for name in differing)]
    text += [f"{word}: {one:,} -> {other:,} ({_change(one, other)})" for word, one, other in totals]
    html = _framed([_title("Difference", facts), _table(["", "first", "second"], body)])
    return Card(html, "\n".join(text))


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
        pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
        key = (pattern, choice.values, choice.p)
        groups[key] = groups.get(key, 0) + 1
    body = []
    for (pattern, values, p), times in groups.items():
        several = _muted(f"&times; {times}") if times > 1 else ""
        body.append([f"{escape(pattern)} {several}", _prior(p), escape(_listed(values))])
    facts = [f"{len(space)} choices", f"{_power(space.size)} networks"]
    costs = space.costs()
    if costs is not None:
        facts.append(f"{' / '.join(map(readable_amount, costs))} multiply-adds (cheapest / median / costliest)")
    return Card(_framed([_title("Search space", facts), _table(["choice", "prior", "values"], body)]), repr(space))


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
    return {name: amount / largest for name, amount in count._rows()}, f"{readable_amount(count.total)} multiply-adds"


def _rows_of(space: SearchSpace) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[0] for name in space.choices if "." in name))


def _ranges(names: Sequence[str]) -> str:
    """Return "blocks.3 to blocks.7" for neighbours."""
    runs: list[list[str]] = []
    for name in names:
        before, _, number = name.rpartition(".")
        last = runs[-1][-1] if runs else ""
        if number.isdigit() and last == f"{before}.{int(number) - 1}":
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(escape(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}") for run in runs)


def _power(size: int) -> str:
    digits, e, exponent = readable_size(size).partition("e+")
    return f"{digits} &middot; 10<sup>{exponent}</sup>" if e else digits


def _change(one: int, other: int) -> str:
    return f"{(other - one) / one:+.1%}" if one else ""


def _listed(values: Sequence[Any], most: int = 12) -> str:
    if len(values) <= most:
        return ", ".join(map(str, values))
    return f"{', '.join(map(str, values[: most - 2]))}, ... {values[-1]} ({len(values)} values)"


def _framed(parts: Iterable[str]) -> str:
    style = "font-size:13px;line-height:1.45;max-width:100%;overflow-x:auto;font-variant-numeric:tabular-nums"
    return f'<div style="{style}">{"".join(parts)}</div>'


def _title(name: str, facts: Iterable[str]) -> str:
    said = " &middot; ".join(fact for fact in facts if fact)
    return f'<div style="margin:0 0 6px"><b>{name}</b> &ensp;{said}</div>'


def _note(text: str) -> str:
    return f'<div style="margin-top:6px;opacity:.75;max-width:70em">{text}</div>'


def _muted(text: str) -> str:
    return f'<span style="opacity:.65">{text}</span>'


def _chips(single: Mapping[str, Number], space: SearchSpace) -> str:
    cells = [[escape(name), _bar(value, space.choices[name], GREEN)] for name, value in single.items()]
    return _table([], cells) if cells else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    bold = f"{_CELL};font-weight:600;opacity:.75"
    head = "".join(f'<th style="{bold}">{escape(word)}</th>' for word in header)
    lines = [f'<tr style="background:none;border:0">{head}</tr>'] if any(header) else []
    for row in rows:
        cells = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row)
        lines.append(f'<tr style="background:none;border:0">{cells}</tr>')
    style = "border-collapse:collapse;border:0;margin:0 0 4px;font-size:inherit;color:inherit"
    return f'<table style="{style}">{"".join(lines)}</table>'


def _measure(share: float, label: str, colour: str, of: str = "") -> str:
    """Return a bar of a share in 0..1 with its label beside it."""
    inner = f'<span style="display:block;height:9px;width:{100 * share:.0f}%;min-width:2px;background:{colour}"></span>'
    bar = f'<span style="display:inline-block;width:84px;background:{_TRACK};vertical-align:middle">{inner}</span>'
    return f"{bar} {label}{_muted(of) if of else ''}"


def _bar(value: Number, choice: AnyChoice, colour: str) -> str:
    share = value / choice.largest if choice.largest else 0.0
    return _measure(share, str(value), colour, f" of {choice.largest}")


def _prior(p: Sequence[float], most: int = 32) -> str:
    """Return a small column chart of probabilities."""
    step: Callable[[float], str] = lambda weight: (  # noqa: E731
        f'<span style="display:inline-block;width:5px;margin-right:1px;vertical-align:bottom;'
        f'height:{max(1, round(18 * weight / max(p)))}px;background:{BLUE}"></span>'
    )
    return f'<span style="display:inline-block;height:18px;line-height:18px">{"".join(map(step, p[:most]))}</span>'

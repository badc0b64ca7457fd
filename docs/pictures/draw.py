"""Draw the pictures of docs/concepts.md and docs/design.md: python docs/pictures/draw.py writes the SVG files here."""

from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import vitas

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY, PALE = "#0072B2", "#E69F00", "#3a9d74", "#777777", "#eef3f8"
mpl.rcParams |= {"svg.hashsalt": "vitas", "svg.fonttype": "path", "font.family": "DejaVu Sans"}


def box(axes, x, y, width, height, text, edge=GREY, face="white", size=9.5) -> None:
    """Draw a rounded box with text in its middle."""
    style = "round,pad=0.02,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, edgecolor=edge, facecolor=face, linewidth=1.4))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color="#222222")


def arrow(axes, start, end, colour, style="-|>", width=1.3, bend=0.0) -> None:
    """Draw an arrow from one point to another."""
    connection = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=style, color=colour, linewidth=width, mutation_scale=11, connectionstyle=connection
        )
    )


def canvas(width: float, height: float, right: float, top: float):
    """Return axes without a frame, in units of boxes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, right), ylim=(0, top), aspect="equal")
    axes.axis("off")
    return figure, axes


def shared_dim() -> Figure:
    """Draw the layers of a block, and which of them hold `width` and `hidden`."""
    figure, axes = canvas(9.6, 3.7, 14.4, 5.5)
    names = ["patch\nembedding", "norm", "attention", "+", "norm", "fc1", "fc2", "+", "norm", "classifier"]
    places = []
    x = 0.3
    for name in names:
        wide = 0.5 if name == "+" else 1.15
        box(axes, x, 2.3, wide, 0.95, name, size=10 if name == "+" else 8.5)
        places.append((x, wide))
        x += wide + 0.3
    for (left, wide), (right, _) in pairwise(places):
        arrow(axes, (left + wide + 0.03, 2.77), (right - 0.03, 2.77), GREY)
    box(axes, 5.4, 4.5, 3.6, 0.75, "width = Dim([96, 144, 192])", edge=BLUE, face=PALE)
    box(axes, 6.0, 0.2, 3.6, 0.75, "hidden = Dim([192, 384, 768])", edge=ORANGE, face="#fdf5e6")
    for name, (left, wide) in zip(names, places, strict=True):
        middle = left + wide / 2
        if name not in ("fc1", "fc2"):
            arrow(axes, (7.2, 4.48), (middle, 3.29), BLUE, width=1.0)
    for name, (left, wide) in zip(names, places, strict=True):
        middle = left + wide / 2
        if name == "fc1":
            arrow(axes, (7.2, 4.48), (middle - 0.3, 3.29), BLUE, width=1.0)
            arrow(axes, (7.8, 0.98), (middle + 0.25, 2.26), ORANGE, width=1.0)
        if name == "fc2":
            arrow(axes, (7.2, 4.48), (middle + 0.3, 3.29), BLUE, width=1.0)
            arrow(axes, (7.8, 0.98), (middle - 0.25, 2.26), ORANGE, width=1.0)
    axes.text(0.3, 4.75, "one object for all\nthat must agree", fontsize=9, color=BLUE, va="center")
    axes.text(0.3, 0.55, "another one between\nthe two layers of the MLP", fontsize=9, color="#a06c00", va="center")
    return figure


def sharing() -> Figure:
    """Draw which channels each width uses in the five patterns, and how many widths use each channel."""
    patterns = ("ordinal", "bilateral", "cyclic", "cyclic-chain", "cyclic-paired")
    return vitas.plot.coverage_map({name: vitas.Dim(range(1, 11), sharing=name) for name in patterns})


def shifting() -> Figure:
    """Draw three rows of slots that are one network, and their canonical form."""
    figure, axes = canvas(8.6, 3.3, 12.6, 4.9)
    rows = ["A-B-", "A--B", "-AB-"]
    for row, slots in enumerate(rows):
        for place, slot in enumerate(slots):
            y = 3.5 - 1.45 * row
            if slot == "-":
                box(axes, 0.3 + 1.2 * place, y, 0.9, 0.8, "identity", edge="#bbbbbb", size=7)
            else:
                box(axes, 0.3 + 1.2 * place, y, 0.9, 0.8, f"block {slot}", edge=BLUE, face=PALE, size=8)
        arrow(axes, (5.1, 3.9 - 1.45 * row), (7.1, 2.55 + 0.12 * (1 - row)), GREY)
    for place, slot in enumerate("AB--"):
        if slot == "-":
            box(axes, 7.4 + 1.2 * place, 2.05, 0.9, 0.8, "left out", edge="#dddddd", size=7)
        else:
            box(axes, 7.4 + 1.2 * place, 2.05, 0.9, 0.8, f"block {slot}", edge=GREEN, face="#e9f5f0", size=8)
    axes.text(9.75, 3.3, "one subnet: depth 2", fontsize=9.5, color="#222222", ha="center")
    axes.text(0.3, 4.62, "three rows of genes, one network", fontsize=9.5, color="#222222")
    return figure


FLOORS = (
    (("compressing", "all of it in one call"),),
    (("train", "helpers for the user's loop"), ("search", "evolve, on Optuna")),
    (("export", "plain networks, and files"), ("plot", "cards and pictures")),
    (("wrapping", "a timm model made searchable"),),
    (("measure", "accuracy, latency"),),
    (("superformer", "whole models, named spaces"),),
    (("nn", "searchable layers"), ("sample", "draws, also inside a budget")),
    (("cost", "tables over choices: what a subnet costs"),),
    (("space", "all choices of a model, by name"),),
    (("choice", "a dimension is an object"),),
    (("fields.py", "what a field may be"), ("memory.py", "what no machine can hold")),
    (("checks.py", "arguments"), ("sharing.py", "which channels a width uses")),
    (("errors.py", "what went wrong"), ("tables.py", "text, HTML"), ("plain.py", "forward passes")),
)


def rooms() -> Figure:
    """Draw the rooms of the package: each imports only from the floors below it."""
    figure, axes = canvas(8.6, 8.9, 13.2, 14.3)
    for floor, names in enumerate(FLOORS):
        y = 0.25 + 1.08 * (len(FLOORS) - 1 - floor)
        wide = (12.2 - 0.3 * (len(names) - 1)) / len(names)
        for number, (name, what) in enumerate(names):
            face, edge = ("#f4f4f4", GREY) if name.endswith(".py") else (PALE, BLUE)
            box(axes, 0.3 + number * (wide + 0.3), y, wide, 0.8, f"$\\bf{{{name}}}$   {what}", edge, face, 8.5)
    arrow(axes, (12.85, 13.8), (12.85, 0.4), ORANGE, width=1.6)
    axes.text(13.02, 7.0, "imports", fontsize=9, color="#a06c00", rotation=270, va="center")
    return figure


def main() -> None:
    """Write all pictures; the same bytes every time."""
    for draw in (shared_dim, sharing, shifting, rooms):
        figure = draw()
        figure.savefig(HERE / f"{draw.__name__}.svg", metadata={"Date": None}, facecolor="white")
        print(f"{draw.__name__}.svg")


if __name__ == "__main__":
    main()

"""Cards and pictures: what they show is what the counts say, and the HTML is whole, harmless and free of foreign needs."""

import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import vitas
from vitas import ChoiceError, plot
from vitas.errors import FileError
from vitas.plot import pictures

VOID = {"meta", "br", "hr", "img"}


class Nesting(HTMLParser):
    """Checks that every tag is closed in order, and keeps the text of table rows."""

    def __init__(self, html):
        super().__init__()
        self.open, self.rows = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in {"script", "link", "iframe", "img"}
        assert not any(name.startswith("on") or name in {"src", "href"} for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def rows_of(card):
    return {row[0].strip(): row[1:] for row in Nesting(card.html).rows if row}


@pytest.fixture
def model():
    return vitas.create_superformer("deit_micro", num_classes=10, img_size=16)


def drawn(model, seed):
    return vitas.sample_subnet(model, generator=torch.Generator().manual_seed(seed), activate=False)


def test_a_subnet_card_shows_values_and_shares_of_the_cost(model):
    subnet = drawn(model, 3)
    card = plot.subnet_card(model, subnet)
    rows = rows_of(card)
    count = vitas.count_flops(model, subnet)
    for name, value in subnet.items():
        block = name.rpartition(".")[0]
        largest = vitas.search_space(model).choices[name].largest
        cells = rows[block] if block else rows[name]
        assert any(cell.strip() == f"{value} of {largest}" for cell in cells), (name, cells)
    for block in range(subnet["depth"]):
        own = sum(n for path, n in count.by_module.items() if path.startswith(f"blocks.{block}."))
        assert rows[f"blocks.{block}"][-1].strip() == f"{own / count.total:.1%}"
    assert f"{vitas.count_params(model, subnet):,} parameters" in repr(card)


def test_the_width_of_a_bar_is_the_share_of_the_largest_value(model):
    subnet = vitas.search_space(model).subnet({"embed_dim": 48}, fill="smallest")
    html = plot.subnet_card(model, subnet).html
    (width,) = re.findall(r"width:(\d+)%;[^>]*></span></span> 48<span[^>]*> of 96", html)
    assert int(width) == round(100 * 48 / 96)


def test_a_card_of_the_active_subnet_leaves_it_active(model):
    subnet = vitas.sample_subnet(model, generator=torch.Generator().manual_seed(5))
    assert plot.subnet_card(model).html == plot.subnet_card(model, subnet).html
    assert vitas.active_subnet(model) == subnet


def test_a_difference_card_names_what_differs_and_nothing_else(model):
    space = vitas.search_space(model)
    a = space.subnet({"depth": 2, "embed_dim": 64}, fill="smallest")
    b = space.subnet({"depth": 4, "embed_dim": 64, "blocks.1.mlp_dim": 192}, fill="smallest")
    card = plot.difference_card(model, a, b)
    rows = rows_of(card)
    assert set(rows) == {"", "depth", "blocks.1.mlp_dim", "blocks.2 to blocks.3", "multiply-adds", "parameters"}
    costs = [vitas.count_flops(model, subnet).total for subnet in (a, b)]
    assert f"multiply-adds: {costs[0]:,} -> {costs[1]:,} ({costs[1] / costs[0] - 1:+.1%})" in repr(card)
    assert "0 choices differ" in repr(plot.difference_card(model, a, a))


def test_a_space_card_has_a_row_for_every_kind_of_choice(model):
    rows = rows_of(plot.space_card(model))
    assert rows["embed_dim"][-1] == "32, 48, 64, 80, 96"
    assert [name for name in rows if name.startswith("blocks.*.mlp_dim")] == ["blocks.*.mlp_dim × 6"]


def test_names_are_escaped_and_models_without_a_cost_have_cards():
    width = vitas.Dim([2, 4], name="<script>alert(1)</script>")
    model = nn.Sequential(vitas.nn.CyclicLinear(3, width), vitas.nn.CyclicLinear(width, 3))
    for card in (
        plot.subnet_card(model),
        plot.space_card(model),
        plot.difference_card(model, {width.name: 2}, {width.name: 4}),
    ):
        Nesting(card.html)
        assert "<script" not in card.html


def test_a_card_saves_itself_as_a_page(model, tmp_path):
    plot.space_card(model).save(tmp_path / "space.html")
    assert (tmp_path / "space.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("place", [None, 3, b"card.html", "none/card.html", "."])
def test_a_card_that_cannot_be_written_says_why(model, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=r"expected a path, got|cannot be written"):
        plot.subnet_card(model).save(place)


def test_a_foreign_subnet_is_refused(model):
    with pytest.raises(ChoiceError, match="unknown choice"):
        plot.subnet_card(model, {"nothing": 1})
    with pytest.raises(ChoiceError, match="no choices"):
        plot.space_card(nn.Linear(2, 2))


@pytest.mark.extras
def test_a_coverage_map_draws_the_counts_of_coverage():
    dims = {name: vitas.Dim(range(1, 11), sharing=name) for name in ("ordinal", "bilateral", "cyclic")}
    figure = plot.coverage_map(dims)
    for (name, dim), runs, uses in zip(dims.items(), figure.axes[:3], figure.axes[3:], strict=True):
        expected = vitas.sharing.coverage(dim)
        np.testing.assert_array_equal(uses.patches[0].get_data().values, expected.counts)
        image = runs.images[0].get_array()
        assert image.shape == (10, 10)
        np.testing.assert_allclose(image.sum(axis=1), range(1, 11))
        assert name in runs.get_title()
    figure.canvas.draw()
    with pytest.raises(ChoiceError, match="expected a Dim, got 3"):
        plot.coverage_map({"three": 3})
    with pytest.raises(ChoiceError, match="expected at least one Dim, got none"):
        plot.coverage_map({})


@pytest.mark.extras
def test_training_curves_draw_moving_means():
    figure = plot.training_curves({"loss": [4.0, 2.0, 0.0]}, window=2)
    faint, mean = figure.axes[0].lines
    np.testing.assert_allclose(faint.get_ydata(), [4, 2, 0])
    np.testing.assert_allclose(mean.get_ydata(), [3, 1])
    with pytest.raises(ChoiceError, match="window"):
        plot.training_curves({}, window=0)
    for nothing_to_name in ({}, {"_hidden": [1.0]}):
        plot.training_curves(nothing_to_name).canvas.draw()  # and no complaint of an empty legend


@pytest.mark.extras
def test_training_curves_of_a_table_are_those_of_its_columns():
    class Table:  # as pandas.DataFrame: keys and columns, and no Mapping
        def keys(self):
            return ["loss"]

        def __getitem__(self, name):
            return {"loss": np.array([2.0, 1.0])}[name]

    (line,) = plot.training_curves(Table()).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [2, 1])


@pytest.mark.extras
@pytest.mark.parametrize("history", [None, [1.0], {"loss": 3}, {"loss": ["x"]}, {"loss": [[1.0]]}, {"loss": [10**400]}])
def test_training_curves_of_what_are_no_rows_of_numbers_are_refused(history):
    with pytest.raises(ChoiceError, match="history: expected"):
        plot.training_curves(history)


@pytest.mark.extras
def test_training_curves_say_which_values_cannot_be_drawn():
    tracked = [torch.ones((), requires_grad=True)] * 2
    with pytest.raises(ChoiceError, match=r"history: expected one number for each step, got \[.* for 'loss' \(.*grad"):
        plot.training_curves({"accuracy": [1.0], "loss": tracked})


@pytest.mark.extras
def test_notebooks_show_figures_without_pyplot():
    figure = plot.coverage_map(vitas.Dim([1, 2]))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pickle.loads(pickle.dumps(figure))._repr_png_().startswith(b"\x89PNG")


@pytest.mark.extras
def test_the_front_tells_what_breaks_a_limit():
    figure = pictures.figure(1)
    (axes,) = figure.axes
    x, allowed = np.array([1e9, 2e9, 3e9]), np.array([True, False, True])
    pictures.front(axes, x, np.arange(3.0), allowed, np.array([False, False, True]), "flops", "accuracy")
    figure.canvas.draw()
    clouds = {cloud.get_label(): cloud.get_offsets().tolist() for cloud in axes.collections}
    assert clouds == {"a subnet": [[1e9, 0], [3e9, 2]], "breaks a limit": [[2e9, 1]]}
    assert axes.lines[0].get_xdata().tolist() == [3e9]
    assert "2G" in [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.heavy
def test_a_space_beyond_any_float_has_a_card():
    model = torch.nn.ModuleList(vitas.nn.CyclicLinear(1, vitas.Dim(range(1, 101))) for _ in range(2100))
    assert "1.000 · 10⁴²⁰⁰ networks" in vitas.plot.space_card(model).html

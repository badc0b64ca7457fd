from vitas import Choice, Dim
from vitas.space.table import SpaceTable, Table, readable_costs, table_of


def test_a_table_is_described_once_and_rendered_twice():
    table = Table([("blocks.0", "4", "1440"), ("b", "12", "")], ("heads", "a<b"))
    assert table.text() == ["          heads   a<b", "blocks.0      4  1440", "b            12      "]
    assert table.html() == (
        "<tr><th></th><th>heads</th><th>a&lt;b</th></tr>"
        "<tr><th>blocks.0</th><td>4</td><td>1440</td></tr><tr><th>b</th><td>12</td><td></td></tr>"
    )


def test_names_stand_as_wide_as_wanted_and_cells_without_words_to_the_left():
    assert Table([("a", "1"), ("bc", "1000")]).text(4) == ["a     1", "bc    1000"]
    assert Table([]).text(4) == []
    assert Table([]).html() == ""


def test_equal_choices_of_several_blocks_are_one_line():
    choices = {f"stages.1.blocks.{i}.heads": Choice([1, 2 + i // 2]) for i in range(3)} | {"width": Dim([4, 8])}
    assert table_of(choices).lines == [
        ("stages.1.blocks.*.heads", "1, 2  (x2)"),
        ("stages.1.blocks.2.heads", "1, 3"),
        ("width", "4, 8"),
    ]


def test_a_space_in_words():
    choices = {"width": Dim([4, 8])}
    costs = (950, 1_300_000_000, 2_000_000_000)
    assert readable_costs(costs) == "950 / 1.3 G / 2 G multiply-adds (cheapest / median / costliest)"
    table = SpaceTable.of(choices, 2, costs)
    assert table.text() == f"SearchSpace of 1 choices, 2 networks\n  {readable_costs(costs)}\n  width  4, 8"
    assert table.html().startswith(f"<b>1 choices, 2 networks</b><br>{readable_costs(costs)}<table><tr><th>width</th>")
    assert SpaceTable.of(choices, 2, None).text() == "SearchSpace of 1 choices, 2 networks\n  width  4, 8"

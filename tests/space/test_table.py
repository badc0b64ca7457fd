from vitas.space.table import readable_costs, space_html, space_text

VALUES = {
    "embed_dim": (4, 8),
    "blocks.0.mlp_dim": (2, 3),
    "blocks.1.mlp_dim": (2, 3),
    "blocks.2.mlp_dim": (2, 5),
    "ratio<b>": (0.5, 1.0),
}


def test_blocks_of_equal_choices_share_a_line():
    assert space_text(VALUES, 64, "1 M / 2 M / 3 M").split("\n") == [
        "SearchSpace of 5 choices, 64 networks",
        "  1 M / 2 M / 3 M",
        "  embed_dim         4, 8",
        "  blocks.*.mlp_dim  2, 3  (x2)",
        "  blocks.2.mlp_dim  2, 5",
        "  ratio<b>          0.5, 1.0",
    ]


def test_a_space_of_unknown_cost_has_no_line_for_it():
    assert space_text({"depth": (1, 2)}, 2, "").split("\n") == [
        "SearchSpace of 1 choices, 2 networks",
        "  depth  1, 2",
    ]


def test_html_escapes_names():
    html = space_html(VALUES, 64, "a < b")
    assert html.startswith("<b>5 choices, 64 networks</b><br>a &lt; b<table><tr><th>embed_dim</th><td>4, 8</td></tr>")
    assert "ratio&lt;b&gt;" in html
    assert "<b>" not in html[3:]


def test_costs_in_words():
    words = "1 M / 2.5 M / 1.3 G multiply-adds (cheapest / median / costliest)"
    assert readable_costs((10**6, 2_500_000, 1_300_000_000)) == words

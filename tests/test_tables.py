"""Small tables as text and as HTML."""

from vitas.tables import by_block, html_table, pattern_of, text_table


def test_columns_of_text_line_up_and_short_rows_end_early():
    rows = [["a", 1], ["longer", 22, "x"], ["b"]]
    assert text_table(rows) == "a       1\nlonger  22  x\nb"
    assert text_table(rows, "<>") == "a        1\nlonger  22  x\nb"
    assert text_table([]) == ""


def test_html_is_escaped():
    assert html_table([["<b>", "&"]], ["", "<i>"]) == (
        "<table><tr><th></th><th>&lt;i&gt;</th></tr><tr><th>&lt;b&gt;</th><td>&amp;</td></tr></table>"
    )
    assert html_table([]) == "<table></table>"


def test_blocks_are_what_stands_before_the_last_dot():
    values = {"depth": 2, "blocks.0.heads": 3, "blocks.0.mlp": 4, "blocks.1.mlp": 5}
    rows = {"blocks.0": {"heads": 3, "mlp": 4}, "blocks.1": {"mlp": 5}}
    assert by_block(values) == ({"depth": 2}, ["heads", "mlp"], rows)


def test_a_pattern_has_a_star_for_each_number():
    assert pattern_of("stages.0.blocks.12.mlp_dim") == "stages.*.blocks.*.mlp_dim"
    assert pattern_of("embed_dim") == "embed_dim"

"""The notation of records."""

import pytest
from torch import nn

from vitas.errors import WrapError
from vitas.wrapping.record import Attribute, Axis, parsed, record_of


def test_a_record_reads_as_it_says():
    record = parsed(
        "qkv: 3 h d, w; a.b: _, 4 u; num_heads = h; heads = w / head_dim; dims = w*; rows layers.*.blocks; stages layers;"
        " whole stem",
        "Mine",
    )
    assert record.axes == {"qkv": (Axis(3, ("h", "d")), Axis(1, ("w",))), "a.b": (Axis(1, ()), Axis(4, ("u",)))}
    assert parsed("fixed w n; shape = _, 2 h, _", "Mine").fixed == ("w", "n")
    assert parsed("shape = _, 2 h, _", "Mine").attributes["shape"] == Attribute(Axis(2, ("h",)), None, False, 1)
    assert record.attributes["heads"].per == "head_dim"
    assert record.attributes["dims"].each
    assert not record.attributes["num_heads"].each
    assert (record.rows, record.stages, record.whole) == ("layers.*.blocks", ("layers",), ("stem",))


def test_an_entry_with_a_condition_holds_where_it_is_true():
    module = nn.Sequential(nn.Linear(2, 3), nn.Identity())
    vars(module).update(fused=True, plain=False)
    text = "a: w if 0; b: w unless 0; c: w if 1; d: w unless 1; e: w if fused; f: w unless plain; g: w if plain"
    assert list(record_of(text, module).axes) == ["a", "d", "e", "f"]


@pytest.mark.parametrize(
    "entry", ["shape = _, _", "shape = h, h, _", "qkv 3 h d", "qkv: 3 3", "qkv: H", "rows a b", "= h", "3x: w", "whole"]
)
def test_an_entry_in_no_form_is_refused_with_its_words(entry):
    with pytest.raises(WrapError, match=f"record of Mine: '{entry}'"):
        parsed(f"norm: w; {entry}", "Mine")


@pytest.mark.parametrize("axis", ["h 3 d", "0 h d"])
def test_a_number_stands_in_front_of_the_letters(axis):
    with pytest.raises(WrapError, match="expected a number from 1 on, in front"):
        parsed(f"qkv: {axis}, w", "Mine")

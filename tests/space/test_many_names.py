"""Subnets of tens of thousands of names cost in proportion to them."""

import pytest

import vitas
from vitas.errors import ChoiceError
from vitas.tables import by_block


def test_a_name_that_stands_twice_among_many_is_found():
    text = "{" + ",".join(f'"{i:x}":1' for i in range(20_000)) + ',"4e1f":1}'
    with pytest.raises(ChoiceError, match="'4e1f' stands twice"):
        vitas.Subnet.from_json(text)


def test_printing_takes_no_cells_for_what_is_not_there():
    subnet = vitas.Subnet({f"{i:x}.{i:x}": 1 for i in range(3_000)})
    single, columns, blocks = by_block(subnet)
    assert (len(single), columns, blocks) == (3000, [], {})
    assert len(repr(subnet)) < 100 * len(subnet)
    assert len(subnet._repr_html_()) < 100 * len(subnet)
    _, columns, blocks = by_block({"a.x": 1, "b.y": 2, "c": 3})
    assert (columns, list(blocks)) == (["x", "y"], ["a", "b"])

"""The script that makes the tables of docs/wrapping.md."""

import re

import pytest
import torch

from tests.contract import randomize
from tests.wrapping import table
from vitas.wrapping.records import RECORDS

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.extras


def test_the_page_names_every_class_that_records_know():
    known = {name.rpartition(".")[2] for name, text in RECORDS.items() if "rows " in text}
    page = table.PAGE.read_text()
    of_timm, of_transformers = (
        dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", part.partition("<!-- end of")[0], flags=re.MULTILINE))
        for part in page.split("python -m tests.wrapping.table -->")[1:]
    )
    assert known == {kind for kind, names in of_timm.items() if not names.startswith("0 of")} | of_transformers.keys()


def on_meta(name, **options):
    with torch.device("meta"):
        return table.built(name, timm.create_model(name, **options))


def test_a_name_is_wrapped_without_memory_or_refused_with_the_part():
    taken = on_meta("vit_tiny_patch16_224")
    assert (taken.kind, taken.refused, taken.choices) == ("VisionTransformer", "", 26)
    assert taken.size == 5_717_416
    assert on_meta("test_resnet").refused == "no record"


def test_a_class_is_compared_on_a_few_blocks():
    model = table.cut(timm.create_model("test_vit", img_size=32, depth=5))
    assert len(model.blocks) == 3
    found = table.exact(randomize(model))
    assert found.equal
    assert found.counted
    assert max(found.export, found.silenced) <= 1e-12


def test_lines_are_written_and_kept(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    start, end = table.START.format("timm"), table.END.format("timm")
    page.write_text(f"before\n{start}{end}\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    rest = [""] * (len(table.HEADS["timm"]) - 3)
    table.write("timm", "Small", ["1 of 4", "2", *rest])
    table.write("timm", "Large", ["3", "7", *rest])
    table.write("timm", "Small", ["2 of 4", "2 of 3", *rest])
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert [line.split(" | ")[:3] for line in lines if line.startswith(("| `", "| **"))] == [
        ["| `Large`", "3", "7"],
        ["| `Small`", "2 of 4", "2 of 3"],
        ["| **all 2**", "**5 of 7 (71.4%)**", "**9 of 10 (90.0%)**"],
    ]


def test_a_reason_is_what_differs_between_classes():
    text = "Net cannot be wrapped: blocks.11.attn is a Mixer; supported are A, B"
    assert table._short(text) == "blocks.N.attn is a Mixer"
    assert table._short("Net cannot be wrapped; supported are A, B") == "no record"

"""The comparison on Fashion-MNIST with what people use instead: its cells, what it counts, and its table on the page."""

import json
import sys
from pathlib import Path

import pytest
import torch

import vitas

pytestmark = pytest.mark.extras
pytest.importorskip("timm")
pytest.importorskip("optuna")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "examples" / "fashion"))

import data  # noqa: E402
import rival_methods  # noqa: E402
import rival_table  # noqa: E402
import rival_task  # noqa: E402
import rivals  # noqa: E402
import store  # noqa: E402
import training  # noqa: E402

TINY = rival_task.SMOKE._replace(
    width=16, depth=2, first=2, passes=44, population=2, generations=1, scored=4, recipe=training.Recipe(batch=4)
)


@pytest.fixture
def task():
    torch.manual_seed(0)
    original = rival_task.vit(TINY, TINY.width).eval()
    return rival_task.Task(original, data.stand_in(held_out=TINY.held_out), TINY, 60, 3)


def test_the_original_has_about_thirty_million_multiply_adds():
    model, d, blocks, n = rival_task.vit(rival_task.FULL, 64), 64, 12, 50
    by_hand = 49 * 16 * d + blocks * (12 * n * d * d + 2 * n * n * d) + 10 * d
    assert vitas.count_flops(model, inputs=torch.zeros(1, 1, 28, 28)).total == by_hand == 33_382_016


@pytest.mark.parametrize("method", ["vitas.compress", "narrower, from scratch"])
def test_a_method_keeps_to_its_size_and_its_passes_and_leaves_the_original_as_it_was(method, task):
    before = {name: value.clone() for name, value in task.original.state_dict().items()}
    network = rival_methods.METHODS[method](task)
    assert 0.3 * task.most < task.flops(network) <= task.most == 0.6 * task.flops(task.original) // 1
    assert TINY.passes - 30 * 4 / 3 < round(task.used, 6) <= TINY.passes  # compress has 30 epochs of a whole number of steps
    assert all(torch.equal(value, before[name]) for name, value in task.original.state_dict().items())


def test_passes_are_counted_as_batches_and_scores_go_by(task):
    assert len(list(task.batches(3))) == len(task.batches(3)) == 3
    assert task.used == pytest.approx(3 * 4 / 3)
    list(task.batches(3, taught=False))
    assert task.used == pytest.approx(4 + 3)
    task.score(task.original)
    assert task.used == pytest.approx(7 + TINY.scored / TINY.recipe.batch / 3)
    steps = task.left_after(2)
    assert steps == int((TINY.passes - 7 - 3 * TINY.scored / TINY.recipe.batch / 3) * 3 / 4)
    task.fit(rival_task.vit(TINY, 4))
    assert TINY.passes - 4 / 3 < round(task.used, 6) <= TINY.passes


def test_batches_have_each_image_once_in_a_round(task):
    batches = task.batches(len(task.split.train.labels) // TINY.recipe.batch)
    images = torch.cat([images for images, _ in batches])
    assert len(images.flatten(1).unique(dim=0)) == len(images) == len(task.split.train.labels)


def example(task):
    """Say something
    on two lines."""
    # why
    width = task

    for _ in range(3):
        width += 1
    return width


def test_lines_are_those_of_the_body_that_hold_code():
    assert rival_methods.lines(example) == 4


def test_cells_of_a_missing_tool_are_left_out_and_a_second_run_does_nothing_again(tmp_path, monkeypatch, capsys):
    for tool in ("torch_pruning", "modelopt"):
        monkeypatch.setitem(sys.modules, tool, None)
    monkeypatch.setattr(rivals, "SMOKE", TINY._replace(sizes=(60,)))
    monkeypatch.setattr(sys, "argv", ["rivals.py", "--smoke", "--results", str(tmp_path), "--plan"])
    rivals.main()
    assert "7 cells" in capsys.readouterr().out
    assert not (tmp_path / "results.jsonl").exists()
    sys.argv.pop()
    rivals.main()
    printed = capsys.readouterr().out
    assert "torch-pruning/60/0: left out, torch_pruning is not installed" in printed
    assert "ModelOpt AutoNAS/60/0: left out, modelopt.torch is not installed" in printed
    results = store.read(tmp_path / "results.jsonl")
    assert list(results) == [
        "original/100/0",
        "original, trained on/100/0",
        "vitas.compress/60/0",
        "narrower, from scratch/60/0",
    ]
    found = results["vitas.compress/60/0"]
    network = torch.load(tmp_path / "weights" / "vitas.compress-60-0.pt", weights_only=False)
    assert found["network"]["mlp"] == [block.mlp.fc1.out_features for block in network.blocks]
    assert found["lines"] == rival_methods.lines(rival_methods.vitas_compress)
    content = (tmp_path / "results.jsonl").read_bytes()
    rivals.main()
    assert "3 cells" in capsys.readouterr().out
    assert (tmp_path / "results.jsonl").read_bytes() == content


def test_a_cell_gives_the_same_figures_again(tmp_path):
    split = data.stand_in(held_out=TINY.held_out)

    def run(cell, folder):
        figures = rivals.run(cell, TINY, split, folder)
        return json.dumps({name: value for name, value in figures.items() if not name.startswith("latency")})

    once, again = ([run(("original", 100, 0), tmp_path / f), run(("vitas.compress", 50, 0), tmp_path / f)] for f in "ab")
    assert once == again


def test_an_original_is_trained_again_where_its_weights_are_missing(tmp_path):
    split, cell = data.stand_in(held_out=TINY.held_out), ("narrower, from scratch", 50, 0)
    assert rivals.run(cell, TINY, split, tmp_path / "a") is None
    rivals.run(("original", 100, 0), TINY, split, tmp_path / "a")
    there = rivals.run(cell, TINY, split, tmp_path / "a")
    again = rivals.run(cell, TINY, split, tmp_path / "b", ["original/100/0"])
    busy = {"latency": 0, "latency_original": 0}
    assert {**there, **busy} == {**again, **busy}
    first, second = (torch.load(tmp_path / folder / "original-0.pt") for folder in "ab")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_table_has_means_over_seeds_and_says_what_is_out_of_reach():
    network = {"width": 8, "depth": 2, "heads": [1, 2], "head_dim": [4, 4], "mlp": [32, 32]}
    common = {"held_out": 0.5, "params": 2000, "passes": 7, "cpu": 90.0, "network": network}
    results = {
        "original/100/0": {**common, "macs": 4_000_000, "test": 0.9, "latency": 4.0, "latency_original": 4.0},
        "torch-pruning/50/0": {
            **common,
            "macs": 2_000_000,
            "test": 0.8,
            "latency": 3.0,
            "latency_original": 5.0,
            "lines": 9,
        },
        "torch-pruning/50/1": {
            **common,
            "macs": 1_000_000,
            "test": 0.6,
            "latency": 1.0,
            "latency_original": 4.0,
            "lines": 9,
        },
        "ModelOpt FastNAS/30/0": {"failed": "no", "cpu": 1.0},
        "ModelOpt FastNAS/50/1": {
            **common,
            "macs": 2_000_000,
            "test": 0.8,
            "latency": 3.0,
            "latency_original": 5.0,
            "lines": 9,
        },
        "ModelOpt FastNAS/50/0": {"failed": "no", "cpu": 1.0},
    }
    head, _, first, pruned, some, fast = (line.strip("| ").split(" | ") for line in rival_table.rivals(results).splitlines())
    assert dict(zip(head, first, strict=False))["multiply-adds"] == "4.0 M, 100 %"
    cells = dict(zip(head, pruned, strict=True))
    assert cells["network"] == "2 blocks of 8, 1-2 heads of 4, MLP 32"
    assert cells["multiply-adds"] == "1.5 M, 38 %"
    assert cells["test"] == "70.00 (80.00, 60.00)"
    assert cells["latency"] == "1.0 ms, 25 %"
    assert (cells["seeds"], cells["minutes"], cells["lines"]) == ("2", "1.5", "9")
    assert dict(zip(head, some, strict=True))["seeds"] == "1 of 2, others out of reach"
    assert fast[:4] == ["30 %", "ModelOpt FastNAS", "MLP of each block", "out of reach"]
    assert rival_table.rivals({}) == "Not there yet."


def test_the_page_shows_the_stored_figures():
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    results = store.read(ROOT / "docs" / "evidence" / "rivals.jsonl")
    assert page.split("<!-- rivals -->\n")[1].split("\n\n")[0] == rival_table.rivals(results)

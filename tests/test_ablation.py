"""The ablation: its statistics, its fairness between cells, and that a run can be repeated and resumed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vitas

pytest.importorskip("matplotlib")
stats = pytest.importorskip("scipy.stats")

pytestmark = pytest.mark.extras

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "ablation.py"
spec = importlib.util.spec_from_file_location("ablation", SCRIPT)
ablation = importlib.util.module_from_spec(spec)
sys.modules["ablation"] = ablation  # dataclasses look their module up
spec.loader.exec_module(ablation)

TINY = replace(ablation.SMOKE, passes=20, alone_passes=4, batch=8, test_images=20, networks=4, subnets=3)


# -- statistics


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 10, 1000])
def test_kendall_tau_equals_scipys_with_and_without_ties(seed, levels):
    rng = np.random.default_rng(seed)
    x = rng.integers(levels, size=25).astype(float)
    y = x + rng.integers(levels, size=25)
    assert ablation.kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_kendall_tau_of_resamples_is_that_of_the_repeated_networks():
    rng = np.random.default_rng(0)
    x, y = rng.integers(6, size=(2, 12)).astype(float)
    times = ablation.resamples(rng, 20, 12)
    expected = [stats.kendalltau(*(np.repeat(scores, row.astype(int)) for scores in (x, y))).statistic for row in times]
    np.testing.assert_allclose(ablation.kendall_tau(x, y, times), expected, atol=1e-12)


def test_kendall_tau_is_not_defined_where_all_tie():
    assert np.isnan(ablation.kendall_tau(np.ones(4), np.arange(4.0)))


def test_a_resample_keeps_the_number_and_spreads_as_theory_says():
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    times = ablation.resamples(rng, 20_000, 40)
    assert (times.sum(axis=1) == 40).all()
    means = times @ values / 40
    assert means.std() == pytest.approx(values.std() / 40**0.5, rel=0.03)
    one = ablation.estimate(values.mean(), means)
    assert one.low == pytest.approx(values.mean() - 1.96 * values.std() / 40**0.5, abs=0.02)
    assert one.high == pytest.approx(values.mean() + 1.96 * values.std() / 40**0.5, abs=0.02)


def synthetic(gain=0.0, seeds=3):
    """Two patterns; networks and seeds differ a lot, and cyclic is better by `gain` everywhere."""
    rng = np.random.default_rng(1)
    alone, random = rng.uniform(0.5, 0.9, 20), rng.uniform(0.3, 0.9, 10)
    cells = {}
    for seed, level in enumerate(rng.normal(0, 0.1, seeds)):
        noise = rng.normal(0, 0.05, 20)
        for pattern, better in (("ordinal", 0.0), ("cyclic", gain)):
            cells[f"{pattern}_uniform_weak_{seed}"] = {
                "loss": [2.0] * 10,
                "roughness": 0.1,
                "curve": [[0.1 + level + better] * 10] * 3,
                **dict.fromkeys(("smallest", "middle", "largest"), 0.5 + level + better),
                "alone": list(alone + noise + level + better),
                "random": list(random + level + better),
                "updates": [2, 3, 4] if pattern == "ordinal" else [3, 3, 3],
            }
    return {
        "settings": {"scale": 1},
        "alone": {"first": list(alone), "second": list(alone + 0.01), "macs": list(-alone)},
        "cells": cells,
    }


def test_differences_are_paired_over_seeds_and_networks():
    results = ablation.Results(synthetic(gain=0.02))
    differences = ablation.contrasts(results)["cyclic - ordinal"]
    for figure in ("random", "smallest", "middle", "largest"):
        # The same seeds and networks on both sides: what they have in common cancels, so the interval is a point.
        assert differences[figure] == pytest.approx((0.02, 0.02, 0.02), abs=1e-9)
        one = ablation.estimate(*getattr(results, figure)(("cyclic", "uniform", "weak")))
        assert one.high - one.low > 0.05
    assert differences["tau"] == pytest.approx((0, 0, 0), abs=1e-9)  # a gain that all share changes no ranking


def test_figures_of_known_records():
    results = ablation.Results(synthetic())
    assert results.ceiling().value == pytest.approx(1)
    assert results.ceiling(better_half=True).value == pytest.approx(1)
    assert results.agreement_of("macs").value == pytest.approx(-1)
    ordinal = ("ordinal", "uniform", "weak")
    assert results.update_ratio(ordinal) == 2
    assert results.falls(ordinal).value == 0
    curves = [figures["curve"][0][0] for figures in results.cells[ordinal]]
    assert results.spread(ordinal) == pytest.approx(np.std(curves, ddof=1))
    truth = results.alone.mean(axis=0)
    expected = np.mean([stats.kendalltau(row, truth).statistic for row in results.array(ordinal, "alone")])
    assert results.tau(ordinal).value == pytest.approx(expected)


def test_a_condition_that_is_not_finished_is_left_out():
    records = synthetic()
    del records["cells"]["cyclic_uniform_weak_2"]
    assert list(ablation.Results(records).cells) == [("ordinal", "uniform", "weak")]


# -- networks


def spaces():
    return {depth: vitas.search_space(ablation.build(TINY, 10, 1, "cyclic", depth)) for depth in ablation.DEPTHS}


def test_networks_are_distinct_and_dealt_out_evenly():
    space = spaces()["uniform"]
    networks = ablation.draw_networks(space, 32, seed=1)
    assert len(set(networks)) == 32
    for name, times in (("embed_dim", 4), ("depth", 8)):
        values, counts = np.unique([network[name] for network in networks], return_counts=True)
        assert tuple(values) == tuple(space.choices[name].values)
        assert (counts == times).all()
    assert networks == ablation.draw_networks(space, 32, seed=1)


def test_an_unshifted_cell_scores_the_same_networks():
    model = ablation.build(TINY, 10, 1, "ordinal", "uniform")
    free = ablation.build(TINY, 10, 1, "ordinal", "free")
    slots = set()
    for number, network in enumerate(ablation.draw_networks(vitas.search_space(model), 16, seed=1)):
        placed = ablation.place(network, vitas.search_space(free), number)
        slots.add(tuple(placed[f"blocks.use.{slot}"] for slot in range(4)))
        one, other = vitas.export_subnet(model, network), vitas.export_subnet(free, placed)
        assert [(name, p.shape) for name, p in one.named_parameters()] == [(n, p.shape) for n, p in other.named_parameters()]
    assert len(slots) > 6
    assert ablation.place(network, vitas.search_space(model), 3) is network


def test_depth_laws_have_the_same_mean_depth():
    shifted, uniform = (spaces()[depth].choices["depth"] for depth in ("shifted", "uniform"))
    means = [float(np.dot(choice.values, choice.p)) / sum(choice.p) for choice in (shifted, uniform)]
    assert means[0] == pytest.approx(means[1], abs=0.01)


# -- images


def test_warp():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(ablation.warp(images, 0, 0, 0, generator), images, atol=1e-5, rtol=0)
    assert (ablation.warp(images, 20, 0.2, 0.125, generator) - images).abs().amax(dim=(1, 2, 3)).min() > 0.1
    torch.testing.assert_close(ablation.warp(torch.ones(5, 3, 8, 8), 20, 0.2, 0.125, generator), torch.ones(5, 3, 8, 8))


@pytest.mark.parametrize("name", ablation.AUGMENTATIONS)
def test_augmentation_keeps_shapes_and_what_targets_sum_to(name):
    images, targets = torch.randn(200, 1, 8, 8), torch.eye(10).repeat(20, 1)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    first, second = (ablation.AUGMENT[name](images, targets, generator) for generator in generators)
    assert first.pixels.shape == images.shape
    assert first.pixels.isfinite().all()
    assert torch.equal(first.pixels, second.pixels)
    torch.testing.assert_close(first.labels.sum(dim=1), torch.ones(200))
    assert (first.labels.argmax(dim=1) == targets.argmax(dim=1)).all()
    assert (first.labels.amax(dim=1).mean() < 0.9) == (name == "strong")


def test_digits_are_split_once():
    train, test = ablation.load(ablation.QUICK)
    assert train.pixels.shape == (900, 1, 8, 8)
    assert test.pixels.shape == (800, 1, 8, 8)
    assert not {tuple(image.flatten().tolist()) for image in train.pixels} & {
        tuple(image.flatten().tolist()) for image in test.pixels
    }


# -- cells


@pytest.mark.parametrize("pattern", ["bilateral", "cyclic"])
def test_cells_make_equally_many_passes_and_count_updates(pattern, monkeypatch):
    passes, widths = [], []
    backward = ablation.backward

    def counted(model, *arguments, **options):
        passes.append(options)
        widths.append(model.embed_dim.channels())
        return backward(model, *arguments, **options)

    monkeypatch.setattr(ablation, "backward", counted)
    figures = ablation.train_cell(ablation.Cell(pattern, "shifted", "strong", 0), TINY)
    assert len(passes) == TINY.passes
    expected = np.bincount(np.concatenate(widths), minlength=48)
    assert figures["updates"] == expected[::6].tolist()
    assert (expected.reshape(8, 6) == expected[::6, None]).all()  # one figure for each step says all
    assert len(figures["scores"]) == 3 + TINY.networks + TINY.subnets
    assert all(0 <= accuracy <= 1 for accuracy in figures["scores"].values())


def test_a_folder_of_images_serves_as_well(tmp_path):
    pytest.importorskip("torchvision")
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for k in range(12):
            Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(tmp_path / name / f"{k}.png")
    settings = replace(TINY, data=str(tmp_path), img_size=16, patch_size=8, distort=0.0, train_images=14, test_images=10)
    train, test = ablation.load(settings)
    assert train.pixels.shape == (14, 3, 16, 16)
    assert test.pixels.shape == (10, 3, 16, 16)
    ablation.train_cell(ablation.Cell("cyclic", "uniform", "weak", 0), settings)


def test_a_run_with_other_settings_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(SystemExit, match="other settings"):
        ablation.train_all(tmp_path, TINY, ablation.Grid(1), workers=1)


# -- a run


def smoke(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(SCRIPT), "--smoke", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_smoke_runs_gives_the_same_figures_again_and_resumes(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    printed = smoke(first)
    names = {
        f"{name}.json"
        for name in ablation.jobs(ablation.SMOKE, ablation.Grid(2, patterns=("ordinal", "bilateral", "cyclic")))
    }
    assert len(names) == 12 + 3 * 3 * 2 * 2
    assert {file.name for file in (first / "cells").iterdir()} == names
    assert "Kendall tau between both trainings" in printed
    for name in ("ceiling", "tau", "curves", "updates"):
        assert (first / "report" / f"{name}.png").stat().st_size > 5000
    figures = json.loads((first / "report" / "results.json").read_text())
    assert len(figures["cells"]) == 36

    # Half of the second run is there already; the other half comes out the same.
    (second / "cells").mkdir(parents=True)
    kept = sorted(names)[::2]
    for name in kept:
        (second / "cells" / name).write_bytes((first / "cells" / name).read_bytes())
    assert f"{len(names)} trainings, {len(names) - len(kept)} to do" in smoke(second)
    for name in names:
        assert (second / "cells" / name).read_bytes() == (first / "cells" / name).read_bytes(), name
    assert json.loads((second / "report" / "results.json").read_text()) == figures


# -- the page


def test_the_page_shows_the_stored_figures():
    page = (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")
    for prefix, file, names in (("", "results", list(ablation.TABLES)), ("longer ", "longer", ["contrasts", "cells"])):
        records = json.loads((ROOT / "docs" / "ablation" / f"{file}.json").read_text(encoding="utf-8"))
        results = ablation.Results(records)
        assert len(results.seeds) == 3
        for name in names:
            shown = page.split(f"<!-- {prefix}{name} -->\n")[1].split("\n\n")[0]
            assert_same_but_for_the_last_digit(shown, ablation.TABLES[name](results))
    for name in ablation.PICTURES:
        assert f"](ablation/{name}.png)" in page
        assert (ROOT / "docs" / "ablation" / f"{name}.png").exists()


def assert_same_but_for_the_last_digit(shown, computed):
    """Another machine may round a figure that stands half way the other way, and with it an interval that ends at 0."""
    number = re.compile(r"-?\d+(?:\.\d+)?")
    words, expected = (number.sub("#", text.replace("**", "")) for text in (shown, computed))
    assert words == expected
    for one, other in zip(number.findall(shown), number.findall(computed), strict=True):
        digits = len(one.partition(".")[2])
        assert len(other.partition(".")[2]) == digits
        assert abs(float(one) - float(other)) <= 1.01 * 10**-digits, (one, other)

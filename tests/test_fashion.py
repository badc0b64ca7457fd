"""The study on Fashion-MNIST: its images and cells; a run is shared, resumed and repeated; the page shows its figures."""

import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import vitas

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "fashion"
sys.path.insert(0, str(FOLDER))

import cells  # noqa: E402
import data  # noqa: E402
import networks  # noqa: E402
import ranking  # noqa: E402
import store  # noqa: E402
import training  # noqa: E402
import work  # noqa: E402

# -- images


def idx(path, array, zipped=False):
    content = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if zipped else content)


def written(folder, zipped=False, train=50, test=20):
    """Write four files of random images and labels, and return the arrays."""
    rng, end, arrays = np.random.default_rng(0), ".gz" if zipped else "", {}
    for prefix, n in (("train", train), ("t10k", test)):
        arrays[prefix] = rng.integers(256, size=(n, 28, 28), dtype=np.uint8), rng.integers(10, size=n, dtype=np.uint8)
        idx(folder / f"{prefix}-images-idx3-ubyte{end}", arrays[prefix][0], zipped)
        idx(folder / f"{prefix}-labels-idx1-ubyte{end}", arrays[prefix][1], zipped)
    return arrays


def pairs(images):
    return sorted(
        (bytes(pixels.flatten().tolist()), int(label)) for pixels, label in zip(images.pixels, images.labels, strict=True)
    )


def test_zipped_and_plain_files_give_the_same_split_of_the_written_images(tmp_path):
    arrays = written(tmp_path / "zipped", zipped=True)
    written(tmp_path / "plain")
    splits = [data.load(tmp_path / name, held_out=12) for name in ("zipped", "plain")]
    for one, other in zip(*splits, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
    train, held_out, test = splits[0]
    assert [len(part.labels) for part in splits[0]] == [38, 12, 20]
    expected = sorted((image.tobytes(), int(label)) for image, label in zip(*arrays["train"], strict=True))
    assert sorted(pairs(train) + pairs(held_out)) == expected
    assert pairs(test) == sorted((image.tobytes(), int(label)) for image, label in zip(*arrays["t10k"], strict=True))


def test_training_images_are_standardised_and_others_alike(tmp_path):
    written(tmp_path)
    train, held_out, test = data.load(tmp_path, held_out=10)
    pixels, _ = train.batch(slice(None))
    assert pixels.shape == (40, 1, 28, 28)
    assert abs(float(pixels.mean())) < 1e-5
    assert abs(float(pixels.std(correction=0)) - 1) < 1e-5
    for part in (held_out, test):
        torch.testing.assert_close(part.batch(slice(3))[0], (part.pixels[:3].float() - train.mean) / train.std)
    assert [len(labels) for _, labels in train.batches(16)] == [16, 16, 8]


def spoil_images(change):
    def spoil(folder):
        path = folder / "train-images-idx3-ubyte"
        path.write_bytes(change(path.read_bytes()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), FileNotFoundError, "t10k-labels.*dataset-fashion-mnist"),
        (
            spoil_images(lambda c: c[:-1]),
            ValueError,
            r"images.*expected 39216 bytes for shape \(50, 28, 28\), got 39215",
        ),
        (spoil_images(lambda c: c + b"0"), ValueError, "expected 39216 bytes"),
        (spoil_images(lambda c: c[:9]), ValueError, "expected an idx file of bytes with 3 axes"),
        (spoil_images(lambda c: b"\x89PNG" + c[4:]), ValueError, "expected an idx file .* begins b'.x89PNG'"),
        (
            lambda f: idx(f / "train-labels-idx1-ubyte", np.full(50, 10, np.uint8)),
            ValueError,
            "expected labels below 10, got 10",
        ),
        (lambda f: idx(f / "train-labels-idx1-ubyte", np.zeros(49, np.uint8)), ValueError, "train: 49 labels do not fit"),
        (
            lambda f: idx(f / "t10k-images-idx3-ubyte", np.zeros((20, 8, 8), np.uint8)),
            ValueError,
            "test: 20 labels do not fit",
        ),
        (lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip"), ValueError, "gz: cannot be read"),
        (
            lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"0" * 99)[:-9]),
            ValueError,
            "gz: cannot be read",
        ),
    ],
)
def test_bad_files_are_refused(spoil, error, message, tmp_path):
    written(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        data.load(tmp_path, held_out=10)


def test_more_held_out_images_than_there_are_are_refused(tmp_path):
    written(tmp_path)
    with pytest.raises(ValueError, match="held_out: expected less than the 50 training images, got 50"):
        data.load(tmp_path, held_out=50)


# -- networks


def test_fixed_networks_are_distinct_and_of_the_cost_they_should_have():
    model = networks.superformer()
    counts = [vitas.count_flops(model, subnet).total for subnet in networks.ground_networks(6, 4)]
    assert len(set(networks.ground_networks(6, 4))) == 10
    assert all(networks.WINDOW[0] <= count <= networks.WINDOW[1] for count in counts[:6])
    for budget, family in itertools.product(networks.BUDGETS, networks.SPACES):
        model, drawn = networks.superformer(family=family), networks.in_budget(budget, 5, family)
        assert len(set(drawn)) == 5
        assert all(0.9 * budget <= vitas.count_flops(model, subnet).total <= budget for subnet in drawn)


@pytest.mark.parametrize("depth_and_patch", networks.HAND)
def test_a_scaling_by_hand_is_the_widest_inside_the_budget(depth_and_patch):
    depth, patch = depth_and_patch
    network = networks.by_hand(networks.BUDGETS[0], depth, patch)
    width = network.pos_embed.shape[2]
    assert len(network.blocks) == depth
    assert network.blocks[0].mlp.fc1.out_features == 4 * width
    counts = [vitas.count_flops(networks._deit(w, depth, patch)).total for w in (width, width + 2)]
    assert counts[0] <= networks.BUDGETS[0] < counts[1]
    assert vitas.count_flops(network, inputs=torch.zeros(1, 1, 28, 28)).total == counts[0]


@pytest.mark.parametrize("depths", networks.TWINS_HAND)
def test_a_twins_scaled_by_hand_is_the_widest_inside_the_budget(depths):
    network = networks.by_hand(networks.BUDGETS[1], *depths, family="twins")
    assert tuple(len(stage) for stage in network.blocks) == depths
    narrow, wide = (stage[0].norm1.weight.numel() for stage in network.blocks)
    assert wide == 2 * narrow
    counts = [vitas.count_flops(networks._twins(w, *depths)).total for w in (narrow, narrow + 2)]
    assert counts[0] <= networks.BUDGETS[1] < counts[1]
    assert vitas.count_flops(network, inputs=torch.zeros(1, 1, 28, 28)).total == counts[0]


@pytest.mark.parametrize("sharing", networks.SHARING)
def test_private_norms_are_exported_and_counted_as_they_run(sharing):
    model = networks.superformer(sharing, "private").double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    for subnet in networks.random_networks(4):
        with vitas.use_subnet(model, subnet):
            outputs, plain = model(images), vitas.export_subnet(model)
        torch.testing.assert_close(plain(images), outputs, rtol=1e-12, atol=1e-12)
        assert sum(p.numel() for p in plain.parameters()) == vitas.count_params(model, subnet)
    norms = [name for name, _ in model.named_parameters() if ".norm1." in name]
    assert len(norms) == 8 * 4 * 2  # blocks, widths, gain and bias


# -- training


def passes(regime, monkeypatch, steps=4):
    """Return the subnets that ran in each step, and the labels or teachers that they learned from."""
    model, seen = networks.superformer(), []
    forward, taught = type(model).forward, []
    monkeypatch.setattr(type(model), "forward", lambda self, x: seen.append(vitas.active_subnet(self)) or forward(self, x))
    loss_of = vitas.train.distill_loss
    monkeypatch.setattr(vitas.train, "distill_loss", lambda *outputs: taught.append(len(seen)) or loss_of(*outputs))
    training.train(model, data.stand_in().train, steps, 0, training.shared(model, regime, 0), training.Recipe(batch=4))
    each = training.PASSES[regime]
    assert len(seen) == steps * each
    return [seen[k : k + each] for k in range(0, len(seen), each)], taught


def is_end(subnet, end):
    values = getattr(vitas.search_space(networks.superformer()), end)()
    return all(subnet[name] == value for name, value in values.items() if name != "patch_size")


@pytest.mark.parametrize(("regime", "smallest", "largest"), [("sandwich", 0, 3), ("taught", 1, 0)])
def test_the_ends_of_a_sandwich_have_each_patch_size_in_turn(regime, smallest, largest, monkeypatch):
    steps, taught = passes(regime, monkeypatch)
    for number, step in enumerate(steps):
        assert is_end(step[smallest], "smallest")
        assert is_end(step[largest], "largest")
        assert step[smallest]["patch_size"] == step[largest]["patch_size"] == (4, 7)[number % 2]
    assert len({subnet for step in steps for subnet in step[2:3]}) > 1
    assert len(taught) == (12 if regime == "taught" else 0)  # all but the largest


def test_single_makes_one_random_pass_a_step(monkeypatch):
    steps, taught = passes("single", monkeypatch)
    assert len({step[0] for step in steps}) == 4
    assert not taught


def test_a_loss_that_is_no_number_ends_a_training():
    model = networks.plain(networks.ground_networks(1, 1)[1])
    with pytest.raises(FloatingPointError, match="step 0: the loss is nan"):
        training.train(
            model, data.stand_in().train, 2, 0, lambda step, images, labels: float("nan"), training.Recipe(batch=4)
        )


def test_gradients_of_all_passes_of_a_step_add_up():
    model, images, labels = networks.superformer(), *data.stand_in().train.batch(slice(8))
    training.shared(model, "sandwich", 3)(0, images, labels)
    summed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sampler = vitas.SubnetSampler(model, seed=3)
    for number, subnet in enumerate(list(vitas.train.sandwich(model, step=0, sampler=sampler))):
        vitas.activate_subnet(model, {**subnet, "patch_size": 4} if number in (0, 3) else subnet)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name not in summed)
        if name in summed:
            torch.testing.assert_close(parameter.grad, summed[name], rtol=1e-5, atol=1e-7)


# -- cells


def test_the_full_study_has_each_cell_once_the_truth_first():
    every = cells.ordered(cells.FULL)
    assert len({cell.name for cell in every}) == len(every)
    assert [cell.name for cell in every[:24]] == [f"ground/{number}/0" for number in range(24)]
    counts = {part: sum(cell.part == part for cell in every) for part in work.PARTS}
    headline = 3 * ((6 + 8 + 1) + 2 * 4 + (3 + 8 + 1) + 2 * 3)
    scores = 2 * 3 * 6 * 2 * 3
    assert counts == {"ground": 48, "scores": scores, "superformer": 1, "measures": 3, "search": 6, "headline": headline}


@pytest.mark.parametrize("name", ["ground/1/0", "scores/short/taught/inside/private/0", "headline/1000000/hand-3-7/0"])
def test_a_cell_gives_the_same_figures_again(name, tmp_path):
    cell = next(cell for cell in cells.ordered(cells.FULL) if cell.name == name)
    once, again = (work.run(cell, cells.SMOKE, {}, tmp_path / str(number)) for number in range(2))
    assert json.dumps(once) == json.dumps(again)
    other = work.run(cell._replace(seed=1), cells.SMOKE, {}, tmp_path / "other")
    assert other["loss"] != once["loss"]


def test_cells_wait_for_those_that_they_need(tmp_path):
    headlines = [("1000000", "found"), ("1000000", "random"), ("1000000", "found", "twins"), ("1000000", "hand", "twins")]
    others = [("search", ("1000000",)), ("search", ("1000000", "twins")), ("superformer", ("twins",))]
    for part, what in [*others, *(("headline", what) for what in headlines)]:
        cell = cells.Cell(part, what, 0)
        assert work.run(cell, cells.SMOKE, {}, tmp_path) is None


def known_truth():
    """Return results by which the rule picks the superformer of ordinal sharing."""
    number, known = cells.SMOKE.inside + cells.SMOKE.others, {}
    for n, seed in itertools.product(range(number), range(2)):
        known[f"ground/{n}/{seed}"] = {"accuracy": n / 10}
    for length, regime, sharing in itertools.product(("short", "long"), training.PASSES, ("ordinal", "cyclic", "inside")):
        known[f"scores/{length}/{regime}/{sharing}/shared/0"] = {"ground": [n / 10 for n in range(number)]}
    return known


@pytest.mark.extras  # Optuna
@pytest.mark.parametrize(
    ("what", "trained"), [((), "scores-long-single-ordinal-shared-0"), (("twins",), "superformer-twins-0")], ids=str
)
def test_a_search_trains_the_superformer_again_where_its_weights_are_missing(what, trained, tmp_path):
    known, cell = {**known_truth(), "superformer/twins/0": {}}, cells.Cell("search", ("2000000", *what), 0)
    without, weights = work.run(cell, cells.SMOKE, known, tmp_path), sorted(tmp_path.iterdir())
    assert [file.stem for file in weights] == [trained]
    assert json.dumps(work.run(cell, cells.SMOKE, known, tmp_path)) == json.dumps(without)
    model = networks.superformer(family=cell.family)
    assert 1_800_000 <= vitas.count_flops(model, without["network"]).total <= 2_000_000


def test_another_family_is_trained_as_the_chosen_superformer_and_scores_random_networks(tmp_path):
    figures = work.run(cells.Cell("superformer", ("twins",), 0), cells.SMOKE, known_truth(), tmp_path)
    assert figures["as"] == "scores/long/single/ordinal/shared/0"
    assert {budget: len(scores) for budget, scores in figures["inherited"].items()} == {
        str(budget): cells.SMOKE.candidates for budget in networks.BUDGETS
    }
    model = networks.superformer(family="twins")
    vitas.load_superformer(model, tmp_path / "superformer-twins-0.safetensors")
    with vitas.use_subnet(model, networks.in_budget(1_000_000, cells.SMOKE.candidates, "twins")[1]):
        held_out = data.images(cells.SMOKE.data, cells.SMOKE.held_out).held_out
        assert vitas.accuracy(held_out.batches())(model) == figures["inherited"]["1000000"][1]


@pytest.mark.extras
def test_the_right_images_are_kept_one_a_bit():
    pytest.importorskip("scipy")
    import headline

    right = torch.rand(10_000) < 0.8
    assert (headline.right({"right": work.packed(right)}) == right.numpy()).all()


def test_the_superformer_that_ranks_best_over_both_lengths_is_chosen():
    truth = [0.7, 0.8, 0.9, 0.85]
    results = {f"ground/{k}/{seed}": {"accuracy": a + 0.01 * seed} for k, a in enumerate(truth) for seed in range(2)}
    assert ranking.ground_truth(results) == pytest.approx([a + 0.005 for a in truth])
    for length in ("short", "long"):
        for regime in training.PASSES:
            for sharing in ("ordinal", "cyclic", "inside"):
                results[f"scores/{length}/{regime}/{sharing}/shared/0"] = {"ground": [0.4, 0.3, 0.2, 0.1]}
    results["scores/short/single/cyclic/shared/0"] = {"ground": [0.1, 0.2, 0.4, 0.3]}
    results["scores/long/single/ordinal/shared/0"] = {"ground": [0.1, 0.3, 0.2, 0.4]}
    results["scores/long/taught/inside/shared/0"] = {"ground": truth}  # the rule looks at single subnets only
    assert ranking.chosen_superformer(results) == "scores/long/single/cyclic/shared/0"
    del results["scores/long/taught/inside/shared/0"]
    assert ranking.chosen_superformer(results) == "scores/long/single/cyclic/shared/0"
    del results["scores/short/single/inside/shared/0"]
    assert ranking.chosen_superformer(results) is None


# -- results


def test_a_line_that_a_kill_cut_is_done_again_and_other_damage_is_refused(tmp_path):
    kept = store.Store(tmp_path, {"a": 1})
    kept.add("one", accuracy=0.5)
    kept.add("two", accuracy=0.25)
    content = kept.file.read_bytes()
    kept.file.write_bytes(content[:-5])
    assert kept.read() == {"one": {"accuracy": 0.5}}
    kept.add("two", accuracy=0.125)
    assert kept.read() == {"one": {"accuracy": 0.5}, "two": {"accuracy": 0.125}}
    for damage in (b"\x00\x00\n", b"[1]\n", b'{"accuracy": 1}\n', b'"text"\n'):
        kept.file.write_bytes(damage + content)
        with pytest.raises(SystemExit, match="line 1 is no result"):
            kept.read()


def test_a_cell_is_claimed_once_and_again_when_its_process_let_go(tmp_path):
    first, second = store.Store(tmp_path, {}), store.Store(tmp_path, {})
    with first.claim("a/b") as mine:
        assert mine
        with second.claim("a/b") as theirs:
            assert not theirs
        with second.claim("a/c") as theirs:
            assert theirs
    with second.claim("a/b") as mine:
        assert mine
        second.add("a/b")
    with first.claim("a/b") as mine:
        assert not mine


def test_results_of_other_settings_are_refused(tmp_path):
    store.Store(tmp_path, {"long": 1})
    store.Store(tmp_path, {"long": 1})
    with pytest.raises(SystemExit, match="holds results of other settings"):
        store.Store(tmp_path, {"long": 2})


# -- the command


def started(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "study.py"), "--smoke", "--results", str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(process):
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return printed


def names(folder):
    return [json.loads(line)["cell"] for line in (folder / "results.jsonl").read_text().splitlines()]


def figures(folder):
    """Return what was measured, without the seconds that it took."""
    return {name: {**f, "seconds": 0, "cpu": 0} for name, f in store.read(folder / "results.jsonl").items()}


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_two_processes_share_the_cells_and_a_killed_one_goes_on(tmp_path):
    shared = [started(tmp_path / "shared", "--parts", "ground") for _ in range(2)]
    for process in shared:
        finished(process)
    expected = [cell.name for cell in cells.ordered(cells.SMOKE) if cell.part == "ground"]
    assert sorted(names(tmp_path / "shared")) == sorted(expected)

    killed, file = started(tmp_path / "killed", "--parts", "ground"), tmp_path / "killed" / "results.jsonl"
    while not file.exists() or not file.read_bytes():
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = names(tmp_path / "killed")
    finished(started(tmp_path / "killed", "--parts", "ground"))
    assert names(tmp_path / "killed") == expected
    assert names(tmp_path / "killed")[: len(before)] == before
    assert figures(tmp_path / "killed") == figures(tmp_path / "shared")


def test_a_plan_says_what_is_left_and_does_nothing(tmp_path):
    printed = finished(started(tmp_path, "--plan", "--parts", "ground", "search"))
    assert [line.split()[:2] for line in printed.splitlines()] == [["8", "ground"], ["6", "search"], ["14", "in"]]
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.extras
@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_smoke_does_every_cell_and_tables_and_pictures_are_made_of_them(tmp_path):
    pytest.importorskip("optuna")
    import figures as report

    finished(started(tmp_path))
    assert sorted(names(tmp_path)) == sorted(cell.name for cell in cells.ordered(cells.SMOKE))
    results = store.read(tmp_path / "results.jsonl")
    for name, table in report.TABLES.items():
        assert table(results).startswith("| "), name
    for name, picture in report.PICTURES.items():
        picture(results).savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


# -- tables


def made_up(seed=0):
    """Ground networks whose truth is known, and two superformers of which one ranks as the truth does."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.8, 0.9, 12)
    results = {}
    for k, accuracy in enumerate(truth):
        macs = 2_000_000 + k if k < 8 else 3_000_000 + k
        results |= {f"ground/{k}/{s}": {"accuracy": accuracy + 0.001 * s, "macs": macs} for s in range(2)}
    other = {"random": list(rng.uniform(0.6, 0.7, 20)), "smallest-7": 0.5, "largest-4": 0.75}
    for sharing, scores in (("ordinal", truth - 0.1), ("cyclic", rng.uniform(0.6, 0.7, 12))):
        for s in range(2):
            results[f"scores/short/single/{sharing}/shared/{s}"] = {"ground": list(scores), **other}
    return results, truth


@pytest.mark.extras
def test_tables_say_what_is_known_of_made_up_results():
    pytest.importorskip("matplotlib")
    stats = pytest.importorskip("scipy.stats")
    import tables

    results, truth = made_up()
    first = tables.ground(results).splitlines()[2].split(" | ")
    assert first[:2] == ["| all", "12"]
    assert first[4:6] == ["0.07", "1.00 [1.00, 1.00]"]  # 0.001 over the root of 2, in points
    assert {name: len(chosen) for name, chosen in tables.groups(results).items()} == {
        "all": 12,
        "one cost": 8,
        "its better half": 4,
    }
    assert set(tables.groups(results)["its better half"]) == set(np.argsort(-truth[:8])[:4])
    random = results["scores/short/single/cyclic/shared/0"]["ground"]
    lines = [line.strip("| ").split(" | ") for line in tables.scores(results).splitlines()]
    column = lines[0].index("tau, all")
    assert [line[2] for line in lines[2:]] == ["ordinal", "cyclic"]
    assert lines[2][column : column + 3] == ["1.00"] * 3
    assert float(lines[3][column]) == pytest.approx(stats.kendalltau(random, truth).statistic, abs=0.006)
    assert float(lines[3][lines[0].index("sd")]) == pytest.approx(
        100 * np.std(results["scores/short/single/cyclic/shared/0"]["random"], ddof=1), abs=0.06
    )
    difference = tables.contrasts(results).splitlines()[2].split(" | ")
    assert difference[:3] == ["| cyclic - ordinal", "2", "0.00 (0.00 to 0.00)"]


@pytest.mark.extras
def test_scores_by_the_loss_rank_as_the_smaller_the_better():
    pytest.importorskip("matplotlib")
    stats = pytest.importorskip("scipy.stats")
    import measures

    results, truth = made_up()
    noise = np.random.default_rng(1).normal(size=(12, 10))
    parts = {"accuracy": truth[:, None] + 0.02 * noise, "loss": 1 - truth[:, None] + 0.0 * noise}
    results["measures/cyclic/0"] = {name: scores.tolist() for name, scores in parts.items()}
    head, _, accuracy, loss = [line.strip("| ").split(" | ") for line in measures.table(results).splitlines()]
    assert head[:4] == ["cyclic", "scored by", "all, 5000 images", "all, 500 images"]
    assert loss[:4] == ["cyclic", "loss", "1.00", "1.00 (1.00 to 1.00)"]
    taus = [stats.kendalltau(parts["accuracy"][:, part], truth).statistic for part in range(10)]
    assert accuracy[3] == f"{np.mean(taus):.2f} ({min(taus):.2f} to {max(taus):.2f})"
    assert accuracy[2] == f"{stats.kendalltau(parts['accuracy'].mean(1), truth).statistic:.2f}"


def test_a_part_of_the_images_is_scored_by_both_measures(tmp_path):
    import measures

    name = "scores/long/single/ordinal/shared/0"
    cell = next(cell for cell in cells.ordered(cells.SMOKE) if cell.name == "measures/ordinal/0")
    assert work.run(cell, cells.SMOKE, {}, tmp_path) is None
    trained = next(cell for cell in cells.ordered(cells.SMOKE) if cell.name == name)
    results = {name: work.run(trained, cells.SMOKE, {}, tmp_path)}
    found = work.run(cell, cells.SMOKE, results, tmp_path)
    assert [np.shape(found[what]) for what in measures.OF] == [(4, 10), (4, 10)]
    whole = np.mean(found["accuracy"], axis=1)  # ten parts of six images each
    assert whole.tolist() == pytest.approx(results[name]["ground"])
    model = networks.superformer("ordinal")
    vitas.load_superformer(model, next(tmp_path.iterdir()))
    images, labels = data.images("", cells.SMOKE.held_out).held_out.batch(slice(6, 12))
    with vitas.use_subnet(model, networks.ground_networks(2, 2)[3]), torch.no_grad():
        logits = model.eval()(images)
    assert found["loss"][3][1] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels.long()).item(), rel=1e-5)
    for file in tmp_path.iterdir():
        file.unlink()
    assert work.run(cell, cells.SMOKE, results, tmp_path) == found  # trained again where the weights are missing


@pytest.mark.extras
@pytest.mark.parametrize(("family", "best"), [("deit", "hand-3-7"), ("twins", "hand-2-10")])
def test_further_seeds_train_the_best_of_a_kind_and_count_as_its_trainings(family, best, tmp_path):
    pytest.importorskip("scipy")
    import headline

    tag = () if family == "deit" else (family,)
    again = cells.Cell("headline", ("1000000", "hand", *tag), 1)
    names = [f"hand-{what}" for what in networks.rivals("hand", 8, family)]
    first = {name: cells.Cell("headline", ("1000000", name, *tag), 0).name for name in names}
    results = {cell: {"held_out": 0.5, "test": 0.9} for cell in first.values()}
    results[first[best]] = {"held_out": 0.6, "test": 0.1}
    assert work.run(again, cells.SMOKE, dict(list(results.items())[1:]), tmp_path) is None
    results[again.name] = work.run(again, cells.SMOKE, results, tmp_path)
    assert results[again.name]["which"] == best
    every = headline.trained(results, 1_000_000, family)
    assert {name: len(runs) for name, runs in every.items()} == {**dict.fromkeys(names, 1), best: 2}
    called = headline.rivals(every)
    assert called == {"hand-12-7": "12 blocks, patch 7", best: "best scaling by hand"} if tag == () else {best: called[best]}
    other = next(name for name in headline.FAMILIES if name != family)
    assert headline.trained(results, 1_000_000, other) == {}


@pytest.mark.extras
def test_the_last_table_compares_every_rival_with_both_found_networks():
    pytest.importorskip("scipy")
    import headline

    rng, results = np.random.default_rng(0), {}
    rights = {"found": 0.8, "hand-12-7": 0.7, "found/twins": 0.9, "hand-2-2/twins": 0.85}
    for name, share in rights.items():
        right = work.packed(torch.from_numpy(np.arange(1000) < 1000 * share))
        figures = {"held_out": share, "test": share, "macs": 950_000, "right": right}
        results[f"headline/1000000/{name}/0"] = figures
    results["headline/1000000/found/1"] = results["headline/1000000/found/0"]
    for place, score in enumerate(rng.permutation(4) / 10):
        figures = {"held_out": score, "test": score, "macs": -score, "right": right}
        results[f"headline/1000000/random-{place}/twins/0"] = figures
    results["superformer/twins/0"] = {"inherited": {"1000000": [r["held_out"] for n, r in results.items() if "random" in n]}}
    lines = [line.strip("| ").split(" | ") for line in headline.headline(results).splitlines()]
    shown = {f"{line[1]}: {line[2]}": [float(cell.split()[0]) for cell in line[6:] if cell.split()] for line in lines[2:]}
    assert shown["DeiT: 12 blocks, patch 7, best scaling by hand"] == pytest.approx([10, 20])
    assert shown["DeiT: found"] == pytest.approx([10])
    assert shown["Twins: best scaling by hand: 2 + 2 blocks"] == pytest.approx([5])
    assert lines[-1][2:6] == ["median of 4 random networks", "", "1", "15.00"]
    assert headline.inherited(results).splitlines()[2].startswith("| 1 M | 4 | 12.91 | 1.00 [")
    assert " | -1.00 [" in headline.inherited(results)


@pytest.mark.extras
def test_the_interval_of_a_difference_is_paired_over_images_and_pools_the_spread_of_seeds():
    pytest.importorskip("scipy")
    import headline

    rng = np.random.default_rng(0)
    base = rng.random(2000) < 0.8
    better = base.copy()
    better[np.flatnonzero(~base)[:40]] = True
    runs = [[{"right": work.packed(torch.from_numpy(right))}] * 3 for right in (better, base)]
    value, low, high = headline.difference(*runs, headline.Spread(0.0, 1_000_000))
    assert value == pytest.approx(2.0)
    error = (0.02 * 0.98 / 1999) ** 0.5  # unpaired: four times as much
    assert (low, high) == pytest.approx((2 - 196 * error, 2 + 196 * error), abs=1e-3)
    _, low, high = headline.difference(runs[0][:1], runs[1], headline.Spread(0.01, 4))  # t of 4: 2.776
    error = (error**2 + 0.01**2 * (1 + 1 / 3)) ** 0.5
    assert (low, high) == pytest.approx((2 - 277.6 * error, 2 + 277.6 * error), abs=1e-3)


@pytest.mark.extras
def test_the_spread_of_seeds_is_pooled_and_intervals_cover_the_truth():
    pytest.importorskip("scipy")
    import headline

    rng, covered, runs = np.random.default_rng(1), 0, 200
    chances = np.clip(rng.normal(0.85, 0.3, 400), 0, 1)  # an image is easy or hard for both networks
    for _ in range(runs):
        results = {}
        images = rng.choice(chances, 400)
        for name, trainings in (("found", 3), ("hand-12-7", 1), ("random-0", 3)):
            for seed in range(trainings):
                hits = rng.random(400) < np.clip(images + rng.normal(0, 0.02), 0, 1)
                kept = {"held_out": 0.0, "macs": 1, "right": work.packed(torch.from_numpy(hits)), "test": hits.mean()}
                results[f"headline/1000000/{name}/{seed}"] = kept
        between, every = headline.spread(results), headline.trained(results, 1_000_000)
        assert between.freedom == 4
        _, low, high = headline.difference(every["found"], every["hand-12-7"], between)
        covered += low <= 0 <= high
    assert covered >= 0.92 * runs


def test_tau_is_not_defined_where_all_tie():
    import tables

    assert tables.tau_with_interval([1.0, 1.0], [0.0, 1.0]) == "nan [nan, nan]"


@pytest.mark.extras
def test_the_page_shows_the_stored_figures():
    pytest.importorskip("matplotlib")
    import figures as report

    from tests.test_ablation import assert_same_but_for_the_last_digit

    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    results = store.read(ROOT / "docs" / "evidence" / "results.jsonl")
    for name, table in report.TABLES.items():
        shown = page.split(f"<!-- {name} -->\n")[1].split("\n\n")[0]
        assert_same_but_for_the_last_digit(shown, table(results))
    for name in report.PICTURES:
        assert f"](evidence/{name}.png)" in page
        assert (ROOT / "docs" / "evidence" / f"{name}.png").exists()


@pytest.mark.extras
def test_the_readme_says_what_was_measured_at_one_million_multiply_adds():
    pytest.importorskip("scipy")
    import headline

    results = store.read(ROOT / "docs" / "evidence" / "results.jsonl")
    deit, twins = (headline.trained(results, 1_000_000, family) for family in headline.FAMILIES)
    found, hand = twins["found"], deit[headline.picked(deit, "hand")]
    gain, low, high = headline.difference(found, hand, headline.spread(results))
    said = [f"{100 * headline.mean(found, 'test'):.1f} %", f"by hand {100 * headline.mean(hand, 'test'):.1f} %"]
    said += [f"{gain:.1f} points more", f"{low:.1f} to {high:.1f}"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [words for words in said if words not in readme] == []
    assert f"{gain:.1f} points" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")

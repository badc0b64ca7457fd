"""The ImageNet script for real, on a small generated folder of images, with two processes."""

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import vitas

pytestmark = [pytest.mark.heavy, pytest.mark.extras]
pytest.importorskip("timm")
pytest.importorskip("optuna")
Image = pytest.importorskip("PIL.Image")

SCRIPT = Path(__file__).parent.parent / "examples" / "train_imagenet.py"
SPACE = ["--model", "deit_micro", "--img-size", "64", "--set", "patch_size=[8,16]", "--set", "depth=[1,2,3]"]
TRAINING = ["--epochs", "4", "--warmup-epochs", "1", "--batch-size", "12", "--workers", "0"]
TRAINING += ["--checkpoint-every", "5", "--log-every", "5", "--amp", "bf16", "--ema-decay", "0.9"]
LAW = ["--hold-out", "4", "--mean-flops", "3.5e6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes of noisy 64-pixel images: a bright bar at the top, in the middle or at the bottom."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for split, number in (("train", 44), ("val", 8)):
        for label, name in enumerate(("bottom", "middle", "top")):
            (folder / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = random.integers(0, 120, (64, 64, 3))
                pixels[(2 - label) * 21 : (2 - label) * 21 + 21] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


def command(*arguments, ranks=2):
    launch = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks)]
    return [sys.executable, *(launch if ranks > 1 else []), str(SCRIPT), *map(str, arguments)]


@pytest.mark.parametrize(
    ("epochs", "warm_up"), [([], 5), (["--epochs", "300"], 5), (["--epochs", "2"], 1), (["--epochs", "1"], 0)]
)
def test_the_warm_up_fits_a_training_of_any_length(monkeypatch, epochs, warm_up):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script = importlib.import_module("train_imagenet")
    parser = script.arguments()
    given = ["superformer", "--data", "images", "--output", "run", *epochs]
    assert script.recipe_of(parser.parse_args(given)).warmup_epochs == warm_up
    assert script.recipe_of(parser.parse_args([*given, "--warmup-epochs", "0"])).warmup_epochs == 0


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}


def run(*arguments, ranks=2, seconds=1200):
    """Run the script; return its exit code and all that it printed."""
    done = subprocess.run(
        command(*arguments, ranks=ranks),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    return done.returncode, done.stdout


def run_and_kill(output, *arguments, seconds=1200):
    """Run the script until it has written its second checkpoint, then kill all its processes."""
    job = subprocess.Popen(command(*arguments), env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + seconds
    try:
        while max(steps(output), default=0) < 10:
            assert job.poll() is None, "ended before it could be killed"
            assert time.monotonic() < end, "no checkpoint"
            time.sleep(0.02)
    finally:
        for pid in [*children(job.pid), job.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        job.wait()


def steps(output):
    """Return the steps of the checkpoints that are complete."""
    names = [path.name[5:] for path in (output / "checkpoints").glob("step-*")]
    return [int(name) for name in names if name.isdigit()]


def children(parent):
    """Return the processes that `parent` started: torchrun gives each rank a session of its own."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # one that has just ended
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(status.parent.name)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A superformer trained without a break."""
    output = tmp_path_factory.mktemp("unbroken")
    code, said = run("superformer", "--data", data, "--output", output, *LAW, *SPACE, *TRAINING)
    assert code == 0, said
    assert "smallest" in said  # the report
    return output


def assert_same_weights(one, other):
    a, b = load_file(one), load_file(other)
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert tensor.isfinite().all()
        assert (tensor == b[name]).all(), name


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(data, trained, tmp_path):
    arguments = ["superformer", "--data", data, "--output", tmp_path, *LAW, *SPACE, *TRAINING]
    run_and_kill(tmp_path, *arguments)
    left = max(steps(tmp_path))
    assert 10 <= left < 35
    assert not (tmp_path / "superformer.safetensors").exists()

    changed = {"recipe": ["--epochs", "5"], "set": ["--set", "embed_dim=[32,96]"], "ranks": []}
    for name, options in changed.items():
        code, said = run(*arguments, *options, ranks=1)
        assert code == 1
        assert f"cannot go on: {name} was" in said
    assert "cannot go on: ranks was 2 and is 1 now; choose another --output" in said

    code, said = run(*arguments, "--workers", "1")  # how many processes read images changes nothing
    assert code == 0, said
    assert [line.split()[1] for line in said.splitlines() if line.startswith("step")] == [
        f"{step}/40" for step in range(left + 5, 41, 5)
    ]
    assert_same_weights(tmp_path / "superformer.safetensors", trained / "superformer.safetensors")
    for name in ("model", "ema", "optimizer"):
        paths = [folder / "checkpoints" / "step-40" / f"{name}.safetensors" for folder in (tmp_path, trained)]
        assert_same_weights(*paths)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-40"]


def rank_of(pid):
    """Return the rank of a process that torchrun started; None for others."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)


def test_a_rank_that_is_stopped_ends_the_run_and_is_named(data, tmp_path):
    arguments = ["superformer", "--data", data, "--output", tmp_path / "run", *LAW, *SPACE, *TRAINING]
    arguments += ["--epochs", "2000", "--timeout", "40"]
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen(command(*arguments), env=ENVIRONMENT, stdout=said, stderr=said)
        try:
            end = time.monotonic() + 600
            while max(steps(tmp_path / "run"), default=0) < 5:
                assert job.poll() is None, "ended before a rank could be stopped"
                assert time.monotonic() < end, "no checkpoint"
                time.sleep(0.1)
            (stopped,) = (pid for pid in children(job.pid) if rank_of(pid) == 1)
            os.kill(stopped, signal.SIGSTOP)
            assert job.wait(timeout=600) != 0
        finally:
            if job.poll() is None:
                for pid in [*children(job.pid), job.pid]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            job.wait()
    text = (tmp_path / "said").read_text()
    assert re.search(rf"rank 1 \(process {stopped} on .*\) was last heard of 20 s ago, in step \d+; rank 0 is in step", text)
    assert "goes on from the last checkpoint, --timeout says how long ranks wait" in text
    assert "imed out" not in text  # the process group's own timeout, twice as long, was not waited for


def test_search_retrain_and_test(data, trained, tmp_path):
    model = vitas.create_superformer("deit_micro", num_classes=3, img_size=64, patch_size=[8, 16], depth=[1, 2, 3])
    largest = vitas.count_flops(model, vitas.search_space(model).largest()).total
    best = tmp_path / "best.json"
    options = ["--output", tmp_path, "--weights", trained / "superformer.safetensors", "--flops", 0, largest // 2]
    options += ["--hold-out", "4", "--workers", "0", "--population", 6, "--generations", 2]
    code, said = run("search", "--data", data, *options, *SPACE, ranks=1)
    assert code == 0, said
    subnet = vitas.Subnet.from_json(best.read_text())
    assert vitas.count_flops(model, subnet).total <= largest // 2

    output = tmp_path / "retrained"
    code, said = run("retrain", "--data", data, "--output", output, "--subnet", best, *SPACE, *TRAINING, "--epochs", "8")
    assert code == 0, said
    network = vitas.load_subnet(output / "network")
    assert sum(parameter.numel() for parameter in network.parameters()) == vitas.count_params(model, subnet)

    options = ["--network", output / "network", "--img-size", "64", "--workers", "0"]
    code, said = run("test", "--data", data, *options, ranks=1)
    assert code == 0, said
    assert float(said.split("accuracy ")[1].split("%")[0]) > 50  # of three classes
    assert json.loads(best.read_text())

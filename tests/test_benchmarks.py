"""The GPU benchmark cannot run everywhere; its code can."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "benchmarks" / "gpu.py"


def run(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent.parent)}
    return subprocess.run([sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.heavy
def test_the_gpu_benchmark_runs_with_a_tiny_model_on_the_cpu():
    done = run("--smoke")
    assert done.returncode == 0, done.stderr
    assert "these are no measurements" in done.stdout
    assert "deit_micro: medians of 2 subnets: eager" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = run()
    assert done.returncode == 1
    assert "no CUDA device here: this benchmark needs a GPU" in done.stderr

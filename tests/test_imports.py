"""The tree is layered, and importing vitas is cheap."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitas

PACKAGE = Path(vitas.__file__).parent

# In reading order: a file imports only from those above it.
ORDER = [
    "vitas.errors",
    "vitas.sharing",
    "vitas.slicing",
    "vitas.choice",
    "vitas.subnet",
    "vitas.walk",
    "vitas.space",
    "vitas.plain",
    "vitas.cost",
    "vitas.nn.base",
    "vitas.nn.private",
    "vitas.nn.linear",
    "vitas.nn.norm",
    "vitas.nn.conv",
    "vitas.nn.attention",
    "vitas.nn.window",
    "vitas.nn.subsampled",
    "vitas.nn.mlp",
    "vitas.nn.embed",
    "vitas.nn.identity",
    "vitas.nn",
    "vitas.superformer.arguments",
    "vitas.superformer.base",
    "vitas.superformer.deit",
    "vitas.superformer.twins",
    "vitas.superformer.presets",
    "vitas.superformer",
    "vitas.budget",
    "vitas.elimination",
    "vitas.conditional",
    "vitas.counting",
    "vitas.depth_law",
    "vitas.sample",
    "vitas.export",
    "vitas.plain_file",
    "vitas.saving",
    "vitas.score",
    "vitas.latency",
    "vitas.order",
    "vitas.timm_file",
    "vitas.timm_vit",
    "vitas.timm_twins",
    "vitas.wrap",
    "vitas.cards",
    "vitas.plot",
    "vitas.train.sandwich",
    "vitas.train.pairs",
    "vitas.train.distill",
    "vitas.train.recipes",
    "vitas.train.unused",
    "vitas.train.ranks",
    "vitas.train.report",
    "vitas.train",
    "vitas.genetic",
    "vitas.aims",
    "vitas.result",
    "vitas.storage",
    "vitas.search",
    "vitas",
]


def module_name(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported_by(name):
    """Every module that a file imports: at its top, inside functions, and for type checkers only."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([module if module in FILES else node.module for module in submodules])


def test_every_file_stands_in_the_order():
    assert set(FILES) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_file_imports_only_from_those_above_it(name):
    above = set(ORDER[: ORDER.index(name)])
    own = {module for module in imported_by(name) if module.split(".")[0] == "vitas"}
    assert own <= above


def test_plain_imports_torch_only():
    roots = {module.split(".")[0] for module in imported_by("vitas.plain")}
    assert roots - sys.stdlib_module_names == {"torch"}


def test_what_is_imported_is_declared_as_a_core_need():
    # imported, or importing it, when used
    about_timm = {"vitas.timm_file", "vitas.timm_vit", "vitas.timm_twins", "vitas.wrap"}
    of_extras = {"vitas.result": {"pandas"}, "vitas.storage": {"optuna", "sqlalchemy"}, "vitas.search": {"tqdm"}}
    roots = {
        module.split(".")[0]
        for name in set(FILES) - about_timm
        for module in imported_by(name)
        if module.split(".")[0] not in of_extras.get(name, ())
    }
    assert roots - sys.stdlib_module_names <= {"vitas", "torch", "einops", "fvcore", "numpy", "safetensors", "matplotlib"}


ADDED = """
import json, sys
import torch
before = set(sys.modules)
import vitas
print(json.dumps([vitas.__file__, sorted(set(sys.modules) - before)]))
"""


def test_import_adds_little_to_that_of_torch_and_no_extra(tmp_path):
    """What comes with it decides how long it takes: see tests/benchmarks/import_time.py."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-W", "error", "-c", ADDED]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, added = json.loads(done.stdout)
    assert file == vitas.__file__
    assert {module.split(".")[0] for module in added} - sys.stdlib_module_names <= {"vitas", "torch", "numpy", "safetensors"}
    heavy = ("torch._dynamo", "torch._inductor", "torch.distributed.", "torch.fx.experimental", "numpy.testing")
    assert not [module for module in added if module.startswith(heavy)]

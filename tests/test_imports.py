"""The tree is layered, and importing vitas is cheap."""

import ast
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vitas

PACKAGE = Path(vitas.__file__).parent

# In reading order: files at the root, then folders. What stands in one imports only from those above it.
ORDER = (
    "errors",
    "checks",
    "memory",
    "tables",
    "sharing",
    "plain",
    "fields",
    "choice",
    "space",
    "cost",
    "nn",
    "sample",
    "superformer",
    "measure",
    "wrapping",
    "export",
    "plot",
    "train",
    "search",
    "compressing",
    "__main__",
)


def module_name(file):
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room(name):
    """The folder, or the file at the root, that a module belongs to."""
    return name.split(".")[1] if "." in name else "vitas"


def imported_by(name):
    """Every module that a file imports: at its top, inside functions, and for type checkers only."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ([module if module in FILES else node.module for module in submodules])


def own_imports(name):
    return {module for module in imported_by(name) if module.split(".")[0] == "vitas"}


def test_every_room_stands_in_the_order():
    assert {room(name) for name in FILES} == {"vitas", *ORDER}


@pytest.mark.parametrize("here", ORDER)
def test_a_room_imports_only_from_those_above_it(here):
    above = {*ORDER[: ORDER.index(here)], here}
    for name in FILES:
        if room(name) == here:
            assert {room(module) for module in own_imports(name)} <= above, name


@pytest.mark.parametrize("here", ORDER)
def test_there_is_no_circle_inside_a_room(here):
    inside = {name: {m for m in own_imports(name) if room(m) == here} for name in FILES if room(name) == here}
    TopologicalSorter(inside).prepare()  # raises CycleError; a room that a file of its own imports is a circle too


@pytest.mark.parametrize("here", [here for here in ORDER if (PACKAGE / here).is_dir()])
def test_a_folder_tells_its_files(here):
    """The docstring of its `__init__` names each file."""
    text = vitas_docstring(here)
    for file in (PACKAGE / here).glob("*.py"):
        assert file.name == "__init__.py" or f"    {file.name} " in text, f"{here}/__init__.py does not mention {file.name}"


def vitas_docstring(here):
    return ast.get_docstring(ast.parse((PACKAGE / here / "__init__.py").read_text(encoding="utf-8")), clean=False)


def test_plain_imports_torch_only():
    roots = {module.split(".")[0] for module in imported_by("vitas.plain")}
    assert roots - sys.stdlib_module_names == {"torch"}


def test_what_is_imported_is_declared_as_a_core_need_and_each_need_is_imported():
    # imported, or importing it, when used
    about_timm = {name for name in FILES if room(name) == "wrapping"} | {
        "vitas.export.timm_format",
        "vitas.export.timm_parts",
        "vitas.export.origins",
        "vitas.export.register",
    }
    of_extras = {
        "vitas.measure.score": {"tqdm"},
        "vitas.export.hub": {"huggingface_hub"},
        "vitas.export.push": {"huggingface_hub"},
        "vitas.measure.runners": {"onnxruntime"},
        "vitas.search.result": {"pandas"},
        "vitas.search.storage": {"optuna", "sqlalchemy", "grpc"},
        "vitas.search.trials": {"optuna"},
        "vitas.search.ledger": {"optuna"},
        "vitas.search.suggest": {"optuna"},
        "vitas.search.load": {"optuna"},
        "vitas.search.progress": {"tqdm"},
        "vitas.plot.pictures": {"matplotlib"},
        "vitas.train.report": {"matplotlib"},
        "vitas.compressing.training": {"tqdm"},
        "vitas.__main__": {"timm", "torchvision"},
    }
    roots = {
        module.split(".")[0]
        for name in set(FILES) - about_timm
        for module in imported_by(name)
        if module.split(".")[0] not in of_extras.get(name, ())
    }
    assert roots - sys.stdlib_module_names - {"vitas"} == core_needs()


def core_needs():
    """Return the names of the packages that the library declares to need."""
    settings = ConfigParser()
    settings.read(Path(__file__).parent.parent / "setup.cfg", encoding="utf-8")
    return {re.match(r"\w+", line)[0] for line in settings["options"]["install_requires"].split()}


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
    assert {module.split(".")[0] for module in added} - sys.stdlib_module_names <= {"vitas", *core_needs()} - {"fvcore"}
    heavy = ("torch._dynamo", "torch._inductor", "torch.distributed.", "torch.fx.experimental", "numpy.testing")
    assert not [module for module in added if module.startswith(heavy)]

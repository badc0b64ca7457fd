"""The public names, their signatures, and what their docstrings have to say."""

import ast
import difflib
import inspect
import re
import textwrap

import pytest
from torch import nn

from tests.public_api import SNAPSHOT, every_object, lines, members

OBJECTS = dict(every_object())
LAYERS = {path: it for path, it in OBJECTS.items() if inspect.isclass(it) and issubclass(it, nn.Module)}
FUNCTIONS = {path: it for path, it in OBJECTS.items() if inspect.isfunction(it)}


def test_public_names_and_signatures_are_those_of_the_snapshot():
    now, then = lines(), SNAPSHOT.read_text().splitlines()
    changes = "\n".join(difflib.unified_diff(then, now, "tests/public_api.txt", "now", lineterm="", n=0))
    assert now == then, f"announce it in CHANGELOG.md and run python -m tests.public_api\n{changes}"


def documentation(it):
    return inspect.getdoc(it.fget if isinstance(it, property) else getattr(it, "func", it)) or ""


@pytest.mark.parametrize("path", OBJECTS)
def test_everything_public_says_what_it_is_in_one_sentence(path):
    first = documentation(OBJECTS[path]).split("\n\n")[0]
    assert first, f"{path} has no docstring"
    assert first.rstrip().endswith((".", ":", "::")), f"{path}: {first!r}"


def raised_by(function):
    """Return the names of the errors that a function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "id", getattr(node.exc.func, "attr", ""))
            if name.endswith("Error"):
                yield name


@pytest.mark.parametrize("path", FUNCTIONS)
def test_errors_that_are_raised_are_documented(path):
    function, text = inspect.unwrap(FUNCTIONS[path]), documentation(FUNCTIONS[path])
    if path.rpartition(".")[2].startswith("__"):
        return
    for name in {*raised_by(function)}:
        assert "Raises:" in text, f"{path} raises {name} and has no part Raises"
        assert name in text, f"{path}: {name} is not among its Raises"


@pytest.mark.parametrize("path", [path for path in LAYERS if not path.startswith("vitas.plain")])
def test_layers_say_shapes_cost_and_source(path):
    text = documentation(LAYERS[path])
    missing = [part for part in ("Shapes:", "Cost:", "Source:") if part not in text]
    assert not missing, f"{path}: {missing}"
    assert re.search(r"Cost: .*(MACs|multiply-adds|see|that of|sum)", text), f"{path}: its cost has no unit"


@pytest.mark.parametrize("path", [path for path in LAYERS if path.startswith("vitas.plain")])
def test_plain_modules_say_their_shapes(path):
    assert "Shapes:" in documentation(LAYERS[path]) or "->" in documentation(LAYERS[path])


TYPES = {path: it for path, it in OBJECTS.items() if inspect.isclass(it) and not issubclass(it, BaseException)}
RESULTS = {
    "vitas.SearchResult",
    "vitas.SearchSpace",
    "vitas.CostModel",
    "vitas.LatencyTable",
}  # made by functions, not by users
MEMBERS = {f"{path}.{name}" for path, it in TYPES.items() for name, _ in members(it)}
CALLED = {path: it for path, it in {**FUNCTIONS, **TYPES}.items() if path not in MEMBERS | RESULTS}


@pytest.mark.parametrize("path", CALLED)
def test_arguments_are_documented(path):
    it, text = CALLED[path], documentation(CALLED[path])
    if path.startswith(("vitas.plain.", "vitas.cost.", "vitas.errors.")) or "Attributes:" in text:
        return
    parameters = [
        name
        for name, parameter in inspect.signature(it).parameters.items()
        if name not in ("self", "model", "args", "kwargs", "device", "dtype", "generator")
    ]
    missing = [
        name
        for name in parameters
        if not re.search(rf"^\s+\*{{0,2}}{name}\b.*:|`{name}`|\b{name}=", text, flags=re.MULTILINE)
    ]
    assert not missing, f"{path}: {missing}"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FUNCTIONS
        if re.search(r"count_|cost|flops|params|latency", path.rpartition(".")[2]) and not path.startswith("vitas.nn.")
    ],
)
def test_what_counts_says_its_unit(path):
    units = r"multiply-adds|MACs|parameters|millisecond|\bms\b|second|networks|[Cc]ost|nothing|Nothing"
    assert re.search(units, documentation(FUNCTIONS[path])), path

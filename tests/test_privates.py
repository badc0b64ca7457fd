"""What a file calls `_name` is its own: no other file reads it off an object."""

import ast

import pytest

from tests.test_imports import FILES, room

# Rooms whose privates nobody else touches. The others follow.
CLOSED = ("choice", "space")

TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def of_itself(node):
    """Whether an attribute is read off `self`, `cls` or `super()`."""
    owner = node.value.func if isinstance(node.value, ast.Call) else node.value
    return isinstance(owner, ast.Name) and owner.id in ("self", "cls", "super")


def defined_in(tree):
    """The private names that classes of a file define: methods, class attributes, and what is set on `self`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    names.add(part.name)
                elif isinstance(part, (ast.Assign, ast.AnnAssign)):
                    targets = part.targets if isinstance(part, ast.Assign) else [part.target]
                    names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and of_itself(node):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


DEFINED = {name: defined_in(tree) for name, tree in TREES.items()}


def touched(here):
    """The reads of private attributes of a room in files that do not define such a name themselves."""
    privates = {private for name, names in DEFINED.items() if room(name) == here for private in names}
    return [
        f"{name}, line {node.lineno}: {ast.unparse(node)}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in privates - DEFINED[name] and not of_itself(node)
    ]


@pytest.mark.parametrize("here", CLOSED)
def test_privates_of_a_room_are_touched_in_their_own_file_only(here):
    assert touched(here) == []


def test_it_finds_what_there_is(monkeypatch):
    monkeypatch.setitem(TREES, "vitas.other", ast.parse("def read(choice):\n    return choice._index"))
    monkeypatch.setitem(DEFINED, "vitas.other", set())
    assert touched("choice") == ["vitas.other, line 2: choice._index"]

"""What a prompt completes, and what typing a folder's name for a function's answers."""

import pickle
import sys
from pathlib import Path

import pytest

import vitas


def test_completion_shows_public_names_only():
    assert {name for name in dir(vitas) if not name.startswith("__")} == {*vitas.__all__, "cost", "errors"}
    assert all(getattr(vitas, name) is not None for name in dir(vitas))


FOLDERS = sorted(path.parent.name for path in Path(vitas.__file__).parent.glob("*/__init__.py"))


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "nn"] + ["sharing"])
def test_a_folder_that_is_called_names_what_was_meant(name):
    with pytest.raises(vitas.VitasError, match=rf"^vitas\.{name} is a folder of the library; call ") as caught:
        getattr(vitas, name)("model", flops=1)
    named = [word.strip(",") for word in str(caught.value).split() if word.startswith("vitas.")][1:]
    for path in named:
        *_, last = path.split(".")
        assert callable(getattr(sys.modules[path.removesuffix(f".{last}")], last))
    assert len(str(caught.value)) <= 160


def test_a_folder_can_be_pickled():
    assert pickle.loads(pickle.dumps(vitas.search)) is vitas.search

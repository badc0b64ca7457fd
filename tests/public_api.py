"""The public names with their signatures as text: python -m tests.public_api writes tests/public_api.txt."""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

MODULES = (
    "vitas",
    "vitas.nn",
    "vitas.superformer",
    "vitas.sharing",
    "vitas.train",
    "vitas.plot",
    "vitas.plain",
    "vitas.cost",
    "vitas.errors",
)
SNAPSHOT = Path(__file__).parent / "public_api.txt"


def public_names(module: Any) -> dict[str, Any]:
    """Return the names in `__all__`, or those that the module defines itself."""
    own = [name for name, it in vars(module).items() if getattr(it, "__module__", None) == module.__name__]
    names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
    return {name: getattr(module, name) for name in sorted(names) if not inspect.ismodule(getattr(module, name))}


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class of ours defines, inherited ones included."""
    seen = set()
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] != "vitas":
            continue
        for name, it in vars(base).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            it = it.__func__ if isinstance(it, (classmethod, staticmethod)) else it
            if inspect.isfunction(it) or isinstance(it, property) or hasattr(it, "func"):
                yield name, it


def every_object() -> Iterator[tuple[str, Any]]:
    """Yield each public function, class, method and property once, with its path."""
    seen: set[int] = set()
    for module_name in MODULES:
        for name, it in public_names(importlib.import_module(module_name)).items():
            if id(it) in seen:
                continue
            seen.add(id(it))
            yield f"{module_name}.{name}", it
            if inspect.isclass(it):
                for member, method in members(it):
                    yield f"{module_name}.{name}.{member}", method


def signature(it: Any) -> str:
    """Return a signature as text that is the same on every machine and version of Python."""
    if isinstance(it, property) or hasattr(it, "func"):
        return ""
    if inspect.isclass(it) and it.__init__ is torch.nn.Module.__init__:  # annotated in some of torch's versions
        return "(*args: Any, **kwargs: Any) -> None"
    try:
        text = str(inspect.signature(it)).replace("numpy.bool_", "numpy.bool")  # as numpy calls it since version 2
    except ValueError:
        return "(...)"
    text = re.sub(r"\bvitas\.(\w+)\.\w+\.([A-Z]\w*)", r"vitas.\1.\2", text)  # a class by its folder, which is its address
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations that are kept as text
    text = re.sub(r"numpy\.ndarray\[[^\[\]]*(?:\[[^\]]*\])?, numpy\.dtype\[(.*?)\]\]", r"NDArray[\1]", text)
    return re.sub(r"\b(?:typing|collections\.abc|pathlib(?:\._local)?|torch\.nn\.modules\.module|torch)\.", "", text)


def lines() -> list[str]:
    """Return a line for each public name, and for each name under which it can be had."""
    result = []
    for module_name in MODULES:
        for name, it in public_names(importlib.import_module(module_name)).items():
            if inspect.isclass(it):
                bases = ", ".join(base.__name__ for base in it.__bases__ if base is not object)
                is_error = issubclass(it, BaseException)
                result.append(f"{module_name}.{name}{'' if is_error else signature(it)}{f' < {bases}' if bases else ''}")
                result += [f"{module_name}.{name}.{member}{signature(method)}" for member, method in sorted(members(it))]
            else:
                result.append(f"{module_name}.{name}{signature(it) if callable(it) else ''}")
    return result


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(lines()) + "\n")
    print(f"{len(lines())} lines in {SNAPSHOT.name}")

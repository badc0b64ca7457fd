"""Sphinx: python -m sphinx -W --keep-going docs docs/_build."""

import importlib
import inspect
import re
import shutil
from pathlib import Path

import vitas

HERE = Path(__file__).parent

project = "vitas"
author = "the vitas contributors"
version = release = vitas.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute", "pictures"]
html_theme = "furo"
html_title = f"vitas {release}"
html_static_path = ["_static"]
html_css_files = ["cards.css"]
html_show_sphinx = False

# Notebooks are shown with the outputs that are committed; .ci/notebooks.py runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name`
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_ivar = True

PARTS = re.compile(r"^(Shapes|Cost|Source|Sources): ")


def copy_notebooks() -> None:
    """Put the notebooks where Sphinx finds them."""
    folder = HERE / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in sorted((HERE.parent / "examples").glob("*.ipynb")):
        shutil.copy(notebook, folder)


def write_reference() -> None:
    """Write a page for each public module: every name in its `__all__`, which is what the tests compare too."""
    folder = HERE / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    seen: set[int] = set()  # a name has one place: the first page that lists it
    for name in (
        "vitas",
        "vitas.nn",
        "vitas.superformer",
        "vitas.sharing",
        "vitas.train",
        "vitas.plot",
        "vitas.plain",
        "vitas.errors",
    ):
        module = importlib.import_module(name)
        own = [
            key for key, it in vars(module).items() if getattr(it, "__module__", None) == name and not key.startswith("_")
        ]
        lines = [f"# {name}", "", (module.__doc__ or "").strip(), "", "```{eval-rst}"]
        for key in getattr(module, "__all__", own):
            it = getattr(module, key)
            if inspect.ismodule(it) or id(it) in seen:
                continue
            seen.add(id(it))
            if inspect.isclass(it):
                lines += [f".. autoclass:: {name}.{key}", "   :members:", "   :show-inheritance:", ""]
            elif inspect.isfunction(it):
                lines += [f".. autofunction:: {name}.{key}", ""]
            else:
                lines += [f".. autodata:: {name}.{key}", ""]
        (folder / f"{name.rpartition('.')[2]}.md").write_text("\n".join([*lines, "```", ""]))


def as_fields(app, what, name, obj, options, lines) -> None:
    """Make fields of the parts of a docstring that are a line each: shapes, cost, source."""
    result, inside = [], False
    for line in lines:
        line = line.replace("|", "\\|")  # |x| is a magnitude here, no substitution
        starts = PARTS.match(line)
        if starts:
            if not inside and result and result[-1]:
                result.append("")
            inside = True
            line = f":{starts[1]}: {line[starts.end() :]}"
        elif inside and line and not line.startswith((" ", ":")):
            line = f"    {line}"
        elif not line:
            inside = False
        result.append(line)
    lines[:] = result


def setup(app) -> None:
    """Connect the hooks."""
    app.connect("autodoc-process-docstring", as_fields, priority=400)


copy_notebooks()
write_reference()

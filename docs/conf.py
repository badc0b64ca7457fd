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

COLON = "\ue000"  # stands for a colon: of a property Napoleon takes what stands before one for a type
PARTS = re.compile(r"^(Shapes|Cost|Source|Sources): ")


def copy_notebooks() -> None:
    """Put the notebooks where Sphinx finds them."""
    folder = HERE / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for notebook in sorted((HERE.parent / "examples").glob("*.ipynb")):
        shutil.copy(notebook, folder)


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

# The page of `vitas` in the order of use; a name that is missing here, or too much, stops the build.
GROUPS = {
    "Choices and subnets": "Choice Dim search_space SearchSpace Subnet narrow widen",
    "Superformers": "create_superformer list_superformers published_subnet list_published_subnets",
    "Sampling and budgets": "sample_subnet SubnetSampler activate_subnet active_subnet use_subnet count_subnets",
    "Counting": "count_flops FlopCount count_params cost_model CostModel flop_analysis",
    "Scores and latency": "accuracy zero_cost measure_latency Latency latency_table LatencyTable",
    "Searching": "evolve load_search SearchResult Evolution suggest_subnet",
    "Exporting, saving, loading": (
        "export_subnet build_subnet save_subnet load_subnet push_to_hub save_superformer load_superformer"
    ),
    "Wrapping timm": "wrap check_records export_report register",
    "Compressing": "compress Compressed",
    "Errors": "VitasError ChoiceError BudgetError",
}

# What public functions return, or a layer of one's own needs, without being a name of a public module.
BESIDE = {
    "Sampling and budgets": ["vitas.sample.counting.SubnetCount"],
    "Scores and latency": ["vitas.measure.accuracy.Accuracy", "vitas.measure.latency_table.Measured"],
    "Searching": ["vitas.search.result.Evaluation"],
    "Exporting, saving, loading": ["vitas.export.adapt.Adapted"],
    "Wrapping timm": ["vitas.wrapping.report.ExportReport"],
    "vitas.nn": ["vitas.choice.take", "vitas.nn.layer.filled"],
}


def entry(path: str) -> list[str]:
    """Return the directive that documents the object at a dotted path."""
    module, _, key = path.rpartition(".")
    it = getattr(importlib.import_module(module), key)
    if inspect.isclass(it):
        return [f".. autoclass:: {path}", "   :members:", "   :show-inheritance:", ""]
    return [f".. auto{'function' if inspect.isfunction(it) else 'data'}:: {path}", ""]


def sections(name: str) -> dict[str, list[str]]:
    """Return the public names of a module under headings; a name has one place, the first page that lists it."""
    module = importlib.import_module(name)
    own = [key for key, it in vars(module).items() if getattr(it, "__module__", None) == name and not key.startswith("_")]
    names = [key for key in getattr(module, "__all__", own) if not inspect.ismodule(getattr(module, key))]
    if name != "vitas":
        return {"": [f"{name}.{key}" for key in names if getattr(module, key) not in _listed_by_vitas()]}
    grouped = {heading: keys.split() for heading, keys in GROUPS.items()}
    listed = [key for keys in grouped.values() for key in keys]
    if sorted(listed) != sorted(names):
        raise ValueError(f"docs/conf.py: GROUPS and vitas.__all__ differ: {set(listed) ^ set(names)}")
    return {heading: [f"vitas.{key}" for key in keys] for heading, keys in grouped.items()}


def _listed_by_vitas() -> list[object]:
    return [getattr(vitas, key) for keys in GROUPS.values() for key in keys.split()]


def write_reference() -> None:
    """Write a page for each public module: every public name, which is what the tests compare too."""
    folder = HERE / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in MODULES:
        lines = [f"# {name}", "", (importlib.import_module(name).__doc__ or "").strip(), ""]
        for heading, paths in sections(name).items():
            lines += [f"## {heading}", ""] if heading else []
            lines += ["```{eval-rst}"]
            for path in [*paths, *BESIDE.get(heading or name, [])]:
                lines += entry(path)
            lines += ["```", ""]
        (folder / f"{name.rpartition('.')[2]}.md").write_text("\n".join(lines))


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
    if what in ("attribute", "property") and result:
        result[0] = result[0].replace(": ", f"{COLON} ")
    lines[:] = result


def colons_back(app, what, name, obj, options, lines) -> None:
    """Put back the colons that Napoleon must not see."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def setup(app) -> None:
    """Connect the hooks."""
    app.connect("autodoc-process-docstring", as_fields, priority=400)  # Napoleon: 500
    app.connect("autodoc-process-docstring", colons_back, priority=600)


copy_notebooks()
write_reference()

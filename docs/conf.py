"""Sphinx: python -m sphinx -W --keep-going docs docs/_build."""

import importlib
import inspect
import re
import shutil
import zlib
from pathlib import Path

import vitas

HERE = Path(__file__).parent

project = "vitas"
author = "the vitas contributors"
version = release = vitas.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "jupyter_execute", "pictures"]
html_theme = "furo"
html_title = f"vitas {release}"
html_static_path = ["_static"]
html_css_files = ["cards.css", "tables.css"]
html_show_sphinx = False
html_show_copyright = False

# Notebooks are shown with the outputs that are committed; .ci/notebooks.py runs them.
nb_execution_mode = "off"
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name`
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autosummary_generate = False  # tables only; the pages are written below
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


# The names of `vitas` in the order of use; a name that is missing here, or too much, stops the build.
GROUPS = {
    "Choices and subnets": "Choice Dim search_space SearchSpace Subnet narrow widen",
    "Superformers": "create_superformer list_superformers published_subnet list_published_subnets",
    "Sampling and budgets": "sample_subnet SubnetSampler activate_subnet active_subnet use_subnet count_subnets",
    "Counting": "count_flops FlopCount count_params cost_model CostModel flop_analysis",
    "Scores and latency": "accuracy cross_entropy zero_cost measure_latency Latency latency_table LatencyTable",
    "Searching": "evolve load_search SearchResult Evolution suggest_subnet",
    "Exporting, saving, loading": (
        "export_subnet build_subnet save_subnet load_subnet push_to_hub save_superformer load_superformer"
    ),
    "Wrapping timm": "wrap check_records export_report register",
    "Compressing": "compress Compressed",
    "Errors": "VitasError ChoiceError BudgetError",
}

# A page for each room: its heading, and the module whose other public names follow those of `vitas`.
ROOMS = {
    "space": ("Choices and subnets", None),
    "nn": ("Layers", "vitas.nn"),
    "superformer": ("Superformers", "vitas.superformer"),
    "sharing": ("Sharing patterns", "vitas.sharing"),
    "sample": ("Sampling and budgets", None),
    "cost": ("Counting", "vitas.cost"),
    "measure": ("Scores and latency", None),
    "train": ("Training", "vitas.train"),
    "search": ("Searching", None),
    "export": ("Exporting, saving, loading", None),
    "plain": ("Plain networks", "vitas.plain"),
    "wrapping": ("Wrapping timm", None),
    "compressing": ("Compressing", None),
    "plot": ("Pictures", "vitas.plot"),
    "errors": ("Errors", "vitas.errors"),
}

# What public functions return, or a layer of one's own needs, without being a name of a public module.
BESIDE = {
    "Sampling and budgets": ["vitas.sample.counting.SubnetCount"],
    "Scores and latency": ["vitas.measure.score.Score", "vitas.measure.latency_table.Measured"],
    "Searching": ["vitas.search.result.Evaluation"],
    "Exporting, saving, loading": ["vitas.export.adapt.Adapted"],
    "Wrapping timm": ["vitas.wrapping.report.ExportReport"],
    "Layers": ["vitas.choice.take", "vitas.nn.layer.filled"],
}


def entry(path: str) -> list[str]:
    """Return the directive that documents the object at a dotted path."""
    module, _, key = path.rpartition(".")
    it = getattr(importlib.import_module(module), key)
    if inspect.isclass(it):
        return [f".. autoclass:: {path}", "   :members:", "   :show-inheritance:", ""]
    return [f".. auto{'function' if inspect.isfunction(it) else 'data'}:: {path}", ""]


def check_groups() -> None:
    """Stop the build where GROUPS are not the names of `vitas`, or have no page."""
    names = [key for key in vitas.__all__ if not inspect.ismodule(getattr(vitas, key))]
    listed = [key for keys in GROUPS.values() for key in keys.split()]
    if sorted(listed) != sorted(names):
        raise ValueError(f"docs/conf.py: GROUPS and vitas.__all__ differ: {set(listed) ^ set(names)}")
    without = set(GROUPS) - {heading for heading, _ in ROOMS.values()}
    if without:
        raise ValueError(f"docs/conf.py: groups without a page in ROOMS: {without}")


def others_of(name: str) -> list[str]:
    """Return the public names of a module but those that stand in GROUPS; a name has one place."""
    module = importlib.import_module(name)
    own = [key for key, it in vars(module).items() if getattr(it, "__module__", None) == name and not key.startswith("_")]
    listed = [getattr(vitas, key) for keys in GROUPS.values() for key in keys.split()]
    names = [key for key in getattr(module, "__all__", own) if not inspect.ismodule(getattr(module, key))]
    return [f"{name}.{key}" for key in names if getattr(module, key) not in listed]


def write_page(page: str, lines: list[str]) -> None:
    """Write a page of the reference."""
    (HERE / "api" / f"{page}.md").write_text("\n".join(lines))


def summary(paths: list[str]) -> list[str]:
    """Return a table of names with the first sentence of each."""
    return ["```{eval-rst}", ".. autosummary::", "   :nosignatures:", "", *(f"   {path}" for path in paths), "```", ""]


def write_reference() -> None:
    """Write a page for each room, every public name, which is what the tests compare too; and one with all of them."""
    shutil.rmtree(HERE / "api", ignore_errors=True)
    (HERE / "api").mkdir()
    check_groups()
    overview = ["# Reference", "", "What you type is in `vitas`; the pages of the rooms hold the rest.", ""]
    for page, (heading, module) in ROOMS.items():
        paths = [f"vitas.{key}" for key in GROUPS.get(heading, "").split()]
        paths += [*(others_of(module) if module else []), *BESIDE.get(heading, [])]
        about = (importlib.import_module(module).__doc__ or "").strip() if module else ""
        lines = [f"# {heading}", "", about, "", *summary(paths), "```{eval-rst}"]
        write_page(page, [*lines, *(line for path in paths for line in entry(path)), "```", ""])
        if heading in GROUPS:
            overview += [f"## [{heading}]({page}.md)", "", *summary([f"vitas.{key}" for key in GROUPS[heading].split()])]
    more = [f"[{heading}]({page}.md)" for page, (heading, _) in ROOMS.items() if heading not in GROUPS]
    write_page("index", [*overview, "## More", "", ", ".join(more), ""])


# The classes of torch that signatures name -> their place in its documentation. Sphinx reads such a list from a file, so
# that the links need no connection while the site is built.
TORCH = "https://docs.pytorch.org/docs/stable/"
TORCH_CLASSES = {
    "torch.Tensor": "tensors.html#torch.Tensor",
    "torch.device": "tensor_attributes.html#torch.device",
    "torch.dtype": "tensor_attributes.html#torch.dtype",
    "torch.Generator": "generated/torch.Generator.html#torch.Generator",
    "torch.nn.Module": "generated/torch.nn.Module.html#torch.nn.Module",
    "torch.nn.Linear": "generated/torch.nn.Linear.html#torch.nn.Linear",
    "torch.nn.LayerNorm": "generated/torch.nn.LayerNorm.html#torch.nn.LayerNorm",
    "torch.nn.Conv2d": "generated/torch.nn.Conv2d.html#torch.nn.Conv2d",
    "torch.nn.ModuleList": "generated/torch.nn.ModuleList.html#torch.nn.ModuleList",
    "torch.nn.Parameter": "generated/torch.nn.parameter.Parameter.html#torch.nn.parameter.Parameter",
    "torch.optim.Optimizer": "optim.html#torch.optim.Optimizer",
}
INVENTORY = HERE / "api" / "torch.inv"
intersphinx_mapping = {"torch": (TORCH, str(INVENTORY))}


def write_inventory() -> None:
    """Write where torch's documentation has its classes, under their public names and under those of their modules."""
    places = dict(TORCH_CLASSES)
    for name, place in TORCH_CLASSES.items():
        module, _, key = name.rpartition(".")
        it = getattr(importlib.import_module(module), key)
        places[f"{it.__module__}.{it.__qualname__}"] = place
    lines = [f"{name} py:class 1 {place} -" for name, place in sorted(places.items())]
    head = "# Sphinx inventory version 2\n# Project: torch\n# Version: stable\n# The rest is compressed with zlib.\n"
    INVENTORY.write_bytes(head.encode() + zlib.compress("\n".join([*lines, ""]).encode()))


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
write_inventory()

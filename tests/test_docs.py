"""Every block of Python code in the documentation runs as it stands, page by page."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.clock import count_for_time

pytestmark = pytest.mark.extras  # pages use timm, Optuna and matplotlib

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def code_of(page, languages="python"):
    return re.findall(rf"```(?:{languages})\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    if page.name == "wrapping.md":
        _without_downloads(monkeypatch)
    if page.name == "searching.md":
        count_for_time(monkeypatch)  # its budget is a share of a measured time
    if page.name == "training.md":
        _as_the_only_rank(monkeypatch)
    if page.name == "many_machines.md":
        _with_a_file_for_the_server(monkeypatch, names, tmp_path)
    if page.name == "folder.md":
        _with_a_folder_of_images(tmp_path)
    exec(compile("\n".join(code_of(page)), str(page), "exec"), names)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_code_fits_the_width_of_a_page(page):
    lines = "\n".join(code_of(page, "python|py|bash|text")).splitlines()
    assert [line for line in lines if len(line) > 88] == []


def _without_downloads(monkeypatch):
    """Pages ask timm for trained weights; here they stay as they are drawn."""
    timm = pytest.importorskip("timm")
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: create(name, **options))


def _as_the_only_rank(monkeypatch):
    """Set what torchrun sets, for a single process."""
    told = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}  # 0: any free port
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))


def _with_a_file_for_the_server(monkeypatch, names, folder):
    """The page's search, on a journal file in place of the database server, which only a network has."""
    import vitas

    model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
    data = torch.utils.data.TensorDataset(torch.randn(4, 3, 16, 16), torch.randint(10, (4,)))
    names |= {"vitas": vitas, "model": model, "loader": torch.utils.data.DataLoader(data, batch_size=4)}
    evolve = vitas.evolve

    def on_a_file(*args, storage, **options):
        assert storage.startswith("grpc://")
        return evolve(*args, storage=str(folder / "search.log"), population=4, generations=2, progress=False, **options)

    monkeypatch.setattr(vitas, "evolve", on_a_file)


def _with_a_folder_of_images(folder):
    """Twenty images of each of two classes to train on, four to test on: dark ones and light ones."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    for part, number in (("train", 20), ("val", 4)):
        for label, colour in {"dark": 40, "light": 200}.items():
            (folder / "images" / part / label).mkdir(parents=True)
            for i in range(number):
                picture = image.new("RGB", (40, 36), (colour + i, colour, colour))
                picture.save(folder / "images" / part / label / f"{i}.png")


def test_the_list_of_questions_is_that_of_the_headings():
    text = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    assert re.findall(r"^\* \[(.*)\]\(#", text, flags=re.MULTILINE) == re.findall(r"^### (.*)$", text, flags=re.MULTILINE)


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"^\w+$", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= listed


def test_links_to_files_lead_somewhere():
    for page in [*PAGES, ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith(("notebooks/", "api/")):  # made by conf.py
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", ["shared_dim", "sharing", "shifting"])
def test_the_drawings_are_those_of_their_script(name, tmp_path, monkeypatch):
    import importlib.util

    script = ROOT / "docs" / "pictures" / "draw.py"
    spec = importlib.util.spec_from_file_location("draw", script)
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    figure = getattr(draw, name)()
    texts = sorted(t.get_text() for axes in figure.axes for t in [*axes.texts, axes.title] if t.get_text())
    assert texts
    assert (script.parent / f"{name}.svg").read_text().count("<path") > len(texts)


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.name)
def test_what_a_notebook_shows_has_no_warnings_of_the_machine_that_ran_it(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert outputs
    assert [output for output in outputs if output.get("name") == "stderr"] == []

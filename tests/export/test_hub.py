"""Networks on the hub of Hugging Face, without a connection: what would be sent, and what its cache holds."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.contract import macs, randomize
from vitas import VitasError, create_superformer, export_subnet, load_subnet, push_to_hub, save_subnet, search_space
from vitas.errors import FileError

hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.extras
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def an_export(name="deit_micro", side=16):
    model = randomize(create_superformer(name, num_classes=10, img_size=side)).eval()
    space = search_space(model)
    return export_subnet(model, space.sample(torch.Generator().manual_seed(0))), torch.randn(2, 3, side, side)


class Sent:
    """Stands for the hub: a folder, and what was asked of it."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, token=None):
        self.asked.append(("token", token))
        return self

    def create_repo(self, repo_id, *, private, exist_ok):
        self.asked.append(("create_repo", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self, repo_id, filename, *, revision=None):
        return (self.folder / filename).exists()

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        self.asked.append(("upload_folder", repo_id, revision, commit_message))
        shutil.copytree(folder_path, self.folder, dirs_exist_ok=True)


@pytest.fixture
def sent(tmp_path, monkeypatch):
    stand_in = Sent(tmp_path / "sent")
    monkeypatch.setattr(hub, "HfApi", stand_in)
    return stand_in


@pytest.mark.parametrize(("name", "side"), [("deit_micro", 16), ("twins_micro", 64)])
def test_what_is_sent_is_what_save_subnet_writes_and_a_card(sent, tmp_path, name, side):
    export, x = an_export(name, side)
    assert push_to_hub(export, "user/small", private=True, token="secret", commit_message="First") == "hf-hub:user/small"
    assert sent.asked == [
        ("token", "secret"),
        ("create_repo", "user/small", True, True),
        ("upload_folder", "user/small", None, "First"),
    ]
    save_subnet(export, tmp_path / "net")
    assert sorted(path.name for path in sent.folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for file in ("config.json", "model.safetensors"):
        assert (sent.folder / file).read_bytes() == (tmp_path / "net" / file).read_bytes()
    assert torch.equal(load_subnet(sent.folder).eval()(x), export(x))
    assert ("multiply-adds" in (sent.folder / "README.md").read_text()) == (name == "deit_micro")  # a Twins has no size


def test_a_card_says_the_subnet_its_counts_and_how_to_load_it(sent):
    export, x = an_export()
    push_to_hub(export, "user/small")
    card = (sent.folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: vitas\n")
    assert "# small\n" in card
    assert f"| parameters | {sum(parameter.numel() for parameter in export.parameters()):,} |" in card
    assert f"| multiply-adds for one image | {macs(export, x[:1]):,} |" in card
    assert "| image | 3 x 16 x 16 |" in card
    assert 'model = vitas.load_subnet("hf-hub:user/small")\n' in card
    assert f"| `embed_dim` | {export.head.in_features} |" in card
    for number, block in enumerate(export.blocks):
        assert f"| {number} | {block.attn.num_heads} |" in card
        assert f"| {block.mlp.fc1.out_features} |" in card
    (sent.folder / "README.md").unlink()
    push_to_hub(export, "user/small")
    assert (sent.folder / "README.md").read_text() == card  # the same for the same network


def test_a_card_that_is_there_stays(sent):
    export, _ = an_export()
    sent.folder.mkdir()
    (sent.folder / "README.md").write_text("mine")
    assert push_to_hub(export, "user/small", revision="two") == "hf-hub:user/small@two"
    assert (sent.folder / "README.md").read_text() == "mine"
    assert sent.asked[-1] == ("upload_folder", "user/small", "two", "Add a network")


def test_a_card_of_a_network_of_timm(sent):
    timm = pytest.importorskip("timm")
    import vitas

    model = vitas.wrap(timm.create_model("test_vit", num_classes=5, img_size=32), depth="auto", embed_dim=["50%", "100%"])
    export = export_subnet(model, search_space(model).smallest())
    source = ("test_vit", {"num_classes": 5, "img_size": 32})
    push_to_hub(export, "user/tiny", source=source)
    card = (sent.folder / "README.md").read_text()
    assert "`test_vit` of timm" in card
    assert "| `embed_dim` | 32 |" in card
    assert f"{macs(export.eval(), torch.randn(1, 3, 32, 32)):,}" in card
    assert 'timm.create_model("hf-hub:user/tiny", pretrained=True)' in card
    assert repr(timm.create_model(f"local-dir:{sent.folder}", pretrained=True)) == repr(export)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        return self.fc(x)


def test_a_network_of_ones_own_is_counted_in_parameters_only(sent):
    push_to_hub(Own(), "user/own")
    card = (sent.folder / "README.md").read_text()
    assert "| parameters | 16 |" in card
    assert "multiply-adds" not in card
    assert 'vitas.load_subnet("hf-hub:user/own", into=...)' in card


def test_nothing_is_sent_of_what_cannot_be_saved(sent):
    with pytest.raises(FileError, match="searchable"):
        push_to_hub(create_superformer("deit_micro", num_classes=10, img_size=16), "user/small")
    export, _ = an_export()
    export.head.register_buffer("scale", torch.ones(1).to("meta"))
    with pytest.raises(FileError, match="meta device"):
        push_to_hub(export, "user/small")
    assert not sent.asked


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Build the hub's cache by hand: a snapshot, and the branch that points to it; no connection."""
    export, x = an_export()
    repository = tmp_path / "cache" / "models--user--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    save_subnet(export, repository / "snapshots" / COMMIT)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return export, x


@pytest.mark.parametrize("at", ["", "@main", f"@{COMMIT}"])
def test_a_network_is_found_in_the_cache_of_the_hub(cached, at):
    export, x = cached
    assert torch.equal(load_subnet(f"hf-hub:user/small{at}").eval()(x), export(x))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hf-hub:user/other", "hf-hub:user/other: no connection to the hub, and the network is not in its cache"),
        ("hf-hub:user/small@two", "hf-hub:user/small@two: no connection to the hub"),
        ("hf-hub:user/small@", "expected a branch, tag or commit behind @"),
        ("hf-hub:", r"repo_id: expected \"user/name\" as on the hub, got ''"),
        ("hf-hub:a/b/c", "repo_id: expected"),
        ("hf-hub:user/my name", "repo_id: expected"),
    ],
)
def test_what_is_not_there_is_an_error_of_one_line(cached, place, message):
    with pytest.raises(FileError, match=message) as caught:
        load_subnet(place)
    assert "\n" not in str(caught.value)


def refusals():
    answer = SimpleNamespace(headers={}, request=None)
    errors = hub.errors
    return {
        errors.RepositoryNotFoundError("404\nlong", response=answer): "no such repository, or a private one",
        errors.RevisionNotFoundError("404\nlong", response=answer): "no such branch, tag or commit",
        errors.GatedRepoError("403\nlong", response=answer): "access has to be asked for",
        errors.HfHubHTTPError("500\nserver", response=answer): "HfHubHTTPError: 500 server",
        ConnectionError("broken\npipe"): "ConnectionError: broken pipe",
    }


def test_what_the_hub_refuses_is_told_in_one_line(monkeypatch, sent):
    export, _ = an_export()
    for refusal, message in refusals().items():

        def refuse(*_, refusal=refusal, **__):
            raise refusal

        monkeypatch.setattr(hub, "snapshot_download", refuse)
        monkeypatch.setattr(sent, "create_repo", refuse)
        for call in (lambda: load_subnet("hf-hub:user/small@two"), lambda: push_to_hub(export, "user/small")):
            with pytest.raises(FileError, match=f"^hf-hub:user/small.*: {message}") as caught:
                call()
            assert "\n" not in str(caught.value)
    with pytest.raises(FileError, match=r"repo_id: expected .*, got 3"):
        push_to_hub(export, 3)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: load_subnet("hf-hub:user/small"), lambda: push_to_hub(Own(), "user/small")):
        with pytest.raises(VitasError, match=r'huggingface_hub is not installed: pip install "vitas\[hub\]"'):
            call()

"""Files that an enemy made: refused before they are read without end or allocated."""

import ast
import inspect
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vitas
from tests.fuzz import frugal
from vitas import memory
from vitas.errors import ChoiceError, ExportError, FileError
from vitas.export import files
from vitas.export.network import _hash
from vitas.superformer import DeiTSuperformer, TwinsSuperformer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices")


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = vitas.create_superformer("deit_micro", num_classes=3, img_size=8)
    vitas.save_subnet(vitas.export_subnet(model, vitas.search_space(model).smallest()), tmp_path / "net")
    return tmp_path / "net"


def rewritten(folder, config):
    (folder / "config.json").write_text(json.dumps({**config, "hash": _hash(config)}))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "holes"])
def test_what_is_no_regular_file_is_not_read(folder, name, kind):
    path = folder / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.write(b'{"a": 1}' if name == "config.json" else (2).to_bytes(8, "little") + b"{}")
            file.truncate(2**32)
    message = "larger than|of holes|more than|takes" if kind == "holes" else "not a regular file"
    with pytest.raises(FileError, match=message):
        vitas.load_subnet(folder)
    if name == "model.safetensors":
        with pytest.raises(FileError, match=message):
            vitas.load_superformer(vitas.create_superformer("deit_micro", num_classes=3, img_size=8), path)


def test_a_link_to_a_regular_file_is_one(folder, tmp_path):
    before = vitas.load_subnet(folder).state_dict()
    (folder / "config.json").rename(tmp_path / "elsewhere")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere")
    after = vitas.load_subnet(folder).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


# What reads by itself: the helpers, what is read line by line up to a limit, and what the kernel tells of processes.
READERS = {"export/files.py", "search/journal.py", "search/storage.py", "search/ledger.py"}


def test_files_are_read_by_helpers_that_bound_them():
    found = set()
    for path in (package := Path(vitas.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("open", "json.load") or called.endswith((".read_text", ".read_bytes", ".open")):
                found.add(path.relative_to(package).as_posix())
    assert found == READERS


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "n" * 5000])
def test_paths_that_no_file_system_takes_are_refused(path):
    model = vitas.create_superformer("deit_micro", num_classes=3, img_size=8)
    exported = vitas.export_subnet(model)
    steps = [
        lambda: vitas.load_subnet(path),
        lambda: vitas.save_subnet(exported, path),
        lambda: vitas.save_superformer(model, path),
        lambda: vitas.load_superformer(model, path),
    ]
    for step in steps:
        with pytest.raises(FileError, match="path that the file system can write"):
            step()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
def test_whole_numbers_are_no_weights_though_config_and_file_agree(folder, dtype):
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    rewritten(folder, {**config, "dtypes": dict.fromkeys(config["dtypes"], str(dtype).removeprefix("torch."))})
    with pytest.raises(FileError, match="expected a floating type, got"):
        vitas.load_subnet(folder)


def test_a_twins_of_thousands_of_blocks_is_not_built(tmp_path):
    model = vitas.create_superformer("twins_micro", num_classes=3, img_size=32)
    vitas.save_subnet(vitas.export_subnet(model), tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    stage = config["model"]["stages"][0]
    config["model"]["stages"] = [{**stage, "blocks": stage["blocks"][:1] * 200}] * 5
    rewritten(tmp_path / "net", config)
    with pytest.raises(FileError, match="1000 blocks in all, more than 256"):
        vitas.load_subnet(tmp_path / "net")


def test_what_no_machine_holds_never_reaches_the_allocator(folder, monkeypatch):
    def allocate(pos_embed, old, new, prefix):
        assert old == new, "asked for memory"
        return pos_embed

    monkeypatch.setattr("vitas.plain.resample_positions", allocate)
    with pytest.raises(FileError, match=r"img_size: the table takes .* GB, and this machine has .* GB"):
        vitas.load_subnet(folder, img_size=2**20)
    with pytest.raises(ChoiceError, match=r"weight of shape .* takes .* GB, and this machine has"):
        vitas.nn.CyclicLinear(2**24, 2**24)
    with pytest.raises(ChoiceError, match=r"DeiTSuperformer of these sizes takes .* GB, and this machine has"):
        vitas.superformer.DeiTSuperformer(2**20, 1, 3)
    with pytest.raises(ChoiceError, match=r"q, k, v: a weight of shape .* takes .* GB, and this machine has"):
        vitas.nn.ElasticAttention(2**24, 1)
    with torch.device("meta"):
        assert vitas.nn.CyclicLinear(2**24, 2**24).weight.is_meta  # takes nothing
    with pytest.raises(ChoiceError, match=r"ElasticConv2d: a weight of shape .* takes .* GB, and this machine has"):
        vitas.nn.ElasticConv2d(2**16, 2**16, 32)
    subnet = vitas.active_subnet(vitas.create_superformer("deit_micro"))
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**20)
    with pytest.raises(FileError, match="takes"):
        memory.refuse_beyond_memory(2**20 + 1, "file", FileError)
    memory.refuse_beyond_memory(2**20, "file", FileError)
    monkeypatch.setattr("vitas.export.subnet.machine_memory", lambda: 2**10)
    with pytest.raises(ExportError, match="more than this machine has"):
        vitas.build_subnet("deit_micro", subnet)


def of_swin():
    timm = pytest.importorskip("timm")
    small = {"img_size": 32, "window_size": 4, "embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2), "num_classes": 3}
    return vitas.wrap(timm.create_model("swin_tiny_patch4_window7_224", **small))


MOST = 2**24
FAMILIES = {
    "deit": (lambda: vitas.create_superformer("deit_micro", num_classes=3, img_size=8), ()),
    "twins": (lambda: vitas.create_superformer("twins_micro", num_classes=3, img_size=32), ()),
    "swin": (of_swin, ("source", "arguments")),
}
BLOWN_UP = [
    *(("deit", name, value) for name, value in {"img_size": MOST, "in_chans": MOST, "num_classes": MOST}.items()),
    *(("deit", name, value) for name, value in {"embed_dim": MOST, "patch_size": MOST}.items()),
    *(("twins", name, value) for name, value in {"in_chans": MOST, "num_classes": MOST}.items()),
    *(("twins", f"stages.0.{name}", value) for name, value in {"embed_dim": MOST, "patch_size": 2**12}.items()),
    *(("swin", name, value) for name, value in {"img_size": MOST, "window_size": 2**14, "num_classes": MOST}.items()),
    ("swin", "embed_dim", 2**22),
]


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [pytest.param(*case, marks=pytest.mark.extras if case[0] == "swin" else ()) for case in BLOWN_UP],
)
def test_a_size_that_is_blown_up_takes_no_memory(family, name, value, tmp_path):
    build, place = FAMILIES[family]
    vitas.save_subnet(vitas.export_subnet(build()), tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    *path, last = *place, *name.split(".")
    inner = config["model"]
    for key in path:
        inner = inner[int(key) if isinstance(inner, list) else key]
    assert last in inner
    inner[last] = value
    rewritten(tmp_path / "net", config)
    refused = []
    with frugal(name, value, seconds=math.inf):
        try:
            vitas.load_subnet(tmp_path / "net")
        except FileError as error:
            refused.append(error)
    assert refused


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("vitas_deit", {"embed_dim": [2**20]}, "DeiTSuperformer of these sizes takes .* GB, and this machine has"),
        ("vitas_deit", {"embed_dim": [2**24]}, "takes .* GB, and this machine has"),
        ("deit_micro", {"qkv_dim": 2**24, "num_classes": 3, "img_size": 8}, "DeiTSuperformer of these sizes takes .* GB"),
        ("deit_micro", {"depth": 5000}, "depth: expected at most 256 blocks, got 5000"),
        ("vitas_twins", {"embed_dims": [[2**20]] * 4}, "TwinsSuperformer of these sizes takes .* GB, and this machine has"),
        ("vitas_twins", {"depths": [100] * 4}, "depths: expected at most 256 blocks in all stages, got 400"),
        ("vitas_twins", {"img_size": 2**24}, "img_size: expected a positive int"),
    ],
)
def test_a_superformer_that_is_too_large_takes_no_memory(name, sizes, message, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**34)
    refused = []
    with frugal(name, sizes, seconds=math.inf):
        try:
            vitas.create_superformer(name, **sizes)
        except ChoiceError as error:
            refused.append(error)
    assert re.search(message, str(refused[0]))
    assert len(str(refused[0])) <= 160


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (DeiTSuperformer, {"embed_dim": 2**13, "num_heads": 8, "depth": 6}),
        (TwinsSuperformer, {"embed_dims": [2**13] * 4, "num_heads": [8] * 4, "depths": [2] * 4}),
    ],
)
def test_constructors_refuse_what_fits_weight_by_weight_but_not_in_all(kind, sizes, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**34)
    with frugal(sizes, seconds=math.inf), pytest.raises(ChoiceError, match=f"{kind.__name__} of these sizes takes .* GB"):
        kind(**sizes)
    with torch.device("meta"):
        assert next(kind(**sizes).parameters()).is_meta  # takes nothing


def test_a_constructor_of_ones_own_runs_once():
    runs = []

    class Mine(DeiTSuperformer):
        def __init__(self, width):
            self.width_of_mine = width
            super().__init__(8, 2, 3, 3, embed_dim=width, depth=iter([1, 2]), num_heads=2)
            runs.append(self)

        def reset_parameters(self):
            assert self.width_of_mine is width  # of no draft
            super().reset_parameters()

    width = vitas.Dim([8, 16])
    model = Mine(width)
    assert runs == [model]
    assert model.embed_dim is width
    assert vitas.search_space(model).values["depth"] == (1, 2)
    assert list(inspect.signature(DeiTSuperformer).parameters)[:2] == ["img_size", "patch_size"]


def test_iterators_are_read_for_the_size_and_for_the_superformer():
    sizes = {"depth": iter([1, 2]), "num_heads": [iter([1, 2]), (n for n in [2])], "qkv_dim": 32}
    model = vitas.create_superformer("deit_micro", num_classes=3, img_size=8, **sizes)
    assert vitas.search_space(model).values["depth"] == (1, 2)
    assert vitas.search_space(model).values["blocks.0.num_heads"] == (1, 2)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("space", '{"embed_dim": {"values": [%s], "runs": []}}' % ("9" * 4000)),
        ("space", "[" + "[]," * 2**20 + "[]]"),
        ("part", "part." * 10**5),
        ("part", "x\n\x1b"),
        ("derived", "[[" * 10**5),
    ],
)
@pytest.mark.parametrize("adapt", [False, True])
def test_what_a_superformers_file_says_is_bounded(key, text, adapt, tmp_path):
    model = vitas.create_superformer("deit_micro", num_classes=3, img_size=8)
    vitas.save_superformer(model, tmp_path / "good")
    with safe_open(tmp_path / "good", framework="pt") as file:
        save_file(load_file(tmp_path / "good"), tmp_path / "x", {**file.metadata(), key: text})
    refused = []
    with frugal(key, text[:40], seconds=math.inf):
        try:
            vitas.load_superformer(model, tmp_path / "x", adapt=adapt)
        except FileError as error:
            refused.append(str(error).removeprefix(str(tmp_path)))
    assert refused[0].isprintable()
    assert len(refused[0]) <= 160


SIZES = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
TOWER = {**SIZES, "intermediate_size": 24}
WINDOWS = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4}
HUGGING_FACE = {
    "ViTForImageClassification": ("ViTConfig", TOWER),
    "Dinov2ForImageClassification": ("Dinov2Config", SIZES),
    "DINOv3ViTModel": ("DINOv3ViTConfig", TOWER),
    "CLIPForImageClassification": ("CLIPConfig", {"vision_config": TOWER}),
    "SiglipVisionModel": ("SiglipVisionConfig", TOWER),
    "Swinv2ForImageClassification": ("Swinv2Config", WINDOWS),
}
SAID = {
    **dict.fromkeys(("hidden_size", "image_size", "intermediate_size", "num_channels", "vocab_size"), MOST),
    **dict.fromkeys(("num_hidden_layers", "embed_dim", "mlp_ratio", "num_register_tokens"), 2**20),
    "depths": [MOST, 1],
    "num_heads": [MOST, 1],
    "num_attention_heads": 10**400,
    "window_size": -(10**400),
    "qkv_bias": {},
    "initializer_range": float("nan"),
    "initializer_factor": None,
    "hidden_act": "\x1b[31m" * 50,
}
"""What a config is made to say of keys that it has."""
NEVER = {
    "auto_map": {"AutoModel": "evil.Evil"},
    "_attn_implementation": "evil/kernel",
    "attn_implementation": "evil/kernel",
    "text_config": {f"name{number}": 1 for number in range(3000)},
    "id2label": json.loads("[" * 300 + "]" * 300),
}
"""What no config may say."""


def how_refused(folder):
    """Return how the network of a folder is refused, without the folder's name; else the number of its parameters."""
    try:
        return sum(parameter.numel() for parameter in vitas.load_subnet(folder).parameters())
    except FileError as error:
        return str(error).removeprefix(str(folder))


@pytest.mark.extras
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_blown_up_config_of_hugging_face_takes_no_memory(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind, sizes = HUGGING_FACE[name]
    model = getattr(transformers, name)(getattr(transformers, kind)(**sizes))
    wrapped = vitas.wrap(model)
    vitas.sample_subnet(wrapped, policy="smallest")
    vitas.save_subnet(vitas.export_subnet(wrapped), tmp_path / "net")
    text = (tmp_path / "net" / "config.json").read_text()
    number = how_refused(tmp_path / "net")

    def with_said(key, value):
        config = json.loads(text)
        arguments = config["model"]["source"]["arguments"]
        tower = arguments.get("vision_config", arguments)
        (arguments if key in arguments else tower)[key] = value
        rewritten(tmp_path / "net", config)
        with frugal(key, value, seconds=math.inf):
            refused = how_refused(tmp_path / "net")
        assert str(refused).isprintable()
        assert len(str(refused)) <= 160
        return refused

    for key, value in SAID.items():
        if f'"{key}": ' in text:  # a larger original of the same subnet is one
            assert isinstance(refused := with_said(key, value), str) or refused == number, key
    for key, value in [*NEVER.items(), *(("patch_size", value) for value in (0, -1, "8", None, 2**40))]:
        assert isinstance(with_said(key, value), str), key


def test_control_characters_are_not_printed(folder):
    bad = folder.parent / "a\x1b[31mb\x07"
    with pytest.raises(FileError) as caught:
        vitas.load_subnet(bad)
    assert "a\\x1b[31mb\\x07" in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(ChoiceError("two\nlines \ud800")) == "two\nlines \\ud800"


# -- what killed saves leave -------------------------------------------------------------------------------------------


def test_the_next_save_of_a_name_removes_what_killed_ones_left_and_nothing_else(tmp_path):
    dead = tmp_path / f".net-dead{files._SCRATCH}"
    (dead / "net").mkdir(parents=True)
    (tmp_path / f".other-dead{files._SCRATCH}").mkdir()
    (tmp_path / ".net-mine").mkdir()
    alive = tmp_path / f".net-alive{files._SCRATCH}"
    alive.mkdir()
    held = files._lock(alive)
    with files.complete_or_not_at_all(tmp_path / "net") as draft:
        draft.write_text("whole")
        assert not dead.exists()
        with files.complete_or_not_at_all(tmp_path / "net") as second:  # of another worker, at the same time
            second.write_text("too")
        assert draft.exists()
    os.close(held)
    left = {f".other-dead{files._SCRATCH}", ".net-mine", alive.name, "net"}
    assert {entry.name for entry in tmp_path.iterdir()} == left
    with files.complete_or_not_at_all(tmp_path / "net") as draft:
        draft.write_text("again")
    assert {entry.name for entry in tmp_path.iterdir()} == left - {alive.name}

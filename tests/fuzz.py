"""Hostile input for everything public that takes data: it works, or a VitasError says clearly and soon what is wrong.

The tests run a few hundred inputs of each kind; the long form runs until the time is up, with another seed each round,
and prints the input that broke the promise:

    python -m tests.fuzz --seconds 3600
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import random
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

import vitas
from vitas.errors import VitasError, shown
from vitas.export.network import _hash
from vitas.train.depth_law import depth_law_for

SECONDS = 1.0  # of processor time
DATABASE_SECONDS = 3.0  # a search of four subnets on SQLite takes 0.3 s, most of it Optuna's; more on a busy machine
MEGABYTES = 64
LONGEST_MESSAGE = 2000
LONGEST_TEXT = 2**23  # of what is tried; beyond every limit on files and texts


class Slow(AssertionError):
    """An input that took too long."""


@contextlib.contextmanager
def frugal(*given: Any, seconds: float = SECONDS) -> Iterator[None]:
    """Check that what runs inside is quick and takes little memory, and raises nothing but a VitasError that says why."""
    try:
        with _frugal(seconds):
            yield
    except Exception:
        print("given:", *(shown(it, 2000) for it in given))
        raise


@contextlib.contextmanager
def _frugal(most: float) -> Iterator[None]:
    before = _reset_peak()
    started = time.process_time()
    try:
        yield
    except VitasError as error:
        message = str(error)
        assert message, "an error without a message"
        assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters: {message[:200]}..."
    seconds = time.process_time() - started
    if seconds >= most:
        raise Slow(f"took {seconds:.1f} s")
    grown = _peak() - before
    assert grown < MEGABYTES, f"took {grown:.0f} MB"


def _status(field: str) -> float:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))
    return 0.0


def _peak() -> float:
    return _status("VmHWM")


def _reset_peak() -> float:
    """Forget the peak of memory so far, where the system can; return the peak from here on, in MB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


# -- what people and broken programs pass ------------------------------------------------------------------------------

HUGE = [2**24 + 1, 2**31 - 1, 2**31, 2**62, 2**63, 2**64, 10**30, 10**400, 10**5000, -(2**63), -(10**5000)]


class Rude:
    """An object that cannot even be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def pick(things: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Return one of these; not by `sampled_from`, which prints what it holds, and some of this cannot be printed."""
    return st.integers(0, len(things) - 1).map(lambda place: things[place])


@functools.cache
def numbers() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.integers(-3, 40),
        pick(HUGE),
        st.floats(),
        pick([0.5, 1e-320, 1e308, math.inf, -math.inf, math.nan, True, False]),
        pick([np.int64(3), np.float32(0.5), np.float64("nan"), np.bool_(True), np.uint8(255)]),
    )


@functools.cache
def words() -> st.SearchStrategy[Any]:
    known = [
        "largest",
        "smallest",
        "left",
        "right",
        "random",
        "inherit",
        "exact",
        "vitas",
        "fresh",
        "cyclic",
        "50%",
        "-1%",
        "1e400%",
        "%",
        "nan%",
    ]
    return st.one_of(st.text(max_size=8), pick(known), pick(["", "x" * 10**6, "\0", "\ud800", "💥" * 99]))


@functools.cache
def scalars() -> st.SearchStrategy[Any]:
    things = [
        None,
        object,
        Rude(),
        torch.zeros(3),
        torch.zeros(()),
        np.zeros((2, 2)),
        b"\xff" * 9,
        3j,
        print,
        {1, 2},
        range(10**9),
    ]
    return st.one_of(numbers(), words(), pick(things))


@functools.cache
def anything() -> st.SearchStrategy[Any]:
    keys = st.one_of(words(), st.integers(), st.none())
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4), st.tuples(inner, inner), st.tuples(inner)
        ),
        max_leaves=8,
    )


@functools.cache
def json_values() -> st.SearchStrategy[Any]:
    leaves = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 40), pick(HUGE[:8]), st.floats(), st.text(max_size=6), st.just("x" * 10**5)
    )
    return st.recursive(
        leaves, lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=4), i, max_size=3), max_leaves=5
    )


def mutated(value: Any, draw: Callable[[Any], Any], times: int = 2) -> Any:
    """Return a copy of a JSON value with a few parts replaced, dropped, added or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, times))):
        parts = list(_containers(value))
        if not parts:
            return draw(json_values())
        part = draw(pick(parts))
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        deed = draw(st.sampled_from(["replace", "drop", "add", "repeat"]))
        key = draw(pick(keys)) if keys else None
        if deed == "add" or key is None:
            _put(part, draw(st.text(max_size=6)), draw(json_values()))
        elif deed == "replace":
            part[key] = draw(json_values())
        elif deed == "drop":
            del part[key]
        else:
            repeats = draw(st.sampled_from([2, 100, 3000]))
            text = json.dumps(part[key])
            for number in range(min(repeats, LONGEST_TEXT // len(text))):  # repeated repeats would fill all memory
                _put(part, f"{key}{number}", json.loads(text))  # a value each, or the next deed would meet all of them
    return value


def _put(part: Any, key: str, value: Any) -> None:
    if isinstance(part, dict):
        part[key] = value
    else:
        part.append(value)


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


# -- what is tried -----------------------------------------------------------------------------------------------------


class Bench:
    """A small superformer, its space, and files of it, made once."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        self.model = vitas.create_superformer("deit_micro", num_classes=3, img_size=8)
        self.space = vitas.search_space(self.model)
        self.subnet = self.space.smallest()
        vitas.save_subnet(vitas.export_subnet(self.model, self.subnet), folder / "good")
        vitas.save_superformer(self.model, folder / "super.safetensors")
        self.config = json.loads((folder / "good" / "config.json").read_text())
        self.weights = (folder / "good" / "model.safetensors").read_bytes()
        self.super_path = folder / "super.safetensors"
        self.super = self.super_path.read_bytes()
        vitas.sample_subnet(self.model, flops="50%")  # import what is imported late
        self.pyramid = vitas.create_superformer("twins_micro", num_classes=3, img_size=32)
        self.files = 0

    @functools.cached_property
    def backbone(self) -> torch.nn.Module:
        """A small model of timm's; needs the extra `timm`."""
        import timm

        made = timm.create_model("test_vit", num_classes=3, img_size=32)
        assert isinstance(made, torch.nn.Module)
        vitas.wrap(made)  # import what is imported late
        return made

    @functools.cached_property
    def pyramid_backbone(self) -> torch.nn.Module:
        """A small Twins of timm's; needs the extra `timm`."""
        from timm.models.twins import Twins

        sizes = {"embed_dims": (32, 48), "num_heads": (2, 3), "mlp_ratios": (2, 2), "depths": (2, 2), "wss": (4, 2)}
        made: Any = Twins(num_classes=3, img_size=32, sr_ratios=(2, 1), **sizes)
        vitas.export_subnet(vitas.wrap(made))
        assert isinstance(made, torch.nn.Module)
        return made

    def path(self, suffix: str = "") -> Path:
        """Return a path that was not used before."""
        self.files += 1
        return self.folder / f"{self.files}{suffix}"


def near_subnets(bench: Bench, draw: Callable[[Any], Any], space: vitas.SearchSpace | None = None) -> Any:
    """Return a subnet with something wrong, or something else altogether."""
    space = bench.space if space is None else space
    if draw(st.integers(0, 3)) == 0:
        return draw(anything())
    values: dict[Any, Any] = dict(draw(pick([space.smallest(), space.largest()])))
    for _ in range(draw(st.integers(1, 3))):
        deed = draw(st.sampled_from(["replace", "drop", "add"]))
        if deed == "add":
            values[draw(st.one_of(words(), st.sampled_from(["blocks.99.mlp_dim", "depht"])))] = draw(scalars())
        elif values:
            name = draw(pick(list(values)))
            if deed == "drop":
                del values[name]
            else:
                values[name] = draw(scalars())
    return values


@functools.cache
def _many_names() -> str:
    """Return names of as many blocks and columns, the last of which stands twice."""
    return "{" + ",".join(f'"{number:x}.{number:x}":1' for number in [*range(20_000), 19_999]) + "}"


def subnet_from_json(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Read text, mutated JSON, deep nesting, bytes."""
    good = dict(bench.subnet)
    kind = draw(st.integers(0, 4))
    text: Any
    if kind == 0:
        text = json.dumps(mutated(good, draw))
    elif kind == 1:
        text = draw(
            pick(
                [
                    "[" * 10**5,
                    _many_names(),
                    '{"a":' * 10**5,
                    "1" * 10**6,
                    '{"a": ' + "9" * 10**5 + "}",
                    "NaN",
                    '{"a": 1e999}',
                ]
            )
        )
    elif kind == 2:
        characters = list(bench.subnet.to_json())
        for _ in range(draw(st.integers(1, 3))):
            characters[draw(st.integers(0, len(characters) - 1))] = draw(st.characters())
        text = "".join(characters)
    elif kind == 3:
        text = draw(st.binary(max_size=40))
    else:
        text = draw(anything())
    with frugal(text):
        subnet = vitas.Subnet.from_json(text)
        assert vitas.Subnet.from_json(subnet.to_json()) == subnet
        repr(subnet), subnet._repr_html_()
        bench.space.activate(subnet)


def space_functions(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Activate, complete, encode, decode; what was active stays where something is refused."""
    bench.space.activate(bench.subnet)
    subnet = near_subnets(bench, draw)
    which = draw(st.integers(0, 6))
    word = draw(st.none() | words() | scalars())
    length = draw(st.sampled_from([len(bench.space), 0, 1]))
    places = draw(st.one_of(st.lists(numbers(), min_size=length, max_size=length), anything()))
    refused = True
    with frugal(which, subnet, word, places):
        if which == 0:
            bench.space.activate(subnet, side=word)
        elif which == 1:
            assert bench.space.subnet(subnet, fill=word) in bench.space
        elif which == 2:
            bench.space.encode(subnet)
        elif which == 3:
            bench.space.decode(places)
        elif which == 4:
            assert (subnet in bench.space) in (True, False)
        elif which == 5:
            with vitas.use_subnet(bench.model, subnet, side=word):
                pass
        else:
            vitas.cost_model(bench.model).flops(subnet)
        refused = False
    if refused or which:
        assert bench.space.active() == bench.subnet


def budgets(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Sample and count inside budgets that are no budgets, with choices held that are none."""
    bound = st.one_of(st.none(), numbers(), words(), st.integers(0, 10**7))
    budget = draw(st.one_of(bound, st.tuples(bound, bound), st.lists(bound, max_size=3), anything()))
    other = draw(st.one_of(st.none(), st.none(), bound))
    which = draw(st.integers(0, 3))
    policy = draw(st.just("random") | words())
    number, count = draw(st.just(0) | scalars()), draw(st.just(0) | scalars())
    fixed = near_subnets(bench, draw) if draw(st.booleans()) else draw(words() | st.none())
    only = draw(st.one_of(st.none(), anything(), st.dictionaries(words() | st.just("*"), anything(), max_size=2)))
    held = {"fixed": fixed, "only": only} if draw(st.booleans()) else {}
    with frugal(which, budget, other, policy, number, count, held):
        if which == 0:
            vitas.sample_subnet(bench.model, flops=budget, params=other, policy=policy, **held)
        elif which == 1:
            vitas.count_subnets(bench.model, params=budget, **held)
        elif which == 2:
            vitas.SubnetSampler(bench.model, params=budget, seed=number, **held).sample(count)
        else:
            depth_law_for(bench.model, flops=budget)


def building(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Build networks of no space, of impossible sizes, with unknown arguments."""
    size = st.one_of(
        pick([0, -1, 8, 16, *HUGE]), numbers().filter(_tiny_or_absurd), words(), st.none(), st.tuples(numbers(), numbers())
    )
    options: dict[str, Any] = {"num_classes": 3, "img_size": 8, "in_chans": 1}
    names = [
        "num_classes",
        "img_size",
        "in_chans",
        "embed_dim",
        "depth",
        "num_heads",
        "qkv_dim",
        "mlp_dim",
        "mlp_ratio",
        "patch_size",
    ]
    names += [
        "head_dim",
        "private",
        "global_pool",
        "distilled",
        "drop_path_rate",
        "sharing",
        "norm_eps",
        "init_values",
        "nonsense",
        "depth_p",
    ]
    for name in draw(st.lists(st.sampled_from(names), max_size=2, unique=True)):
        options[name] = draw(st.one_of(size, st.lists(size, max_size=4), scalars().filter(_tiny_or_absurd)))
    name = draw(st.one_of(st.just("deit_micro"), st.just("deit_micro"), words(), scalars()))
    subnet = near_subnets(bench, draw) if draw(st.booleans()) else bench.subnet
    with frugal(name, subnet, options):
        vitas.build_subnet(name, subnet, **options)


def _tiny_or_absurd(value: Any) -> bool:
    """Leave out sizes that some machine could hold: who asks for them gets them."""
    return not isinstance(value, (int, float, np.generic)) or not 64 < abs(value) <= 2**24


def exporting(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Export and count with words and subnets that are none."""
    which = draw(st.integers(0, 3))
    subnet = draw(st.none()) if which == 0 else near_subnets(bench, draw)
    word = draw(st.one_of(words(), scalars()))
    side = draw(st.none() | scalars())
    with frugal(which, subnet, word, side):
        if which == 0:
            vitas.export_subnet(bench.model, subnet, weights=word, side=side)
        elif which == 1:
            vitas.export_subnet(bench.model, subnet)
        elif which == 2:
            vitas.count_flops(bench.model, subnet, convention=word)
        else:
            vitas.published_subnet(word)


def choices(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Make choices and dimensions of nonsense."""
    values = draw(st.one_of(st.lists(st.one_of(st.integers(1, 9), numbers()), max_size=4), anything()))
    p = draw(st.one_of(st.none(), st.lists(numbers(), max_size=4), anything()))
    sharing = draw(
        st.one_of(
            st.just("cyclic"),
            words(),
            scalars().filter(lambda it: not callable(it)),
            pick([lambda v, n, p: v, lambda v, n, p: None]),
        )
    )
    name = draw(st.one_of(st.none(), scalars()))
    which = draw(st.integers(0, 4))
    value, factor, features = draw(scalars()), draw(numbers()), draw(scalars().filter(_tiny_or_absurd))
    with frugal(which, values, p, sharing, name, value, factor, features):
        if which == 0:
            repr(vitas.Choice(values, p=p, name=name))
        elif which == 1:
            dim = vitas.Dim(values, p=p, name=name, sharing=sharing)
            dim.active = value
        elif which == 2:
            vitas.Dim.fractions(value, values, sharing=sharing)
        elif which == 3:
            dim = vitas.Dim(values, p=p)
            if isinstance(factor, (int, np.integer)) and not isinstance(factor, bool):
                _ = dim * factor
        else:
            vitas.nn.CyclicLinear(features, vitas.Dim([2, 4]), device="meta")


def network_files(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Load a network whose config or weights were changed, cut short, or made by an enemy."""
    folder = bench.path()
    folder.mkdir()
    config: Any = bench.config
    kind = draw(st.integers(0, 3))
    if kind != 1:
        config = mutated(bench.config, draw)
        if isinstance(config, dict) and draw(st.integers(0, 5)):
            config["hash"] = _hash(config)
    text = json.dumps(config).encode("utf-8", "surrogatepass")
    if kind == 3:
        text = _damaged(text, draw)
    (folder / "config.json").write_bytes(text)
    (folder / "model.safetensors").write_bytes(_damaged_weights(bench.weights, draw) if kind != 0 else bench.weights)
    img_size = draw(st.one_of(st.none(), st.none(), numbers().filter(_tiny_or_absurd)))
    with frugal(kind, text, img_size):
        vitas.load_subnet(folder, img_size=img_size)


def odd_files(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Load and save where there is no regular file, or one with more of something than anybody writes."""
    folder = bench.path()
    folder.mkdir()
    name = draw(st.sampled_from(["config.json", "model.safetensors"]))
    for other, content in (("config.json", json.dumps(bench.config).encode()), ("model.safetensors", bench.weights)):
        (folder / other).write_bytes(content)
    odd, kind = (
        folder / name,
        draw(st.sampled_from(["pipe", "device", "folder", "link", "holes", "names", "blocks", "ints"])),
    )
    if kind in ("pipe", "device", "folder", "link") and hasattr(os, "mkfifo"):
        odd.unlink()
        {
            "pipe": lambda: os.mkfifo(odd),
            "device": lambda: odd.symlink_to(draw(st.sampled_from(["/dev/zero", "/dev/urandom", "/dev/null"]))),
            "folder": odd.mkdir,
            "link": lambda: odd.symlink_to(odd),
        }[kind]()
    elif kind == "holes":
        with odd.open("r+b") as file:
            file.truncate(draw(st.sampled_from([2**24, 2**32, 2**40])))
    else:
        config = copy.deepcopy(bench.config)
        if kind == "names":
            config["dtypes"] = {f"{number:x}.{number:x}": "float32" for number in range(draw(st.integers(1, 20_000)))}
        elif kind == "blocks":
            config["model"]["blocks"] = config["model"]["blocks"][:1] * draw(st.sampled_from([300, 1024, 1025]))
        else:
            kinds = st.sampled_from(["int8", "int32", "int64", "uint8", "bool", "complex64"])
            config["dtypes"] = dict.fromkeys(config["dtypes"], draw(kinds))
        (folder / "config.json").write_text(json.dumps({**config, "hash": _hash(config)}, separators=(",", ":")))
    paths = [folder, odd, bench.super_path, "\0", "\ud800", "a\x1b[2J", b"x", "n" * 5000]
    path = draw(pick([folder, folder, *paths]))
    img_size = draw(st.sampled_from([None, None, 2**20, (2**20, 8)]))
    with frugal(kind, name, path, img_size):
        vitas.load_subnet(path, img_size=img_size)
    with frugal(kind, path, odd):
        vitas.load_superformer(bench.model, path if path != folder else odd)


def superformer_files(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Load a superformer's file that was changed or cut; the model stays as it is where it is refused."""
    path = bench.path(".safetensors")
    path.write_bytes(_damaged_weights(bench.super, draw))
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    loaded = False
    with frugal(path.read_bytes()[:2000]):
        vitas.load_superformer(bench.model, path)
        loaded = True
    after = bench.model.state_dict()
    assert loaded or all(torch.equal(before[name], after[name]) for name in before)
    bench.model.load_state_dict(before)


def _damaged(data: bytes, draw: Callable[[Any], Any]) -> bytes:
    bytes_ = bytearray(data)
    if draw(st.booleans()):
        return bytes(bytes_[: draw(st.integers(0, len(bytes_)))])
    for _ in range(draw(st.integers(1, 4))):
        bytes_[draw(st.integers(0, len(bytes_) - 1))] = draw(st.integers(0, 255))
    return bytes(bytes_)


def _damaged_weights(data: bytes, draw: Callable[[Any], Any]) -> bytes:
    if draw(st.integers(0, 3)) == 0:
        return _damaged(data, draw)
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if "space" in header.get("__metadata__", {}) and draw(st.booleans()):
        field = draw(st.sampled_from(sorted(header["__metadata__"])))
        header["__metadata__"][field] = draw(
            st.one_of(st.text(max_size=9), json_values().map(json.dumps), st.just("[" * 10**5))
        )
    else:
        header = mutated(header, draw)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    said = draw(st.sampled_from([len(text), len(text), len(text), 0, 2**40, 2**63, len(text) + 1]))
    return struct.pack("<Q", said) + text + body


def pyramids(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Build, activate, export and feed Twins networks with arguments that have one entry too few, or are no numbers."""
    size = st.one_of(pick([0, -1, 32, 48, *HUGE]), numbers().filter(_tiny_or_absurd), words(), st.none(), scalars())
    names = [
        "embed_dims",
        "depths",
        "num_heads",
        "qkv_dims",
        "mlp_dims",
        "patch_size",
        "sr_ratios",
        "window_size",
        "windows",
    ]
    names += ["head_dim", "private", "drop_path_rate", "sharing", "img_size", "in_chans", "num_classes", "nonsense", "step"]
    space = vitas.search_space(bench.pyramid)
    subnet = near_subnets(bench, draw, space)
    which = draw(st.integers(0, 3))
    options = {
        name: draw(st.one_of(size.filter(_tiny_or_absurd), st.lists(size.filter(_tiny_or_absurd), max_size=5)))
        for name in draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    }
    images = torch.zeros(()).expand(draw(st.lists(st.integers(0, 40), max_size=5)))  # holds one number, whatever its shape
    with frugal(which, subnet, options, images.shape):
        if which == 0:
            vitas.build_subnet("twins_micro", subnet, **{"num_classes": 3, "img_size": 32, **options})
        elif which == 1:
            vitas.activate_subnet(bench.pyramid, subnet)
        elif which == 2:
            vitas.export_subnet(bench.pyramid, subnet)
        else:
            bench.pyramid(images)


def evolutions(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Ask and tell with scores that are none, budgets, objectives and limits that are none."""
    names = st.one_of(st.sampled_from(["accuracy", "flops", "latency_ms"]), words(), scalars())
    pairs = st.lists(
        st.tuples(names.filter(_hashable), st.one_of(st.sampled_from(["max", "min"]), scalars(), anything())), max_size=3
    )
    options: dict[str, Any] = {"population": 4}
    for name in draw(st.lists(st.sampled_from(["flops", "objectives", "limits", "population", "seed"]), max_size=2)):
        if name in ("objectives", "limits"):
            options[name] = draw(st.one_of(pairs.map(dict), anything()))
        else:
            options[name] = draw(st.one_of(numbers().filter(_tiny), scalars().filter(_tiny)))
    asked = draw(st.one_of(st.just(2), scalars().filter(_tiny)))
    told = draw(st.one_of(scalars(), pairs.map(dict), anything()))
    subnet = near_subnets(bench, draw) if draw(st.booleans()) else None
    with frugal(options, asked, told, subnet):
        evolution = vitas.Evolution(bench.model, **options)
        found = evolution.ask(asked)
        evolution.tell(found[0] if subnet is None else subnet, told)
        _ = evolution.result().front, evolution.result().hypervolume, repr(evolution.result())


def _tiny(value: Any) -> bool:
    """Leave out counts that take long: who asks for them gets them."""
    return not isinstance(value, (int, np.integer)) or value < 64


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def searches(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Search with an evaluation that returns nonsense or raises, on storages that are none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    returned = draw(st.lists(st.one_of(st.just(0.5), scalars(), anything()), min_size=1, max_size=4))
    options: dict[str, Any] = {"population": 2, "generations": 2, "max_failures": 3}
    for name in draw(
        st.lists(st.sampled_from(["generations", "max_failures", "stale_after", "name", "storage", "seed"]), max_size=2)
    ):
        options[name] = draw(scalars().filter(_tiny))
    if "storage" in options:  # what can be written is written into the folder
        file = bench.path(".log")
        file.write_bytes(draw(st.one_of(st.binary(max_size=60), st.just(b'{"op_code": 0}\n'), st.just(b"[]\n"))))
        missing = bench.folder / "none" / "search.log"
        urls = ["sqlite:///", "sqlite:///\ud800", f"sqlite:///{missing}", "nosuch://host/name", "://", f"sqlite:///{file}"]
        paths = [file, bench.folder, missing, *urls, 3, b"x", "", "\0", "\ud800"]
        options["storage"] = draw(pick(paths))
    calls = iter(returned * 10)

    def evaluate(_: torch.nn.Module) -> Any:
        value = next(calls)
        if value is None:
            raise RuntimeError("evaluation failed")
        return value

    database = "://" in str(options.get("storage"))
    with frugal(returned, options, seconds=DATABASE_SECONDS if database else SECONDS):
        vitas.evolve(bench.model, evaluate, progress=False, **options)


def wrapped_models(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Wrap a timm model with values that divide nothing; the model stays as it is."""
    percent = st.sampled_from(["50%", "100%", "0%", "150%", "12.5%", " 50 %", "auto", "x%"])
    value = st.one_of(st.none(), percent, scalars().filter(_tiny_or_absurd))
    options = {
        name: draw(st.one_of(value, st.lists(st.one_of(st.integers(-1, 64), value), max_size=4)))
        for name in draw(
            st.lists(
                st.sampled_from(["embed_dim", "num_heads", "mlp_ratio", "depth", "leave", "blocks", "sharing", "order"]),
                min_size=1,
                max_size=3,
                unique=True,
            )
        )
    }
    for name in [name for name, value in options.items() if callable(value)]:
        del options[name]  # a rule of the caller's own, which may raise what it likes
    backbone = bench.backbone if draw(st.booleans()) else bench.pyramid_backbone
    before = type(backbone), list(backbone.state_dict())
    space = None
    with frugal(options):
        wrapped = vitas.wrap(backbone, **options)
        vitas.export_report(wrapped, vitas.sample_subnet(wrapped))
        space = vitas.search_space(wrapped)
    if space is not None:
        subnet = near_subnets(bench, draw, space)
        with frugal(options, subnet):
            vitas.export_subnet(wrapped, subnet)
    assert before == (type(backbone), list(backbone.state_dict()))


def timm_files(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Load an exported timm network whose config or weights were changed."""
    kind = draw(st.sampled_from(["backbone", "pyramid_backbone"]))
    good = bench.folder / kind
    if not good.exists():
        wrapped = vitas.wrap(getattr(bench, kind))
        vitas.save_subnet(vitas.export_subnet(wrapped, vitas.search_space(wrapped).smallest()), good)
        vitas.load_subnet(good)  # import what is imported late
    folder = bench.path()
    folder.mkdir()
    config = json.loads((good / "config.json").read_text())
    weights = (good / "model.safetensors").read_bytes()
    changed = mutated(config, draw, 3)
    if isinstance(changed, dict) and draw(st.integers(0, 5)):
        changed["hash"] = _hash(changed)
    (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8", errors="surrogatepass")
    (folder / "model.safetensors").write_bytes(_damaged_weights(weights, draw) if draw(st.booleans()) else weights)
    with frugal(changed):
        vitas.load_subnet(folder)


def latency_tables(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Read a table whose text was changed; one that is taken is written, read again and sampled by."""
    choices = vitas.search_space(bench.model).choices
    name, choice = next(iter(choices.items()))
    told = {"statistic": "median", "runs": 1, "runner": "torch", "threads": 1, "configurations": 2, "busy": 0}
    parts = [["a", [name], list(range(len(choice.values)))], ["b", [], 7]]
    table = {"choices": {key: list(it.values) for key, it in choices.items()}, "measured": told, "nanoseconds": parts}
    changed = draw(pick(list(table)))
    text = json.dumps({**table, changed: mutated(table[changed], draw, 3)})
    if not draw(st.integers(0, 5)):
        text = text[: draw(st.integers(0, len(text)))]
    with frugal(text):
        read = vitas.LatencyTable.from_json(text, bench.model)
        assert vitas.LatencyTable.from_json(read.to_json(), bench.model).to_json() == read.to_json()
        str(read)
        vitas.sample_subnet(bench.model, latency=(read, "50%"))


def training_help(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Sandwiches, scores, recipes and reports with nonsense; the active subnet stays where something is refused."""
    junk = st.one_of(scalars().filter(_tiny_or_absurd), anything())
    which = draw(st.integers(0, 7))
    given = [draw(junk) for _ in range(3)]
    setting = draw(pick([field.name for field in dataclasses.fields(vitas.train.Recipe)]))
    teacher = torch.zeros(draw(st.sampled_from([(2, 3), (3, 2), (2,), ()])))
    with frugal(which, given, teacher.shape, setting):
        if which == 0:
            steps = vitas.train.sandwich(bench.model, n_random=given[0], step=given[1], seed=given[2])
            list(itertools.islice(steps, 5))
        elif which == 1:
            vitas.train.distill_loss(torch.zeros(2, 3), teacher, temperature=given[0])
            vitas.train.distill_loss(torch.zeros(2, 3), teacher, alpha=given[1], clip=given[2])
        elif which == 2:
            vitas.accuracy(given[0])(bench.model)
        elif which == 3:
            if not isinstance(given[0], (tuple, list, dict)):  # arguments of the module, whose own error it would be
                vitas.measure_latency(bench.model, given[0], warmup=0, runs=1)
        elif which == 4:
            vitas.zero_cost(bench.model, given[0])
        elif which == 5:
            vitas.train.skip_unused(given[0], per=given[1])
        elif which == 6:
            vitas.train.Recipe(**{setting: given[0]})
        else:
            vitas.train.supernet_report(bench.model, lambda _: given[0], n_random=2)


def superformers(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Create superformers with choices of nonsense, entries too few, and sizes that divide nothing."""
    size = st.one_of(
        st.integers(-1, 9),
        st.lists(st.integers(0, 9), max_size=4),
        st.lists(st.lists(st.integers(1, 9), max_size=3), max_size=4),
        st.lists(scalars().filter(_tiny_or_absurd), max_size=4),
        scalars().filter(_tiny_or_absurd),
    )
    name = draw(st.sampled_from(["deit_micro", "deit_micro", "twins_micro", "twins_micro", "vitas_none"]))
    both = ["num_classes", "img_size", "in_chans", "patch_size", "num_heads", "private", "sharing", "depth_p", "shift"]
    both += ["drop_path_rate", "norm_eps", "global_pool"]
    flat = ["embed_dim", "depth", "qkv_dim", "head_dim", "mlp_dim", "mlp_ratio", "distilled", "init_values"]
    flat += ["qkv_bias", "fc_norm", "nonsense"]
    stages = ["embed_dims", "depths", "qkv_dims", "mlp_dims", "mlp_ratios", "sr_ratios", "wss", "pos_drop_rate"]
    names = both + (stages if name.startswith("twins") else flat)
    options: dict[str, Any] = {"num_classes": 3, "img_size": 32 if name.startswith("twins") else 8}
    for option in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        options[option] = draw(size)
    for name in [name for name, value in options.items() if callable(value)]:
        del options[name]  # a rule of the caller's own, which may raise what it likes
    with frugal(name, options):
        model = vitas.create_superformer(name, **options)
        repr(vitas.search_space(model))
        vitas.export_subnet(model, vitas.search_space(model).smallest())


def layers(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Build layers of sizes and options that are none."""
    value = scalars().filter(_tiny_or_absurd)
    size = st.one_of(st.integers(0, 12), st.sampled_from([(2, 4), (2, 3), (1, 12)]).map(vitas.Dim), value)
    count = st.one_of(st.integers(0, 4), st.sampled_from([(1, 2), (2, 3)]).map(vitas.Choice), value)
    a, b, c, word = draw(size), draw(size), draw(count), draw(value)
    kind = draw(st.integers(0, 9))
    with frugal(kind, a, b, c, word):
        if kind == 0:
            vitas.nn.CyclicLinear(a, b)(torch.zeros(2, 4))
        elif kind == 1:
            vitas.nn.ElasticLayerNorm(a)(torch.zeros(2, 4))
        elif kind == 2:
            vitas.nn.ElasticMlp(a, b)(torch.zeros(2, 4))
        elif kind == 3:
            vitas.nn.ElasticAttention(a, b, qkv_dim=word)(torch.zeros(2, 3, 4))
        elif kind == 4:
            vitas.nn.ElasticAttention(a, c, head_dim=2, private=word)(torch.zeros(2, 3, 4))
        elif kind == 5:
            vitas.nn.ElasticConv2d(a, b, 3)(torch.zeros(2, 4, 9, 9))
        elif kind == 6:
            vitas.nn.ElasticPatchEmbed(8, c, 3, b)(torch.zeros(2, 3, 8, 8))
        elif kind == 7:
            vitas.nn.ElasticTokens(word, c, a)
        elif kind == 8:
            vitas.nn.ElasticWindowAttention(a, 2, c)(torch.zeros(2, 4, 4, 4))
        else:
            vitas.nn.ShiftableIdentity([torch.nn.Identity()] * 3, min_depth=a, p=word, step=c)(torch.zeros(2))


def displays(bench: Bench, draw: Callable[[Any], Any]) -> None:
    """Draw cards of subnets that are none."""
    which = draw(st.integers(0, 3))
    subnet, other = near_subnets(bench, draw), near_subnets(bench, draw)
    with frugal(which, subnet, other):
        if which == 0:
            vitas.plot.subnet_card(bench.model, subnet)
        elif which == 1:
            vitas.plot.difference_card(bench.model, subnet, other)
        elif which == 2:
            vitas.plot.space_card(subnet)
        else:
            vitas.count_params(bench.model, subnet)


CORE = [
    subnet_from_json,
    space_functions,
    budgets,
    building,
    exporting,
    choices,
    network_files,
    odd_files,
    superformer_files,
    latency_tables,
    pyramids,
    evolutions,
    training_help,
    superformers,
    layers,
    displays,
]
EXTRAS = [searches, wrapped_models, timm_files]
"""Kinds of input that need the extras `search` and `timm`."""
TARGETS = [*CORE, *EXTRAS]


@st.composite
def _played(draw: Callable[[Any], Any], bench: Bench, target: Callable[..., None]) -> None:
    """Try an input while it is drawn: Hypothesis would print inputs of its own accord, and some cannot be printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        target(bench, draw)


def trial(target: Callable[..., None], bench: Bench, examples: int, number: int | None = None) -> Callable[[], None]:
    """Return a test that tries `examples` inputs of a kind."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=number is None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(_played(bench, target))
    def run(_: None) -> None:
        pass

    def run_through() -> None:
        try:
            (run if number is None else seed(number)(run))()
        except Flaky as error:  # quick when tried again: other work had the processor's caches, not this input
            causes = getattr(error, "exceptions", (error.__context__,))
            slow = [cause for cause in causes if isinstance(cause, Slow)]
            if not slow or not all(isinstance(cause, (Slow, Flaky)) for cause in causes):
                raise
            print(f"{target.__name__}: slow once: {slow[0]}", flush=True)

    return run_through


def _limit_memory(size: int) -> None:
    """Let what takes all memory end in a MemoryError, which names its input, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> None:
    """Run rounds over all kinds of input until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=None, help="run so many over all kinds, however long they take")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; default: another one each time")
    parser.add_argument("--examples", type=int, default=60, help="inputs of each kind in a round")
    parser.add_argument("--only", choices=[target.__name__ for target in TARGETS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    _limit_memory(2**33)
    number = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    print(f"first seed {number}")
    tried, ends, failed = 0, time.monotonic() + options.seconds, []
    targets = [target for target in TARGETS if options.only in (None, target.__name__)]
    last = None if options.rounds is None else number + options.rounds
    while targets and (time.monotonic() < ends if last is None else number < last):
        for target in list(targets):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    trial(target, Bench(Path(folder)), options.examples, number)()
                except BaseException:
                    import traceback

                    traceback.print_exc(file=sys.stdout)
                    print(f"{target.__name__}: broken by seed {number}", flush=True)
                    failed.append(target.__name__)
                    targets.remove(target)
            tried += options.examples
            if last is None and time.monotonic() > ends:
                break
        number += 1
    print(f"{tried:,} inputs; last seed {number}; broken: {', '.join(failed) or 'nothing'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

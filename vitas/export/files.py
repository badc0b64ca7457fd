"""Files and folders that appear complete or not at all, and the tensors in them."""

import contextlib
import glob
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vitas.errors import FileError, brief, listed, shown
from vitas.memory import refuse_beyond_memory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MOST_HEADER_BYTES = 3 * 2**20
_MOST_JSON = 2**20  # characters: what reads them may take thirty times as much
_MOST_NESTED = 64  # lists and objects in one another: far from where Python stops, and no file of ours comes near

AnyPath = str | os.PathLike[str]


def as_path(path: AnyPath) -> Path:
    """Return what was given as the place of a file or folder.

    Raises:
        FileError: neither text nor a path; text that no file system takes.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise FileError(f"expected a path, got {shown(path)}")
    try:
        encoded = os.fsencode(path)
        fits = b"\0" not in encoded and len(encoded) <= 4096
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise FileError(f"expected a path that the file system can write, got {shown(os.fspath(path))}")
    return Path(path)


_MOST_HOLES = 64
"""How many times larger than what it takes on the disk a file may be: file systems that compress stay far below."""


def check_regular(path: Path, most: int | None = None) -> None:
    """Refuse to read anything but a regular file, such as a device or an endless pipe, or a file that is too large.

    Raises:
        FileError: that; a file that is missing, has more than `most` bytes, or consists of holes.
    """
    try:
        status = path.stat()
    except OSError as error:
        if (path.parent / "network" / path.name).is_file():  # the folder of a call to compress
            raise FileError(f"{path.parent}: no network itself; {path.parent / 'network'} is one") from None
        raise FileError(f"{path}: cannot be read ({brief(error)})") from None
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path}: cannot be read (not a regular file)")
    if most is not None and status.st_size > most:
        raise FileError(f"{path}: larger than {most} bytes")
    blocks = getattr(status, "st_blocks", 0)  # Windows has none
    if blocks and status.st_size > max(2**20, _MOST_HOLES * 512 * blocks):
        raise FileError(
            f"{path}: cannot be read ({status.st_size} bytes of which the disk holds {512 * blocks}: a file of holes)"
        )


def check_fits(path: Path) -> None:
    """Refuse to load anything but a regular file that this machine has the memory for.

    Raises:
        FileError: that.
    """
    check_regular(path)
    refuse_beyond_memory(path.stat().st_size, f"{path}", FileError)


def read_text(path: Path, most: int) -> str:
    """Return the text of a regular file of at most `most` bytes.

    Raises:
        FileError: anything else.
    """
    check_regular(path, most)
    try:
        with path.open("rb") as file:
            return file.read(most).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({brief(error)})") from None


def check(fits: bool, where: str, wanted: str, got: object) -> None:
    """Refuse a value that does not fit.

    Raises:
        FileError: with what was wanted.
    """
    if not fits:
        raise FileError(f"{where}: expected {wanted}, got {shown(got)}")


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's tensors as safetensors takes them: contiguous, none sharing memory with another."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise FileError(
                f"{name}: a {type(tensor).__name__} and not a tensor, as quantised layers keep: only tensors are saved"
            )
        if tensor.is_meta:
            raise FileError(f"{name}: on the meta device, there is nothing to write")
        tensor = tensor.detach().contiguous()
        try:
            address = tensor.untyped_storage().data_ptr()
        except (RuntimeError, NotImplementedError) as error:
            raise FileError(f"{name}: a {type(tensor).__name__} without memory of its own ({brief(error)})") from None
        tensors[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return tensors


def refuse_meta(model: nn.Module, where: str) -> None:
    """Refuse a model without memory: torch would load into it, and nothing would come of that."""
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise FileError(
                f"{where}: {name} is on the meta device, there is nothing to load into; model.to_empty(...) first"
            )


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype as files write it: "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def read_json(text: str, path: Path) -> Any:
    """Return the value that a text in a file holds.

    Raises:
        FileError: not JSON, too long or nested too deep.
    """
    if len(text) > _MOST_JSON:
        raise FileError(f"{path}: JSON of more than {_MOST_JSON} characters")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not valid JSON ({brief(error)})") from None
    level = [value]
    for _ in range(_MOST_NESTED):
        holders = (it.values() if isinstance(it, dict) else it for it in level if isinstance(it, (dict, list)))
        level = list(chain.from_iterable(holders))
    if level:
        raise FileError(f"{path}: JSON nested more than {_MOST_NESTED} deep")
    return value


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a safetensors file holds beside its tensors.

    Raises:
        FileError: as `opened`.
    """
    with opened(path) as file:
        return file.metadata() or {}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file for the length of a with block.

    Raises:
        FileError: missing, cut short or of another kind.
    """
    check_fits(path)
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > _MOST_HEADER_BYTES:
            raise FileError(f"{path}: cannot be read (a header of more than {_MOST_HEADER_BYTES} bytes)")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path}: cannot be read ({brief(error)})") from None


_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}
_TYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64"}
_TYPES |= {"U64": "uint64", "U32": "uint32", "U16": "uint16"}
_TYPES |= {"U8": "uint8", "I8": "int8", "I16": "int16", "BOOL": "bool"}


def check_header(
    path: Path,
    wanted: Mapping[str, tuple[tuple[int, ...], str | None]],
    ignore_shape: Collection[str] = (),
    below: str = "",
) -> None:
    """Compare names (those that begin with `below`), shapes and types with the file's header, which is small."""
    with opened(path) as file:
        names = {name for name in file.keys() if name.startswith(below)}  # noqa: SIM118
        extra, missing = sorted(names - set(wanted)), sorted(set(wanted) - names)
        if missing:
            raise FileError(f"{path}: missing tensors: {listed(missing)}")
        if extra:
            raise FileError(f"{path}: tensors that the network does not have: {listed(extra)}")
        for name, (shape, dtype) in wanted.items():
            tensor = file.get_slice(name)
            got = tuple(tensor.get_shape())
            if got != shape and name not in ignore_shape:
                raise FileError(f"{path}: {name}: expected shape {shape}, got {shown(got)}")
            kind = _TYPES.get(tensor.get_dtype(), tensor.get_dtype())
            if kind != dtype:
                raise FileError(f"{path}: {name}: expected type {dtype}, got {kind}")


@contextmanager
def complete_or_not_at_all(target: Path) -> Iterator[Path]:
    """Yield a path to write to, beside `target`; renamed when done, removed on any error. It takes the place of a folder.

    Who is killed leaves it behind; the next one that writes to `target` removes it: its lock died with its process.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_scratch(target)
        scratch, held = _scratch_for(target)
    except OSError as error:
        raise FileError(f"{target}: cannot be written ({brief(error)})") from None
    try:
        yield scratch / target.name
        before = scratch / "before"
        if target.is_dir():
            os.replace(target, before)
        try:
            os.replace(scratch / target.name, target)
        except OSError:
            if before.is_dir():
                os.replace(before, target)
            raise
    except (OSError, SafetensorError, KeyError) as error:  # a KeyError for a type that safetensors does not know
        raise FileError(f"{target}: cannot be written ({brief(error)})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if held is not None:
            os.close(held)


_SCRATCH = ".vitas"


def _scratch_for(target: Path) -> tuple[Path, int | None]:
    """Return a new folder beside `target` and the lock on it; again where another cleared it before it was locked."""
    for _ in range(10):
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=_SCRATCH, dir=target.parent))
        with contextlib.suppress(FileNotFoundError):
            held = _lock(scratch)
            if scratch.exists():
                return scratch, held
    raise FileNotFoundError(f"{scratch} is removed as soon as it is made")


def _clear_scratch(target: Path) -> None:
    """Remove what killed processes left of this name."""
    for left in target.parent.glob(f".{glob.escape(target.name)}-*{_SCRATCH}"):
        with contextlib.suppress(OSError):
            if left.is_dir() and not left.is_symlink() and (held := _lock(left)) is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(held)


def _lock(folder: Path) -> int | None:
    """Lock a folder until what is returned is closed, or the process ends; None: another has it, or there are no locks."""
    if fcntl is None:
        return None
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held

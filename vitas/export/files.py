"""Files and folders that appear complete or not at all, and the tensors in them."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vitas.errors import FileError, brief, listed, shown

_MOST_HEADER_BYTES = 2**22


AnyPath = str | os.PathLike[str]


def as_path(path: AnyPath) -> Path:
    """Return what was given as the place of a file or folder.

    Raises:
        FileError: neither text nor a path.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise FileError(f"expected a path, got {shown(path)}")
    return Path(path)


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
        FileError: not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not valid JSON ({brief(error)})") from None


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
    """Yield a path to write to, beside `target`; renamed when done, removed on any error. It takes the place of a folder."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
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

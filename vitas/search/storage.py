"""Where a search is kept: in memory, in a journal file, in a database, behind a server."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vitas.errors import FileError, SearchError, VitasError, brief, needs, shown
from vitas.search.journal import Journal

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """Excludes other writers of an Optuna journal, and cuts off what a killed one left of its last line.

    The kernel holds the lock on the journal itself and drops it when its process dies, so nothing is ever left behind.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Any = None

    def acquire(self) -> bool:
        """Wait for the lock; nobody else is writing then, so a last line without an end is a killed writer's."""
        self._file = open(self._path, "rb+")  # noqa: SIM115
        fcntl.flock(self._file, fcntl.LOCK_EX)
        _cut_torn_line(self._file)
        return True

    def release(self) -> None:
        """Let the next one in."""
        self._file.close()


def _cut_torn_line(file: Any) -> None:
    size = end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        line_end = file.read(end - start).rfind(b"\n")
        if line_end >= 0:
            end = start + line_end + 1
            break
        end = start
    if end < size:
        file.truncate(end)


def _can_be_path(text: str | bytes) -> bool:
    try:
        return isinstance(text, str) and text != "" and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def open_storage(where: Any) -> Any:
    """Return the Optuna storage at a place: None for memory, a path for a journal file, a URL, or an Optuna storage itself.

    Raises:
        FileError: a file that is not a journal or cannot be opened, a folder that does not exist.
        SearchError: a database or a server that cannot be reached; something else than a place.
        VitasError: optuna is not installed.
    """
    with needs("search"):
        import optuna

    if where is None or isinstance(where, optuna.storages.BaseStorage):
        return optuna.storages.get_storage(where)
    if isinstance(where, str) and "://" in where:
        return _server(where) if where.startswith("grpc://") else _database(where)
    if not isinstance(where, (str, os.PathLike)) or not _can_be_path(os.fspath(where)):
        raise SearchError(f"storage: expected None, a path or a URL, got {shown(where)}")
    path = Path(where)
    if isinstance(where, str):
        _refuse_addresses(where, path)
    if not os.path.isdir(path.parent):
        raise FileError(f"storage: there is no folder {path.parent}")
    from optuna.storages.journal import JournalFileBackend

    try:
        if path.exists():
            _refuse_other_files(path)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise FileError(f"storage: {path} cannot be written")
        lock = FileLock(str(path)) if fcntl is not None else None
        backend = JournalFileBackend(str(path), lock_obj=lock)  # type: ignore[arg-type]
        return optuna.storages.JournalStorage(Journal(path, backend))  # type: ignore[arg-type]
    except FileError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise FileError(f"storage: {path} is damaged: {brief(error)}") from error
    except OSError as error:
        raise FileError(f"storage: {shown(str(path))} cannot be opened: {error.strerror or error}") from error


def _refuse_addresses(where: str, path: Path) -> None:
    """Refuse what would be a file here and was meant to be an address: each worker would search alone.

    Raises:
        SearchError: host:port, or a URL with one slash.
    """
    if re.fullmatch(r"[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", where) and not path.exists():
        raise SearchError(f"storage: {shown(where)} is an address and no file: write grpc:// before it")
    if scheme := re.match(r"([a-z+\d]{2,}):/", where):
        raise SearchError(
            f"storage: a URL has '://', as in {scheme[1]}:///file.db or {scheme[1]}://host/name, got {shown(where)}"
        )


def _database(url: str) -> Any:
    import optuna
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DatabaseError, SQLAlchemyError

    if url.startswith("postgres://"):
        raise SearchError("storage: write postgresql+psycopg://..., the name that SQLAlchemy knows, for postgres://...")
    outer = sys.exc_info()[1]  # what the caller is dealing with, if anything, which is no cause of ours
    try:
        return patiently(lambda: optuna.storages.get_storage(_one_connection(url)), DatabaseError, StorageInternalError)
    except (SQLAlchemyError, StorageInternalError, ImportError, ValueError) as error:
        # Not the URL itself: it may hold a password.
        raise SearchError(f"storage: the database cannot be opened: {_first_cause(error, outer)}") from None


def _one_connection(url: str) -> Any:
    """Return what `get_storage` makes a storage of that keeps one connection open, where Optuna would keep two."""
    import optuna

    return url if url.startswith("sqlite") else optuna.storages.RDBStorage(url, engine_kwargs={"pool_size": 1})


def _server(url: str) -> Any:
    """Return a storage that a process on another machine keeps, see `serve`."""
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
    except ValueError:
        host = port = None
    if not host or not port:
        raise SearchError(f"storage: expected grpc://host:port, got {shown(url)}")
    with _grpc():
        import grpc  # type: ignore[import-untyped]
        from optuna.storages import GrpcStorageProxy

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna says that it is experimental
            storage = GrpcStorageProxy(host=_host(host), port=port)
        with grpc.insecure_channel(address(host, port)) as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=OPENS_WITHIN)
            except grpc.FutureTimeoutError:
                raise SearchError(f"storage: no server answers at {shown(url)}") from None
    return storage


def address(host: str, port: int) -> str:
    """Return host:port, the host in brackets where it has colons itself, as addresses of IPv6 have."""
    return f"{_host(host)}:{port}"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


OPENS_WITHIN = 10.0
"""Seconds for which a storage that is out of reach is tried when it is opened."""


@contextmanager
def _grpc() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SearchError(f"storage: grpc:// needs grpcio, pip install 'vitas[grpc]' ({brief(error)})") from None


def serve(where: Any, host: str, port: int, ready: Callable[[], None]) -> None:
    """Let workers on other machines search by way of this process, as `grpc://host:port`; does not return.

    Args:
        where: What is served, as `open_storage` takes it.
        host: Address on which to listen; whoever reaches it can read and change the searches.
        port: Its port.
        ready: Called when the storage is open, just before it listens.

    Raises:
        FileError: as open_storage.
        SearchError: as open_storage; grpcio is not installed; an address that cannot be had.
    """
    storage = open_storage(where)
    with _grpc(), warnings.catch_warnings():
        from optuna.storages import run_grpc_proxy_server

        warnings.simplefilter("ignore")
        try:
            ready()
            run_grpc_proxy_server(storage, host=_host(host), port=port)
        except RuntimeError as error:
            raise SearchError(f"storage: cannot listen at {shown(address(host, port))}") from error


def _first_cause(error: BaseException, outer: BaseException | None, most: int = 100) -> str:
    """Return what the driver said, in a line: SQLAlchemy's and Optuna's errors only hand it on. `outer` was there before."""
    while (cause := error.__cause__ or error.__context__) is not None and cause is not outer:
        error = cause
    if callable(told := getattr(error, "details", None)) and isinstance(text := told(), str):  # of gRPC, in one line
        return brief(Exception(text), most)
    return brief(error if isinstance(error, Exception) else Exception(error), most)


@contextmanager
def quietly() -> Iterator[None]:
    """Let Optuna write no line on standard error for a study that is made."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def patiently(step: Callable[[], Any], *errors: type[Exception]) -> Any:
    """Try a step on a database again when another worker takes the same one: both make the tables, or the study."""
    for pause in (0.1, 0.3, 1.0, 3.0):
        try:
            return step()
        except errors:
            time.sleep(pause)
    return step()


_UNSOUND = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RecursionError)


@contextmanager
def sound(name: object) -> Iterator[None]:
    """Tell in our words what comes of values in a storage that no search has written.

    Raises:
        SearchError: the search of that name is damaged.
    """
    try:
        yield
    except VitasError:
        raise
    except _UNSOUND as error:
        raise SearchError(f"storage: the search {shown(name, 40)} is damaged ({brief(error, 60, kind=True)})") from error


_FULL_OR_FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT}


def persistently(step: Callable[[], Any], seconds: float, advice: str = "; storage_timeout= says how long to try") -> Any:
    """Do a step on a storage; again while what hinders it may pass: a connection that is lost, a server that restarts.

    Raises:
        FileError: a disk that is full or cannot be written.
        SearchError: it did not pass within `seconds`.
    """
    pause, ends = 0.1, None
    outer = sys.exc_info()[1]
    while True:
        try:
            return step()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL_OR_FORBIDDEN:
                raise FileError(f"storage: cannot be written ({error.strerror or error})") from error
            if not _may_pass(error):
                raise
            now = time.monotonic()
            ends = now + seconds if ends is None else ends
            if now >= ends:
                said = f"out of reach for {seconds:g} s ({_first_cause(error, outer, 40)})"
                raise SearchError(f"storage: {said}; the same call goes on{advice}") from None
        time.sleep(min(pause, ends - now))
        pause = min(10.0, 2 * pause)


def _may_pass(error: Exception) -> bool:
    """Whether an error says that a storage is out of reach, and not that it will never take this."""
    from optuna.exceptions import StorageInternalError

    if isinstance(error, StorageInternalError):
        return not isinstance(error.__cause__, Exception) or _may_pass(error.__cause__)
    library = type(error).__module__.partition(".")[0]
    if library == "sqlalchemy":
        return type(error).__name__ not in ("DataError", "IntegrityError", "ProgrammingError", "NotSupportedError")
    return isinstance(error, OSError) or library in ("grpc", "redis")


def _refuse_other_files(path: Path) -> None:
    """Refuse a file that does not begin as Optuna's journals do: appending to it, or cutting it, would spoil it."""
    if not path.is_file():
        raise FileError(f"storage: {path} is not a file")
    with path.open("rb") as file:
        line = file.readline(1 << 20)
    start = b'{"op_code":'
    if line.endswith(b"\n"):
        try:
            fits = "op_code" in json.loads(line)
        except (ValueError, TypeError):
            fits = False
    else:
        fits = line[: len(start)] == start[: len(line)]
    if not fits:
        raise FileError(f"storage: {path} is not a journal of Optuna's; name a file of its own for the search")

"""Results as JSON lines that survive a kill, and claims by which processes share the cells."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Store:
    """A folder with the results of one run of the study.

    `results.jsonl` has a line for each finished cell; a line that a kill cut short is removed before the next is written.
    A cell is claimed by a lock on a file, which the system releases whatever ends the process.

    Args:
        folder: Made where it is missing.
        settings: Whatever decides the figures; a folder made with others is refused.

    Raises:
        SystemExit: a folder of other settings, or a file of results that is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.file = folder, folder / "results.jsonl"
        self.weights, self._locks = folder / "weights", folder / "locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        asked, kept = json.dumps(settings, indent=1) + "\n", folder / "settings.json"
        with self._locked("settings"):
            if not kept.exists():
                draft = kept.with_suffix(".draft")
                draft.write_text(asked, encoding="utf-8")
                draft.replace(kept)
        if kept.read_text(encoding="utf-8") != asked:
            raise SystemExit(f"{folder} holds results of other settings (settings.json); give another --results")

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the figures of each finished cell.

        Raises:
            SystemExit: a line that is no result, other than a last one that was cut short.
        """
        return read(self.file)

    def add(self, name: str, **record: Any) -> None:
        """Write the result of a cell: once it returns, the line is on the disk."""
        line = json.dumps({"cell": name, **record}).encode() + b"\n"
        with self._locked("results"), open(self.file, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yield whether the cell is this process's to do: neither done nor claimed by another one."""
        with open(self._locks / name.replace("/", "-"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield name not in self.read()

    @contextmanager
    def _locked(self, what: str) -> Iterator[None]:
        with open(self._locks / f"_{what}", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Return the records of a file of results by cell; a last line that was cut short is left out.

    Raises:
        SystemExit: another line that is no result.
    """
    content = file.read_bytes() if file.exists() else b""
    records = {}
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            record = json.loads(line)
            records[record.pop("cell")] = record
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SystemExit(f"{file}: line {number} is no result: {line[:60]!r}") from None
    return records

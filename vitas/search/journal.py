"""The journal file of a search on a disk that may fail: read line by line, checked before anything is done with it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from vitas.errors import FileError, shown

_LONGEST_LINE = 2**20  # of some thousand characters; what reads it may take thirty times as much
_CREATE_STUDY, _DELETE_STUDY, _CREATE_TRIAL, _END_TRIAL = 0, 1, 4, 6
_FIELDS: dict[int, dict[str, type]] = {
    0: {"study_name": str, "directions": list},
    1: {"study_id": int},
    2: {"study_id": int, "user_attr": dict},
    3: {"study_id": int, "system_attr": dict},
    4: {"study_id": int},
    5: {"trial_id": int, "param_name": str, "distribution": str},
    6: {"trial_id": int, "state": int},
    7: {"trial_id": int, "step": int},
    8: {"trial_id": int, "user_attr": dict},
    9: {"trial_id": int, "system_attr": dict},
    10: {},
}
"""What Optuna's operations say, by their code."""
_COMPLETE, _FAIL = 1, 3


class Journal:
    """An Optuna journal, of which every worker takes the same lines: whole ones, once each.

    Lines that cannot be read are passed over with a warning, and so is a claim that stands there twice: what they said is
    done again. A line about a trial that is not there, or another's, shows that one was lost on which later ones build.

    Args:
        path: The file.
        backend: Optuna's, which writes.
    """

    def __init__(self, path: Path, backend: Any) -> None:
        self._path, self._backend = path, backend
        self._restart()

    def _restart(self) -> None:
        self._number = self._offset = self._line = 0
        self._replay = _Replay()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations at the end."""
        self._backend.append_logs(logs)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from a number on.

        Raises:
            FileError: lines are lost that others build on.
        """
        if log_number_from != self._number:
            self._restart()
        passed_over = []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while (line := file.readline(_LONGEST_LINE)).endswith(b"\n"):  # else it is being written, or torn
                self._offset += len(line)
                self._line += 1
                log = _read(line)
                if log is None:
                    passed_over.append(self._line)
                    continue
                if not _is_operation(log):
                    raise FileError(self._damage("is no operation of Optuna's"))
                if self._replay.is_double(log, line):
                    continue
                if fault := self._replay.fault(log):
                    raise FileError(self._damage(f"{fault}, so lines are lost"))
                self._number += 1
                if self._number > log_number_from:
                    yield log
            if len(line) == _LONGEST_LINE:
                raise FileError(f"storage: {self._path} is damaged: line {self._line + 1} has no end")
        if passed_over:
            which = f"{len(passed_over)} lines" if len(passed_over) > 1 else "a line"
            warnings.warn(
                f"storage: {self._path}: passed over {which} that cannot be read, the first is number {passed_over[0]};"
                " what was evaluated there is done again",
                stacklevel=2,
            )

    def _damage(self, fault: str) -> str:
        sound = self._line - 1
        self._restart()
        return (
            f"storage: {self._path} is damaged: line {sound + 1} {fault}; nothing was written;"
            f" `head -n {sound}` of it goes on"
        )


def _read(line: bytes) -> Any:
    """Return the JSON value in a line, None if it is none; a disk may have put NULs before it."""
    try:
        return json.loads(line.strip(b"\0\r\n "))
    except (ValueError, RecursionError):
        return None


def _is_operation(log: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a value is an operation of Optuna's with all that it takes to do it."""
    if not isinstance(log, dict) or type(log.get("op_code")) is not int or not isinstance(log.get("worker_id"), str):
        return False
    fields = _FIELDS.get(log["op_code"])
    if fields is None or not all(type(log.get(name)) is kind for name, kind in fields.items()):
        return False
    return log["op_code"] != _END_TRIAL or log["state"] != _COMPLETE or isinstance(log.get("values"), list)


class _Replay:
    """What the lines so far say of studies and trials, as far as later lines have to fit."""

    def __init__(self) -> None:
        self._studies: list[str | None] = []  # names; None: removed
        self._owners: list[str | None] = []  # of each trial, the token of its claim
        self._claims: set[bytes] = set()  # digests of their lines
        self._tokens: dict[str, set[str | None]] = {}  # of each writer, those that claimed by it; several: it is a proxy

    def is_double(self, log: dict[str, Any], line: bytes) -> bool:
        """Whether this is a claim that stands there already: no two are made at one moment by one worker."""
        if _claim(log) is None:
            return False
        digest = hashlib.sha256(line).digest()
        if digest in self._claims:
            return True
        self._claims.add(digest)
        return False

    def fault(self, log: dict[str, Any]) -> str | None:
        """Return why an operation does not follow from those before it; else take it in."""
        kind, writer = log["op_code"], log["worker_id"].rpartition("-")[0]
        if kind == _CREATE_STUDY:
            if log["study_name"] not in self._studies:
                self._studies.append(log["study_name"])
            return None
        if "study_id" in log and not 0 <= log["study_id"] < len(self._studies):
            return f"is of a study {shown(log['study_id'], 12)} that is not there"
        if kind == _DELETE_STUDY:
            self._studies[log["study_id"]] = None
        if kind == _CREATE_TRIAL:
            token = (_claim(log) or [None])[0]
            self._owners.append(token)
            self._tokens.setdefault(writer, set()).add(token)
        if "trial_id" in log:
            trial = log["trial_id"]
            if not 0 <= trial < len(self._owners):
                return f"is of a trial {shown(trial, 12)} that is not there"
            tokens = self._tokens.get(writer, set())
            is_result = kind == _END_TRIAL and log["state"] in (_COMPLETE, _FAIL)
            if is_result and len(tokens) == 1 and self._owners[trial] not in tokens:
                return f"is a result of trial {trial} by a worker that did not claim it"
        return None


def _claim(log: dict[str, Any]) -> list[Any] | None:
    attrs = log.get("user_attrs")
    claim = attrs.get("claim") if log["op_code"] == _CREATE_TRIAL and isinstance(attrs, dict) else None
    return claim if isinstance(claim, list) and claim and isinstance(claim[0], str) else None

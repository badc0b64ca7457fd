"""A PostgreSQL server of a test's own, where one is installed."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Server(NamedTuple):
    """A server that runs."""

    port: int
    binaries: Path
    environment: Mapping[str, str]
    """By which the programs in `binaries` reach it as its first user, `postgres`, who needs no password there."""

    def run(self, *command: str, typed: str = "") -> str:
        """Run a program of PostgreSQL's and return what it prints; without a terminal it reads what is typed."""
        done = subprocess.run(
            [str(self.binaries / command[0]), *command[1:]],
            env=self.environment,
            input=typed,
            check=True,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        return done.stdout


def binaries() -> Path | None:
    """Return where PostgreSQL's programs are, None where it is not installed."""
    path = os.pathsep.join([*sorted(glob.glob("/usr/lib/postgresql/*/bin"))[::-1], os.environ.get("PATH", "")])
    found = shutil.which("initdb", path=path)
    return None if found is None else Path(found).resolve().parent


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Server]:
    """Run a server whose data lie in a new folder; over the network it asks for passwords."""
    where = binaries()
    assert where is not None
    folder.mkdir(mode=0o755)
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next(name for name in ("postgres", "nobody") if name in names)
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(*command: str) -> None:
        subprocess.run([str(where / command[0]), *command[1:]], user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    data = str(folder / "cluster")
    run("initdb", "-D", data, "-U", "postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync")
    listen = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -p {port}"
    run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", listen, "start")
    try:
        reached = {"PGHOST": str(folder), "PGPORT": str(port), "PGUSER": "postgres"}
        yield Server(port, where, {**os.environ, **reached})
    finally:
        run("pg_ctl", "-D", data, "-w", "-m", "fast", "stop")

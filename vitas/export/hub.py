"""The hub of Hugging Face: networks fetched from it, and what it refuses in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitas.errors import FileError, VitasError, brief, needs, shown

HUB = "hf-hub:"
"""What the place of a network on the hub begins with, as timm writes it: hf-hub:user/name@revision."""


def downloaded(place: str) -> Path:
    """Return the folder that holds a network of the hub: in its cache, fetched before where there is a connection.

    Args:
        place: "hf-hub:user/name", perhaps with "@revision" behind it.

    Raises:
        FileError: no such repository or revision; no connection, and not in the cache.
        VitasError: huggingface_hub is not installed.
    """
    with needs("hub"):
        from huggingface_hub import snapshot_download
    repo_id, at, revision = place.removeprefix(HUB).partition("@")
    check_repo_id(repo_id)
    if at and not revision:
        raise FileError(f"{place}: expected a branch, tag or commit behind @")
    files = ["config.json", "model.safetensors"]
    with told(repo_id, revision):
        return Path(snapshot_download(repo_id, revision=revision or None, allow_patterns=files))


def check_repo_id(repo_id: object) -> None:
    """Refuse anything but the name of a repository.

    Raises:
        FileError: anything but "user/name", or "name" alone.
    """
    if not isinstance(repo_id, str) or not re.fullmatch(r"([\w.-]+/)?[\w.-]+", repo_id, re.ASCII):
        raise FileError(f'repo_id: expected "user/name" as on the hub, got {shown(repo_id)}')


@contextmanager
def told(repo_id: str, revision: str = "") -> Iterator[None]:
    """Tell what the hub, or the way to it, refuses in a line of ours."""
    from huggingface_hub import errors

    where = HUB + repo_id + (f"@{revision}" if revision else "")
    try:
        yield
    except VitasError:
        raise
    except errors.GatedRepoError:
        raise FileError(f"{where}: access has to be asked for on the hub, and `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise FileError(f"{where}: no such repository, or a private one that needs `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise FileError(f"{where}: no such branch, tag or commit in the repository") from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise FileError(f"{where}: no connection to the hub, and the network is not in its cache") from None
    except (OSError, ValueError, RuntimeError) as error:  # of the hub, the connection, the disk
        raise FileError(f"{where}: {type(error).__name__}: {' '.join(brief(error).split())}") from None

"""Networks sent to the hub of Hugging Face: the folder that `save_subnet` writes, with a model card."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitas.errors import needs
from vitas.export.card import model_card
from vitas.export.hub import HUB, check_repo_id, told
from vitas.export.network import save_subnet


def push_to_hub(
    module: nn.Module,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Add a network",
    source: tuple[str, Mapping[str, Any]] | None = None,
) -> str:
    """Upload a plain network to the hub of Hugging Face; return where `load_subnet` finds it, "hf-hub:user/name".

    Sent are `config.json` and `model.safetensors`, as `save_subnet` writes them, and a model card, `README.md`, unless the
    repository has one. The repository is made where there is none.

    Args:
        module: As in save_subnet.
        repo_id: "user/name".
        private: Whether a repository that is made is private.
        revision: Branch to commit to; None: the main one.
        token: Of the user; None: that of `hf auth login`.
        commit_message: First line of the commit's message.
        source: As in save_subnet.

    Raises:
        FileError: as `save_subnet`, before anything is sent; what the hub refuses; no connection.
        VitasError: huggingface_hub is not installed.

    Example:
        >>> model = vitas.create_superformer("deit_micro", num_classes=10, img_size=16)
        >>> vitas.push_to_hub(vitas.export_subnet(model), "user/small")
        'hf-hub:user/small'
    """
    with needs("hub"):
        from huggingface_hub import HfApi
    check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "network"
        save_subnet(module, folder, source=source)
        with told(repo_id):
            api = HfApi(token=token)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            place = HUB + repo_id + (f"@{revision}" if revision else "")
            if not api.file_exists(repo_id, "README.md", revision=revision):
                (folder / "README.md").write_text(model_card(module, folder, place), encoding="utf-8")
            api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message)
    return place

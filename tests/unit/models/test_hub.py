"""A model of a hub: taken at one commit, compared with the hub's hashes, safetensors only."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub.constants as hub_constants
import pytest

from pdserve.models import store
from pdserve.models.errors import ModelError

COMMIT = "c" * 40
FILES: Mapping[str, bytes] = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(200)) * 40,
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# a model",
}


class Hub(http.server.ThreadingHTTPServer):
    """The few addresses that the hub's client asks, under /made/up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(FILES)
        self.asked: list[str] = []
        self.odd: object = None
        """What is answered instead of every JSON document."""
        self.spoiled = ""
        """Name of a file that is sent with another byte."""


def _entry(name: str, content: bytes) -> dict[str, object]:
    """A file in the listing of a commit: a large one has a SHA-256, a small one git's id."""
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False)
    entry: dict[str, object] = {
        "type": "file", "path": name, "size": len(content), "oid": git.hexdigest()
    }  # fmt: skip
    if name.endswith(".safetensors"):
        sha = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
    return entry


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self, *, body: bool) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        if self.server.odd is not None and path.startswith("/api/"):
            self._send(200, json.dumps(self.server.odd).encode(), {}, body=body)
            return
        if path.startswith(f"/api/models/made/up/tree/{COMMIT}"):
            listed = [_entry(name, data) for name, data in self.server.files.items()]
            self._send(200, json.dumps(listed).encode(), {}, body=body)
            return
        if path.startswith("/api/models/made/up"):
            names = [{"rfilename": name} for name in self.server.files]
            document = {"id": "made/up", "modelId": "made/up", "sha": COMMIT, "siblings": names,
                        "private": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
            self._send(200, json.dumps(document).encode(), {}, body=body)
            return
        content = self.server.files.get(path.rpartition("/")[2])
        if not path.startswith(f"/made/up/resolve/{COMMIT}/") or content is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)
            return
        tag = hashlib.sha256(content).hexdigest()
        spoiled = self.server.spoiled and path.endswith(self.server.spoiled)
        sent = content[:-1] + b"?" if spoiled else content
        self._send(200, sent, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, body=body)

    def _send(self, code: int, content: bytes, more: Mapping[str, str], *, body: bool) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(hub_constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_of_the_hub_is_taken_at_one_commit_without_pickles(hub: Hub) -> None:
    found = store.get_model("made/up@main")
    assert found.source == f"hub made/up@{COMMIT}"
    names = {f.name for f in found.folder.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", store.SOURCE}
    assert (found.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert store.changed_files(found) == []
    assert not any("pytorch_model" in path for path in hub.asked)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_repository_in_another_form_is_refused(hub: Hub, missing: str) -> None:
    del hub.files[missing]
    with pytest.raises(ModelError, match="has no"):
        store.get_model("made/up")
    assert list(store.models_folder().iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("model.safetensors", "SHA-256"), ("config.json", "git object id")]
)
def test_a_file_that_is_not_what_the_hub_told_is_refused(hub: Hub, name: str, kind: str) -> None:
    hub.spoiled = name
    with pytest.raises(ModelError, match=f"{name} has not the {kind}"):
        store.get_model("made/up")
    assert list(store.models_folder().iterdir()) == []


def test_a_repository_that_is_not_there_is_an_error(hub: Hub) -> None:
    with pytest.raises(ModelError, match=r"not/there"):
        store.get_model("not/there")
    assert hub.asked


@pytest.mark.parametrize("odd", [[], {}, 5, "x", {"id": 5}, {"id": "made/up", "siblings": 7}])
def test_an_odd_answer_is_an_error_and_leaves_nothing(hub: Hub, odd: object) -> None:
    hub.odd = odd
    with pytest.raises(ModelError, match="made/up"):
        store.get_model("made/up")
    assert list(store.models_folder().iterdir()) == []


def test_a_hub_that_is_not_reached_is_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="made/up"):
        store.get_model("made/up")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["a/b/c", "../..", "a/..b@x", "/", "a/b@"])
@pytest.mark.usefixtures("hub")
def test_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        store.get_model(name)
    assert not store.models_folder().exists() or list(store.models_folder().iterdir()) == []

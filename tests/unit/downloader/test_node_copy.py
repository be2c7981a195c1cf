"""Copies on a node, by real processes: made once, whole or not at all, and said why not."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.weights_server import Asked, Reply, in_turn, serving

WEIGHTS = b"GGUF" * 99_999
SHA = hashlib.sha256(WEIGHTS).hexdigest()


def command(folder: Path, url: str, *more: str, sha256: str = SHA) -> list[str]:
    return [
        sys.executable, "-m", "pdserve.downloader", "--url", url, "--sha256", sha256,
        "--to", str(folder), "--max-bytes", "1000000", *more,
    ]  # fmt: skip


def download(folder: Path, url: str, *more: str, sha256: str = SHA) -> tuple[int, str]:
    """Exit status, and what a kubelet would show as the container's last words."""
    message = folder.parent / "termination-log"
    message.write_text("")
    line = command(folder, url, "--message-file", str(message), *more, sha256=sha256)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    return done.returncode, message.read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir(mode=0o777)
    return made


def test_a_second_pod_uses_what_the_first_made(folder: Path) -> None:
    with serving(in_turn(Reply(WEIGHTS))) as server:
        for _ in range(2):
            assert download(folder, f"{server.url}/m.gguf") == (0, "")
        assert len(server.asked) == 1
    assert [f.name for f in (folder / "files").iterdir()] == ["m.gguf"]
    assert (folder / "files" / "m.gguf").read_bytes() == WEIGHTS
    assert (folder / "files" / "m.gguf").stat().st_mode & 0o777 == 0o644


def test_two_pods_at_once_download_once(folder: Path) -> None:
    def slow(_asked: Asked) -> Reply:
        time.sleep(1)
        return Reply(WEIGHTS)

    with serving(slow) as server:
        pods = [
            subprocess.Popen(command(folder, f"{server.url}/m.gguf"), stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        said = [pod.communicate(timeout=60)[1].decode() for pod in pods]
        assert [pod.returncode for pod in pods] == [0, 0]
        assert len(server.asked) == 1
    assert sum("waiting for it" in text for text in said) == 1
    assert sum("was here already" in text for text in said) == 1


def test_a_killed_download_is_no_copy_and_the_next_goes_on(folder: Path) -> None:
    part = folder / "partial" / ".m.gguf.part"
    with serving(in_turn(Reply(WEIGHTS, stall=1000), Reply(WEIGHTS))) as server:
        pod = subprocess.Popen(command(folder, f"{server.url}/m.gguf"), stderr=subprocess.DEVNULL)
        wait_for(lambda: part.exists() and part.stat().st_size == 1000)
        pod.send_signal(signal.SIGKILL)
        pod.wait()
        assert not (folder / "files").exists()
        assert download(folder, f"{server.url}/m.gguf") == (0, "")
        assert server.asked[1].range == "bytes=1000-"
    assert (folder / "files" / "m.gguf").read_bytes() == WEIGHTS


def test_sigterm_ends_it(folder: Path) -> None:
    part = folder / "partial" / ".m.gguf.part"
    with serving(in_turn(Reply(WEIGHTS, stall=1000))) as server:
        pod = subprocess.Popen(command(folder, f"{server.url}/m.gguf"), stderr=subprocess.DEVNULL)
        wait_for(lambda: part.exists() and part.stat().st_size == 1000)
        pod.terminate()
        assert pod.wait(timeout=20) == 143


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda f: os.truncate(f / "files" / "m.gguf", 5), id="a short file"),
        pytest.param(lambda f: (f / "files" / "m.gguf").unlink(), id="no file"),
        pytest.param(lambda f: (f / "pdserve-source.json").write_text("["), id="no record"),
        pytest.param(lambda f: (f / "pdserve-source.json").unlink(), id="no record at all"),
    ],
)
def test_a_damaged_copy_is_made_again(folder: Path, damage: Callable[[Path], object]) -> None:
    with serving(in_turn(Reply(WEIGHTS))) as server:
        assert download(folder, f"{server.url}/m.gguf")[0] == 0
        damage(folder)
        assert download(folder, f"{server.url}/m.gguf")[0] == 0
        assert len(server.asked) == 2
    assert (folder / "files" / "m.gguf").read_bytes() == WEIGHTS


def test_why_it_failed_is_the_containers_last_word(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    with serving(in_turn(Reply(WEIGHTS, status=401))) as server:
        url = f"{server.url}/m.gguf"
        cases = {
            "wants credentials, which model.source.uri.secretRef would name": (),
            "Secret hub is missing": ("--secret", "hub", "--secret-dir", str(secret)),
        }
        for says, more in cases.items():
            code, message = download(folder, url, *more)
            assert (code, says in message) == (1, True), message
        (secret / "token").write_text("wrong")
        code, message = download(folder, url, "--secret", "hub", "--secret-dir", str(secret))
        assert "the Secret's credentials are not accepted" in message
        assert "wrong" not in message
    with serving(in_turn(Reply(WEIGHTS))) as server:
        code, message = download(folder, f"{server.url}/m.gguf", sha256="0" * 64)
        assert (code, f"its SHA-256 is {SHA}" in message) == (1, True), message
    assert not (folder / "files").exists()


def test_a_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    code, message = download(tmp_path / "gone", "http://127.0.0.1:9/m.gguf")
    assert code == 1
    assert "No such file or directory" in message


def wait_for(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)

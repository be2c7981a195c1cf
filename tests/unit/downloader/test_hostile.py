"""What servers, archives and an unlucky end may do to a download: an error that says so, or a copy.

Neighbours: `test_transfer`, `test_contents` and `test_node_copy` have what is usual.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.support.weights_server import Asked, Reply, in_turn, serving

from pdserve.downloader.access import ServerAccess
from pdserve.downloader.contents import Content, WantedContent, fetch_content
from pdserve.downloader.errors import DownloadError
from pdserve.downloader.part_file import SPARE, ByteBudget
from pdserve.downloader.transfer import Patience, Transfer

TEXT = b" ".join(b"%d" % n for n in range(99_999))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetch(folder: Path, url: str, wanted: bytes = TEXT, slow: float = 60.0) -> None:
    patience = Patience(lambda _: None, timeout=2.0, slow_seconds=slow)
    transfer = Transfer(ServerAccess("Bearer key", "sig=1"), lambda _: None, patience)
    transfer.fetch(url, sha(wanted), folder / "m.gguf", ByteBudget(1 << 30))


def copied(
    folder: Path, content: Content, name: str, files: dict[str, bytes], *, chunked: bool = False
) -> set[str]:
    """The files of a download of `name` from a server with `files`."""

    def script(asked: Asked) -> Reply:
        found = files.get(asked.path.removeprefix("/"))
        return Reply(status=404) if found is None else Reply(found, chunked=chunked)

    made = folder / "partial"
    made.mkdir(exist_ok=True)
    with serving(script) as server:
        transfer = Transfer(ServerAccess(), lambda _: None, Patience(lambda _: None))
        wanted = WantedContent(f"{server.url}/{name}", sha(files[name]), content, 1 << 30)
        fetch_content(wanted, made, transfer, lambda _: None)
    return {p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file()}


def archive(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packed:  # type: ignore[call-overload]
        for name in ("llama/a", "llama/b"):
            member = tarfile.TarInfo(name)
            member.size = len(TEXT)
            packed.addfile(member, io.BytesIO(TEXT))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "location",
    [
        "http://h:99999/m", "http://h:x/m", "http://[::1", "http://a b/m", "http://a..b/m",
        f"http://{'a' * 70}/m", "/\xe9", "/a\r\n b", "http://:pw@127.0.0.1/m",
    ],
)  # fmt: skip
def test_a_redirect_that_is_no_url_is_refused_at_once(tmp_path: Path, location: str) -> None:
    with serving(in_turn(Reply(status=302, headers={"Location": location}))) as server:
        with pytest.raises(DownloadError, match="redirects to"):
            fetch(tmp_path, f"{server.url}/m.gguf")
        assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["http://[::1/m", "http://a..b/m", "http://127.0.0.1:x/m"])
def test_a_url_that_cannot_be_asked_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="no URL that can be asked"):
        fetch(tmp_path, url)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="interim heads"),
        pytest.param(b"HTTP/1.1 200 OK\r\nx: ", b"x", id="a head"),
        pytest.param(CHUNKED + b"5;", b"x", id="a chunk's head"),
        pytest.param(CHUNKED + b"5\r\nabcde\r\n0\r\n", b"a: b\r\n", id="trailers"),
    ],
)
def test_an_answer_that_goes_on_and_comes_to_nothing_is_given_up(
    tmp_path: Path, first: bytes, again: bytes
) -> None:
    with trickling(first, again) as url, pytest.raises(DownloadError, match=r"only .* bytes in"):
        fetch(tmp_path, url, slow=0.1)


@contextmanager
def trickling(first: bytes, again: bytes) -> Iterator[str]:
    """A server that sends `first`, and then `again` and again."""
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(first)
            while not over.wait(0.02):
                connection.sendall(again)

    def accept() -> None:
        while not over.is_set():
            with suppress(OSError):
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/m"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_no_file_of_a_manifest_is_taken_for_a_part_of_another(tmp_path: Path) -> None:
    files = {"a.part": TEXT, "a": TEXT[:99], ".a.part": b""}
    listed = "".join(f"{sha(files[name])}  {name}\n" for name in ("a.part", "a")).encode()
    assert copied(tmp_path, "manifest", "S", {**files, "S": listed}) == {"a", "a.part"}


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_a_damaged_archive_is_refused(tmp_path: Path, mode: str) -> None:
    data = bytearray(archive(mode))
    for at in range(len(data) // 2, len(data) // 2 + 9):
        data[at] ^= 255
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        copied(tmp_path, "archive", "a.tar", {"a.tar": bytes(data)})


def test_an_end_between_any_two_steps_of_an_archive_is_repaired(tmp_path: Path) -> None:
    """What a killed run may leave: the directory around everything, or some of it."""
    (tmp_path / "partial-around" / "old").mkdir(parents=True)
    (tmp_path / "partial" / "old").mkdir(parents=True)
    assert copied(tmp_path, "archive", "a.tar", {"a.tar": archive("w:gz")}) == {"a", "b"}
    assert {path.name for path in tmp_path.iterdir()} == {"partial"}


def test_the_disk_is_never_filled_by_what_does_not_say_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, usage = archive("w:gz"), shutil.disk_usage(tmp_path)

    def with_room(_folder: Path) -> shutil._ntuple_diskusage:
        taken = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
        return usage._replace(free=SPARE + 900_000 - taken)

    monkeypatch.setattr(shutil, "disk_usage", with_room)
    cases: dict[Content, bytes] = {"file": TEXT * 3, "archive": packed}
    for content, wanted in cases.items():
        with pytest.raises(DownloadError, match="disk has"):
            copied(tmp_path, content, "m.bin", {"m.bin": wanted}, chunked=True)
        assert with_room(tmp_path).free >= SPARE
        shutil.rmtree(tmp_path / "partial")


AS_USER = """
import encodings.idna, os, sys
from pdserve.downloader import __main__, contents, node_copy
os.setuid(int(sys.argv[1]))
sys.exit(__main__.main(sys.argv[2:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as other users")
def test_a_pod_goes_on_with_what_a_pod_of_another_user_began() -> None:
    # Not in `tmp_path`: other users reach nothing there.
    with tempfile.TemporaryDirectory() as made:
        _others_part_file(Path(made))


def _others_part_file(folder: Path) -> None:
    folder.chmod(0o777)

    def command(user: str, url: str) -> list[str]:
        return [
            sys.executable, "-c", AS_USER, user, "--url", url, "--sha256", sha(TEXT),
            "--to", str(folder), "--max-bytes", "1000000",
        ]  # fmt: skip

    part = folder / "partial" / ".m.gguf.part"
    with serving(in_turn(Reply(TEXT, stall=1000), Reply(TEXT))) as server:
        url = f"{server.url}/m.gguf"
        with subprocess.Popen(command("10001", url), stderr=subprocess.DEVNULL) as first:
            wait_for(lambda: part.exists() and part.stat().st_size == 1000)
            first.kill()
        for user in ("10002", "10001"):
            done = subprocess.run(command(user, url), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        assert [asked.range for asked in server.asked] == [None, "bytes=1000-"]
    assert (folder / "files" / "m.gguf").read_bytes() == TEXT


def wait_for(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)

"""What a URI names: one file, the files of a manifest, an archive; hostile ones are refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from tests.support.weights_server import Asked, Reply, serving

from pdserve.downloader.access import ServerAccess
from pdserve.downloader.contents import Content, WantedContent, fetch_content, read_manifest
from pdserve.downloader.errors import DownloadError, WrongDigestError
from pdserve.downloader.transfer import Patience, Transfer

FILES = {"config.json": b"{}", "model-1.safetensors": b"one" * 999, "sub/tokenizer.json": b"[]"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest(files: dict[str, bytes]) -> bytes:
    return "".join(f"{sha(data)}  {name}\n" for name, data in files.items()).encode()


def archive(files: dict[str, bytes], mode: str = "w:gz", around: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as packed:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(around + name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def fetched(
    folder: Path, content: Content, name: str, files: dict[str, bytes], most: int = 1 << 20
) -> dict[str, bytes]:
    """What is in the directory after a fetch of `name` from a server with these files."""

    def script(asked: Asked) -> Reply:
        found = files.get(asked.path.removeprefix("/w/"))
        return Reply(status=404) if found is None else Reply(found)

    partial = folder / "partial"
    partial.mkdir(exist_ok=True)
    with serving(script) as server:
        transfer = Transfer(ServerAccess(), lambda _: None, Patience(lambda _: None))
        wanted = WantedContent(f"{server.url}/w/{name}", sha(files[name]), content, most)
        fetch_content(wanted, partial, transfer, lambda _: None)
    assert list(folder.iterdir()) == [partial]
    return {
        path.relative_to(partial).as_posix(): path.read_bytes()
        for path in partial.rglob("*")
        if path.is_file()
    }


def test_a_file_keeps_its_name(tmp_path: Path) -> None:
    assert fetched(tmp_path, "file", "m.gguf", {"m.gguf": b"GGUF"}) == {"m.gguf": b"GGUF"}


def test_a_manifests_files_are_fetched_from_beside_it(tmp_path: Path) -> None:
    served = {**FILES, "SHA256SUMS": manifest(FILES)}
    assert fetched(tmp_path, "manifest", "SHA256SUMS", served) == FILES


def test_files_that_an_earlier_run_checked_are_kept_and_others_are_not(tmp_path: Path) -> None:
    names = dict.fromkeys(("config.json", "model-1.safetensors"), b"")
    for name, data in {**names, "config.json": b"{}"}.items():
        (tmp_path / "partial").mkdir(exist_ok=True)
        (tmp_path / "partial" / name).write_bytes(data)
    served = {**FILES, "SHA256SUMS": manifest(FILES)}
    del served["config.json"]  # is there already, so it need not be served
    assert fetched(tmp_path, "manifest", "SHA256SUMS", served) == FILES


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("around", ["", "./", "llama/"])
def test_an_archive_is_unpacked_without_a_directory_around_it(
    tmp_path: Path, mode: str, around: str
) -> None:
    served = {"m.tar": archive(FILES, mode, around)}
    assert fetched(tmp_path, "archive", "m.tar", served) == FILES


def test_a_manifest_with_a_wrong_file_is_refused(tmp_path: Path) -> None:
    served = {**FILES, "SHA256SUMS": manifest(FILES), "config.json": b"{ }"}
    with pytest.raises(WrongDigestError, match="its SHA-256 is"):
        fetched(tmp_path, "manifest", "SHA256SUMS", served)


@pytest.mark.parametrize(
    ("content", "name", "files", "most"),
    [
        ("manifest", "S", {"a": b"x" * 999, "b": b"y" * 999}, 1500),
        ("archive", "a.tar", {"a": b"x" * 99_999}, 50_000),
    ],
)
def test_all_files_together_are_bounded(
    tmp_path: Path, content: Content, name: str, files: dict[str, bytes], most: int
) -> None:
    packed = manifest(files) if content == "manifest" else archive(files)
    with pytest.raises(DownloadError, match="maxGigabytes"):
        fetched(tmp_path, content, name, {**files, name: packed}, most)


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../../x", "/etc/passwd", ".ssh/x", "-rf", "a//b", "a b", "x" * 300, "a\x00b"],
)
def test_paths_out_of_the_directory_or_hidden_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DownloadError, match="line 1 is no SHA-256 with a relative path"):
        read_manifest(manifest({path: b"x"}))
    try:
        packed = archive({path: b"x"})
    except ValueError:
        return  # tarfile does not write it
    with tarfile.open(fileobj=io.BytesIO(packed)) as read:
        if read.getnames() != [path]:
            return  # nor this
    with pytest.raises(DownloadError, match="no plain file"):
        fetched(tmp_path, "archive", "a.tar", {"a.tar": packed})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "names 0 files"),
        (b"<html>", "line 1 is no SHA-256"),
        (b"\xff\xfe", "not UTF-8"),
        (manifest({"a": b"x"}) + manifest({"a": b"y"}), "two SHA-256 of a"),
        ("".join(f"{'0' * 64}  f{n}\n" for n in range(10_001)).encode(), "names 10001 files"),
    ],
    ids=["empty", "a page", "not text", "contradicts itself", "too many"],
)  # fmt: skip
def test_other_manifests_are_refused(data: bytes, says: str) -> None:
    with pytest.raises(DownloadError, match=says):
        read_manifest(data)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_an_archive_are_refused(tmp_path: Path, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        member = tarfile.TarInfo("config.json")
        member.type, member.linkname = kind, "/etc/passwd"
        packed.addfile(member)
    with pytest.raises(DownloadError, match="no plain file"):
        fetched(tmp_path, "archive", "a.tar", {"a.tar": buffer.getvalue()})


@pytest.mark.parametrize(
    "data", [b"", b"no archive", archive(FILES)[:60], archive({})],
    ids=["nothing", "text", "cut", "empty"],
)  # fmt: skip
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DownloadError, match=r"cannot be unpacked|no file in it"):
        fetched(tmp_path, "archive", "a.tar", {"a.tar": data})

"""The lock file of official releases, and the command that writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hack import pin
from tests.support.release_mirror import Mirror, mirror

from localcluster import releases
from localcluster.download import ENV_MIRROR, Downloads
from localcluster.errors import LocalError
from localcluster.releases import Asset, read_pins


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Mirror]:
    with mirror(tmp_path / "mirror") as made:
        for asset in pin.wanted():
            made.put(asset, asset.url.encode())
        yield made


def test_the_lock_file_names_no_file_that_is_not_wanted() -> None:
    assert set(read_pins(releases.LOCK)) <= {asset.url for asset in pin.wanted()}


def test_both_architectures_are_wanted_and_every_file_once() -> None:
    urls = [asset.url for asset in pin.wanted()]
    assert len(urls) == len(set(urls)) == 16
    assert len([url for url in urls if "amd64" in url]) == 8
    assert len([url for url in urls if "arm64" in url]) == 8


def test_what_is_written_is_what_downloads_are_held_to(
    published: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    lock = tmp_path / "releases.json"
    lock.write_text(json.dumps({"https://old.example/helm-v1": "0" * 64}))
    monkeypatch.setattr(releases, "LOCK", lock)
    monkeypatch.setenv(ENV_MIRROR, published.url)
    assert pin.main() == 0
    assert read_pins(lock) == read_pins(published.lock)
    assert capsys.readouterr().out == "releases.json: 16 of 16 files are pinned\n"


def test_what_cannot_be_reached_keeps_its_entry_and_is_named(
    published: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    one, other = (asset for asset in pin.wanted() if asset.program == "helm")
    lock = tmp_path / "releases.json"
    lock.write_text(json.dumps({one.url: "0" * 64}))
    for asset in (one, other):
        published.file(asset.sums).unlink()
    monkeypatch.setattr(releases, "LOCK", lock)
    monkeypatch.setenv(ENV_MIRROR, published.url)
    assert pin.main() == 1
    pins = read_pins(lock)
    assert pins[one.url] == "0" * 64
    assert other.url not in pins
    said = capsys.readouterr()
    assert said.out == "releases.json: 15 of 16 files are pinned\n"
    assert said.err.count("cannot download") == 2


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("ab12\n", "ab12"),
        ("AB12  tool.tar.gz\n", "ab12"),
        ("cd  other.tar.gz\nab12 *tool.tar.gz\n", "ab12"),
    ],
)
def test_sums_of_every_publisher_are_read(text: str, want: str) -> None:
    assert pin.published(Asset("https://x/tool.tar.gz", "https://x/sums", "tool"), text) == want


@pytest.mark.parametrize("text", ["", "cd  other.tar.gz\n"])
def test_a_list_without_the_file_is_named(text: str) -> None:
    with pytest.raises(LocalError, match=r"https://x/sums has no sum of tool\.tar\.gz"):
        pin.published(Asset("https://x/tool.tar.gz", "https://x/sums", "tool"), text)


def test_without_network_nothing_is_lost(published: Mirror) -> None:
    known = read_pins(published.lock)
    assert pin.pinned(known, Downloads("http://127.0.0.1:9")) == known

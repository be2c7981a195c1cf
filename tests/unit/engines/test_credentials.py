"""A process's credential: where it comes from, and that a rotated file reaches it."""

from __future__ import annotations

import os
from pathlib import Path

from pdserve.engines.credentials import CONTROL, REQUEST, Credential, authorization
from pdserve.wire.credentials import digest


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_wins_over_a_value_and_the_shared_token_stands_in_for_both(tmp_path: Path) -> None:
    file = tmp_path / "request"
    file.write_text("from-file\nold\n")
    env = {REQUEST + "_FILE": str(file), REQUEST: "value", "PDSERVE_TOKEN": "shared"}
    assert Credential.of(env, REQUEST).first == "from-file"
    assert Credential.of({REQUEST: "value", "PDSERVE_TOKEN": "s"}, REQUEST).first == "value"
    assert Credential.of({"PDSERVE_TOKEN": "shared"}, REQUEST).first == "shared"
    alone = Credential.of({"PDSERVE_TOKEN": "shared"}, CONTROL, shared=False)
    assert not alone.configured
    assert alone.digests == frozenset()


def test_a_rotated_file_reaches_a_running_process(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "control").write_text("aaaa")
    (tmp_path / "..data").symlink_to("1")
    credential = Credential(file=tmp_path / "..data" / "control", clock=clock)
    assert credential.first == "aaaa"
    # As the kubelet does it: the link moves; size and, here, time stay the same.
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "control").write_text("bbbb")
    same = (tmp_path / "1" / "control").stat().st_mtime_ns
    os.utime(tmp_path / "2" / "control", ns=(same, same))
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").rename(tmp_path / "..data")
    clock.now = 0.5
    assert credential.first == "aaaa", "one look a second"
    clock.now = 1.0
    assert credential.first == "bbbb"
    assert credential.digests == {digest("bbbb")}


def test_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "control"
    file.write_text("aaaa")
    credential = Credential(file=file, clock=clock)
    file.write_bytes(b"\xff\xfe")
    clock.now = 2.0
    assert credential.first == "aaaa"
    file.unlink()
    clock.now = 4.0
    assert credential.first == "aaaa"


def test_a_named_file_that_is_not_there_closes_the_use(tmp_path: Path) -> None:
    clock = Clock()
    credential = Credential(file=tmp_path / "later", clock=clock)
    assert credential.configured
    assert credential.digests == frozenset()
    (tmp_path / "later").write_text("x")
    clock.now = 1.5
    assert authorization(credential) == (b"authorization", b"Bearer x")

"""The file of decisions: a line each, and no decision waits for it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pdserve.controllers.from_options import decision_log
from pdserve.controllers.options import parse_options


def test_each_decision_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "decisions"
    append = decision_log(parse_options([f"--decisions-log={path}"], {}))
    append("one")
    append("two")
    assert path.read_text() == "one\ntwo\n"


def test_a_file_that_cannot_be_written_is_said_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "away" / "decisions"
    append = decision_log(parse_options([f"--decisions-log={path}"], {}))
    with caplog.at_level(logging.WARNING):
        append("one")
        append("two")
    assert len(caplog.records) == 1 and str(path) in caplog.text
    path.parent.mkdir()
    append("three")
    assert path.read_text() == "three\n"
    path.unlink()
    path.parent.rmdir()
    with caplog.at_level(logging.WARNING):
        append("four")
    assert len(caplog.records) == 2

"""docs/quickstart.md without Docker: the same page, the same commands, on process nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support import quickstart

pytestmark = pytest.mark.cluster


@pytest.mark.timeout(400)
def test_the_page_does_what_it_says(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found = quickstart.page_steps("process", model=quickstart.WANTS_MODEL)
    with quickstart.reader(tmp_path) as terminal:
        for ran in quickstart.read(terminal, found, timeout=200):
            record_property(ran.step.command.partition("\n")[0], round(ran.seconds, 1))

"""docs/quickstart.md keeps its promises as far as they can be read; tests run it elsewhere."""

from __future__ import annotations

import re

import pytest
import yaml
from tests.support.page import NODES
from tests.support.quickstart import COMMANDS, PAGE, ROOT, first_token, page_steps

from pdserve import __version__
from pdserve.api import PDService, RoCEDomain


@pytest.mark.parametrize("nodes", NODES)
def test_six_commands_to_the_first_token(nodes: str) -> None:
    assert first_token(page_steps(nodes)) <= COMMANDS
    assert "in six commands" in PAGE.read_text()


@pytest.mark.parametrize("nodes", NODES)
def test_each_sort_of_nodes_has_a_way_to_its_cluster(nodes: str) -> None:
    assert page_steps(nodes)[0].nodes == nodes
    assert [s for s in page_steps(nodes) if s.shown], "nothing would be compared"


def test_the_example_is_valid_and_fits_together() -> None:
    folder = ROOT / "examples" / "quickstart"
    service = PDService.parse(yaml.safe_load((folder / "pdservice.yaml").read_text()))
    domain = RoCEDomain.parse(yaml.safe_load((folder / "rocedomain.yaml").read_text()))
    assert service.spec.fabric.domain_ref.name == domain.metadata.name
    assert service.spec.engine.image == f"pdserve/engine:{__version__}"


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", PAGE.read_text(), re.M)) <= set(targets)

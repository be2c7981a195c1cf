"""What the README shows can be used as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pdserve.api import PDService, RoCEDomain

ROOT = Path(__file__).resolve().parents[3]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_its_service_is_valid_and_names_the_domain_it_applies() -> None:
    [text] = blocks("yaml")
    service = PDService.parse(yaml.safe_load(text))
    domain = yaml.safe_load((ROOT / "examples" / "demo-rocedomain.yaml").read_text())
    assert service.spec.fabric.domain_ref.name == RoCEDomain.parse(domain).metadata.name


def test_its_files_and_make_targets_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for path in [*re.findall(r"\]\((docs/[^)#]*)\)", text), "examples/demo-rocedomain.yaml"]:
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for used in re.findall(r"`?make ([a-z0-9-]+)", text):
        assert used in targets, used

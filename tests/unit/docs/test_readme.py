"""What the README shows can be used as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pdserve import __version__
from pdserve.api import PDService, RoCEDomain

ROOT = Path(__file__).resolve().parents[3]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_its_service_is_valid_and_names_the_domain_it_applies() -> None:
    [text] = blocks("yaml")
    service = PDService.parse(yaml.safe_load(text))
    domain = yaml.safe_load((ROOT / "examples" / "demo-rocedomain.yaml").read_text())
    assert service.spec.fabric.domain_ref.name == RoCEDomain.parse(domain).metadata.name


def test_it_says_which_images_must_exist_and_what_the_model_is() -> None:
    """K7.14: a reader who copies the service must not wait for an image or a model in vain."""
    text = (ROOT / "README.md").read_text()
    [shown] = blocks("yaml")
    service = PDService.parse(yaml.safe_load(shown))
    after = text.partition(shown)[2]
    for image in (service.spec.engine.image, f"pdserve/operator:{__version__}",
                  f"pdserve/gateway:{__version__}"):  # fmt: skip
        assert image in after
    assert service.spec.model.name == "pdserve-tiny", "the one that the engine's image holds"
    assert "`pdserve-tiny` is the toy model" in after


def test_its_files_and_make_targets_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for path in [*re.findall(r"\]\((docs/[^)#]*)\)", text), "examples/demo-rocedomain.yaml"]:
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for used in re.findall(r"`?make ([a-z0-9-]+)", text):
        assert used in targets, used

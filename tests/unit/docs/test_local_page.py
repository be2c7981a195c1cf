"""docs/local.md names every fault switch, image, setting and limit that the local cluster has."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from localcluster import binaries, cli
from localcluster.admin import Admin
from localcluster.agent.addresses import NodeAddresses
from localcluster.agent.images import OWN_IMAGES, PROMETHEUS_IMAGE
from localcluster.config import LABEL_DEVICES, MAX_DEVICES, MAX_NODES
from localcluster.download import ENV_MIRROR
from localcluster.gobuild import ENV_KEEP
from localcluster.releases import ENV_LOCK

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "local.md").read_text()


@pytest.mark.parametrize("switch", sorted(n for n in vars(Admin) if not n.startswith("_")))
def test_every_fault_switch_is_named(switch: str) -> None:
    assert f"admin.{switch}(" in PAGE


@pytest.mark.parametrize("image", [*OWN_IMAGES, PROMETHEUS_IMAGE])
def test_every_image_is_named(image: str) -> None:
    assert f"`{image}`" in PAGE


@pytest.mark.parametrize(
    "variable",
    [
        *sorted(v for k, v in vars(binaries).items() if k.startswith("ENV_")),
        "PDSERVE_CACHE",
        ENV_KEEP,
        ENV_LOCK,
        ENV_MIRROR,
        "PDSERVE_STATE",
        LABEL_DEVICES,
    ],
)
def test_every_setting_is_named(variable: str) -> None:
    assert variable in PAGE


def test_limits_are_those_of_the_code() -> None:
    pods = NodeAddresses(1, 1).pods
    assert f"up to {pods} pods a node, {MAX_NODES} nodes, {MAX_DEVICES} devices a node" in PAGE


def test_every_option_of_up_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["local", "up", "--help"])
    options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out)) - {
        "-h",
        "--help",
    }
    assert "--config" in options
    assert {o for o in options if o not in PAGE} == set()

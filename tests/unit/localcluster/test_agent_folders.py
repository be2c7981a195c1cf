"""What an image holds beside its program: models, where no volume hides them."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcluster.agent.images import program
from localcluster.agent.mounts import container_mounts
from localcluster.agent.sandbox import Mount


def folders_of(image: str) -> dict[str, Path]:
    return dict(program(image, lambda: Path("/none"), "127.1.2.3").folders)


@pytest.mark.parametrize("image", ["pdserve/engine:x", "mirror.example/hub/pdserve/engine"])
def test_an_engine_sees_the_fetched_models(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PDSERVE_MODELS", str(tmp_path))
    assert folders_of(image) == {"/models": tmp_path}


@pytest.mark.parametrize("image", ["pdserve/operator", "pdserve/gateway", "prom/prometheus:v3"])
def test_no_other_program_does(image: str) -> None:
    assert folders_of(image) == {}


def seen(tmp_path: Path, folders: dict[str, Path], *volumes: str) -> list[Mount]:
    """Mounts of a container with volumes at these paths, but what it gets besides."""
    container = {"volumeMounts": [{"name": f"v{n}", "mountPath": p} for n, p in enumerate(volumes)]}
    pod = {"spec": {"volumes": [{"name": f"v{n}", "emptyDir": {}} for n in range(len(volumes))]}}
    found = container_mounts(container, pod, tmp_path / "c", tmp_path / "volumes", {}, folders)
    return [m for m in found.mounts if m.target in (*folders, *volumes)]


def test_a_folder_of_the_image_is_mounted_read_only(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    want = [Mount(tmp_path / "m", "/models", read_only=True)]
    assert seen(tmp_path, {"/models": tmp_path / "m"}) == want


def test_what_this_machine_has_not_is_not_mounted(tmp_path: Path) -> None:
    assert seen(tmp_path, {"/models": tmp_path / "absent"}) == []


@pytest.mark.parametrize(
    ("volume", "hidden"),
    [
        ("/models", True),
        ("/models/", True),
        ("/models/llama", True),
        ("/", True),
        ("/models-of-mine", False),
        ("/data", False),
    ],
)
def test_a_volume_at_around_or_inside_hides_it(tmp_path: Path, volume: str, hidden: bool) -> None:
    """Inside: its mount point would have to be made in this machine's directory."""
    (tmp_path / "m").mkdir()
    targets = [m.target for m in seen(tmp_path, {"/models": tmp_path / "m"}, volume)]
    assert targets == [volume] if hidden else [volume, "/models"]
    assert list((tmp_path / "m").iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o755])
def test_missing_directories_of_a_sub_path_are_made_as_kubelets_make_them(
    tmp_path: Path, mode: int
) -> None:
    """With the permissions of the volume: who may write there may write in them."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    mount = {"name": "v", "mountPath": "/m", "subPath": "prod/key"}
    volume = {"name": "v", "hostPath": {"path": str(shared)}}
    pod = {"metadata": {}, "spec": {"volumes": [volume]}}
    found = container_mounts({"volumeMounts": [mount]}, pod, tmp_path / "c", tmp_path / "x", {})
    assert found.mounts[0].source == shared / "prod" / "key"
    for made in (shared / "prod", shared / "prod" / "key"):
        assert made.stat().st_mode & 0o777 == mode

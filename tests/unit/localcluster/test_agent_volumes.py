"""Content of volumes, and its change in one step."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from localcluster.agent.environment import PodFacts
from localcluster.agent.volumes import (
    VolumeError,
    VolumeInputs,
    volume_files,
    volume_sources,
    volume_tokens,
    write_volumes,
)


def pod(*volumes: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "ns", "labels": {"a": "b"}},
        "spec": {"containers": [{"name": "main"}], "volumes": list(volumes)},
    }


def inputs(a_pod: dict[str, Any], **data: str) -> VolumeInputs:
    secret = {"kind": "Secret", "data": {"t": base64.b64encode(b"\x00bin").decode()}}
    return VolumeInputs(
        PodFacts(a_pod, "127.1.1.2", "127.1.1.1", {"cpu": "2"}),
        {
            ("ConfigMap", "cm"): {"kind": "ConfigMap", "data": data},
            ("Secret", "s"): secret,
            ("ConfigMap", "gone"): None,
        },
        {("", 3600): "jwt", ("vault", 600): "jwt2"},
    )


def files(source: dict[str, Any], **data: str) -> dict[str, tuple[bytes, int]]:
    a_pod = pod({"name": "v", **source})
    return volume_files({"name": "v", **source}, a_pod, inputs(a_pod, **data))


def test_config_map_and_secret() -> None:
    assert files({"configMap": {"name": "cm"}}, k="v") == {"k": (b"v", 0o644)}
    assert files({"secret": {"secretName": "s", "defaultMode": 0o400}}) == {
        "t": (b"\x00bin", 0o400)
    }
    items = {"items": [{"key": "k", "path": "deep/name", "mode": 0o600}]}
    assert files({"configMap": {"name": "cm", **items}}, k="v", x="y") == {
        "deep/name": (b"v", 0o600)
    }


def test_projection_of_everything() -> None:
    sources = [
        {"serviceAccountToken": {"path": "token"}},
        {"serviceAccountToken": {"path": "other", "audience": "vault", "expirationSeconds": 600}},
        {"configMap": {"name": "cm"}},
        {"secret": {"name": "s"}},
        {
            "downwardAPI": {
                "items": [
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                    {
                        "path": "cpu",
                        "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu"},
                    },
                ]
            }
        },
        {"configMap": {"name": "gone", "optional": True}},
    ]
    found = files({"projected": {"sources": sources}}, k="v")
    assert {name: content for name, (content, _) in found.items()} == {
        "token": b"jwt", "other": b"jwt2", "k": b"v", "t": b"\x00bin",
        "labels": b'a="b"', "cpu": b"2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"configMap": {"name": "gone"}}, 'configmap "gone" not found'),
        (
            {"configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}},
            'configmap "cm" has no key',
        ),
        (
            {"downwardAPI": {"items": [{"path": "x", "fieldRef": {"fieldPath": "status.phase"}}]}},
            "downwardAPI x: fieldPath: 'status.phase'",
        ),
        (
            {"projected": {"sources": [{"clusterTrustBundle": {}}]}},
            "clusterTrustBundle'] is not supported",
        ),
    ],
)
def test_what_cannot_be_made_is_said(source: dict[str, Any], message: str) -> None:
    with pytest.raises(VolumeError) as error:
        files(source)
    assert message in str(error.value)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    a_pod = pod({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})
    with pytest.raises(VolumeError, match="process nodes have no persistentVolumeClaim volumes"):
        write_volumes(a_pod, tmp_path, inputs(a_pod))


def test_a_change_shows_all_at_once_and_nothing_old_stays(tmp_path: Path) -> None:
    a_pod = pod({"name": "v", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}})
    write_volumes(a_pod, tmp_path, inputs(a_pod, a="1", b="1"))
    volume = tmp_path / "v"
    first = (volume / "..data").readlink()
    (tmp_path / "e" / "kept").touch()
    (volume / "point").touch()
    write_volumes(a_pod, tmp_path, inputs(a_pod, a="1", b="1"))
    assert (volume / "..data").readlink() == first, "the same content is not written again"
    write_volumes(a_pod, tmp_path, inputs(a_pod, a="2", c="2"))
    assert (volume / "..data").readlink() != first
    shown = {p.name: p.read_text() for p in volume.iterdir() if not p.name.startswith("..")}
    assert shown == {"a": "2", "c": "2", "point": ""}
    assert [p.name for p in volume.iterdir() if p.is_dir() and not p.is_symlink()] == [
        (volume / "..data").readlink().name
    ]
    assert (tmp_path / "e" / "kept").exists()


def test_what_volumes_need_is_found() -> None:
    token = {"serviceAccountToken": {"path": "t", "expirationSeconds": 3607}}
    a_pod = pod(
        {"name": "a", "configMap": {"name": "one"}},
        {"name": "b", "secret": {"secretName": "two"}},
        {"name": "c", "projected": {"sources": [token, {"secret": {"name": "three"}}]}},
    )
    assert set(volume_sources(a_pod)) == {
        ("ConfigMap", "one"), ("Secret", "two"), ("Secret", "three"),
    }  # fmt: skip
    assert volume_tokens(a_pod) == {("", 3607)}

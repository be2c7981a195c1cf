"""Which namespace a command means that names none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from pdserve.kube import connect
from pdserve.kube.connect import ConnectError, default_namespace


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No kubeconfig of this user, and no pod."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def kubeconfig(path: Path, current: str, **namespaces: str | None) -> Path:
    """A file with a context per keyword, of that namespace."""
    contexts = [
        {"name": name, "context": {"cluster": "c", "user": "u"} | ({"namespace": ns} if ns else {})}
        for name, ns in namespaces.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": current,
                "contexts": contexts,
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    return path


def test_the_current_contexts_else_default(tmp_path: Path) -> None:
    file = kubeconfig(tmp_path / "a", "team", team="prod", plain=None)
    assert default_namespace(file) == "prod"
    assert default_namespace(file, context="plain") == "default"


def test_several_files_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kubeconfig(tmp_path / "a", "one", one="n1")
    second = kubeconfig(tmp_path / "b", "one", two="n2")
    monkeypatch.setenv("KUBECONFIG", f"{first}{os.pathsep}{second}")
    assert default_namespace() == "n1"
    assert default_namespace(context="two") == "n2"


def test_the_users_own_file(tmp_path: Path) -> None:
    kubeconfig(tmp_path / "home" / ".kube" / "config", "team", team="mine")
    assert default_namespace() == "mine"


def test_a_pods_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text("t")
    (account / "namespace").write_text("serving\n")
    monkeypatch.setattr(connect, "SERVICE_ACCOUNT", account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert default_namespace() == "serving"
    assert default_namespace(kubeconfig(tmp_path / "a", "team", team="prod")) == "prod"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConnectError, match="not a pod"):
        default_namespace()
    with pytest.raises(ConnectError, match="has no context 'nowhere'"):
        default_namespace(kubeconfig(tmp_path / "a", "team", team="prod"), context="nowhere")
    (tmp_path / "b").write_text("a: [")
    with pytest.raises(ConnectError, match="not usable"):
        default_namespace(tmp_path / "b")

"""Credentials, plans, log tails and process care of local clusters."""

from __future__ import annotations

import base64
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from traceback import walk_stack

import pytest
import yaml

from localcluster import processes
from localcluster.agent.host import AgentSettings
from localcluster.agent.logs import owner_of, tail_offset
from localcluster.config import ClusterConfig, NodeSpec
from localcluster.controlplane import ControlPlaneSettings
from localcluster.credentials import ec_private_key_pem, kubeconfig, new_user, token_file
from localcluster.errors import LocalError, log_tail
from localcluster.plan import LOCK, PLAN, ClusterPlan

NODES = ClusterConfig((NodeSpec("n1", {"rack": "r"}, 4), NodeSpec("n2", {}, 8)))


def test_private_keys_are_fresh_and_well_formed() -> None:
    one, two = ec_private_key_pem(), ec_private_key_pem()
    assert one != two
    der = base64.b64decode("".join(one.splitlines()[1:-1]))
    assert len(der) == 2 + der[1] == 51
    assert 0 < int.from_bytes(der[7:39], "big") < 2**256


def test_users_and_kubeconfig() -> None:
    admin, plain = new_user("admin", "system:masters", "more"), new_user("u")
    text = token_file([admin, plain])
    assert text.splitlines()[0] == f'{admin.token},admin,admin,"system:masters,more"'
    assert text.splitlines()[1] == f"{plain.token},u,u"
    document = yaml.safe_load(kubeconfig("https://127.0.0.1:1", b"CA", admin, "c"))
    assert document["users"][0]["user"]["token"] == admin.token
    assert document["current-context"] == "c"


def test_plans_survive_their_file(tmp_path: Path) -> None:
    plan = ClusterPlan("x", NODES, ControlPlaneSettings(node_grace=9), AgentSettings(3.0))
    plan.save(tmp_path)
    assert ClusterPlan.load(tmp_path) == plan


def test_heartbeats_too_slow_for_the_grace_are_refused() -> None:
    with pytest.raises(LocalError, match=r"node_grace 20 s: expected at least three times"):
        ClusterPlan("x", NODES, ControlPlaneSettings(node_grace=20), AgentSettings(10.0))


def test_log_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "no log at" in log_tail(log)
    log.write_text("")
    assert "empty log" in log_tail(log)
    log.write_text("".join(f"{i}\n" for i in range(50)))
    assert log_tail(log, 2) == "  | 48\n  | 49"


@pytest.mark.parametrize(
    ("content", "lines", "want"),
    [
        ("a\nb\nc\n", 1, "c\n"),
        ("a\nb\nc\n", 2, "b\nc\n"),
        ("a\nb\nc", 1, "c"),
        ("a\nb\n", 9, "a\nb\n"),
        ("a\n", 0, ""),
        ("", 3, ""),
        ("\n\n", 1, "\n"),
    ],
)
def test_the_last_lines_of_a_log(tmp_path: Path, content: str, lines: int, want: str) -> None:
    log = tmp_path / "log"
    log.write_text(content)
    assert log.read_text()[tail_offset(log, lines) :] == want


def test_the_owner_of_a_connection_is_known() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        near, far = client.getsockname(), client.getpeername()
        assert owner_of(near, far) == os.getuid()
        # From the same port, but to another place: a connection that ended a moment ago, say.
        assert owner_of(near, ("127.0.0.1", far[1] ^ 1)) is None
        assert owner_of(("127.9.9.9", near[1]), far) is None


def test_a_cluster_starts_while_its_state_is_read(tmp_path: Path) -> None:
    """A reader holds the lock for a moment; a daemon that met that moment gave up."""
    (tmp_path / PLAN).write_text("{}")
    with (tmp_path / LOCK).open("a") as looks:
        fcntl.flock(looks, fcntl.LOCK_SH)
        log = tmp_path / "log"
        argv = [sys.executable, "-m", "localcluster.daemon", str(tmp_path)]
        child = processes.spawn(argv, log=log)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(1.5)
            fcntl.flock(looks, fcntl.LOCK_UN)
            assert child.wait(30) == 1
        finally:
            processes.stop(child)
    assert "another process" not in log.read_text()
    assert "plan" in log.read_text(), "got as far as the plan, which is none"


def test_stop_ends_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); print('on', flush=True)"
    log = tmp_path / "log"
    child = processes.spawn([sys.executable, "-c", f"{code}; time.sleep(600)"], log=log)
    while "on" not in log.read_text():
        assert child.poll() is None
    began = time.monotonic()
    processes.stop(child, grace=0.2)
    assert child.returncode == -9
    assert time.monotonic() - began < 60, "not at the end of the child"


def test_a_spawned_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, threading\n"
        "from localcluster import processes\n"
        "child = processes.spawn(['sleep', '600'], log=pathlib.Path(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "threading.Event().wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert processes.is_alive(pid)
    parent.kill()
    parent.wait()
    deadline = processes.Deadline(5.0)
    while processes.is_alive(pid):
        assert not deadline.passed, "the child outlived its parent"


def test_ctrl_c_while_a_child_starts_ends_it(tmp_path: Path) -> None:
    """Its caller could not: it has not got the child yet."""
    os.mkfifo(log := tmp_path / "log")
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    main, heard = threading.main_thread().ident, threading.Event()
    assert main is not None

    def ctrl_c(*_: object) -> None:
        if not heard.is_set():
            heard.set()
            raise KeyboardInterrupt

    def argv() -> Iterator[str]:
        # Read by the thread that starts the child, while this one waits for its result.
        while all(f.f_code.co_name != "result" for f, _ in walk_stack(sys._current_frames()[main])):
            time.sleep(0.01)
        while not heard.wait(0.01):  # one that comes just before the wait does not end it
            signal.pthread_kill(main, signal.SIGINT)
        yield from ("sleep", "600")

    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt):
            processes.spawn(argv(), log=log)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGINT, before)
    processes.spawn(["true"], log=tmp_path / "other").wait()  # starts come one after another
    assert os.read(reader, 1) == b"", "no process has the log open"
    os.close(reader)


def test_memory_of_processes() -> None:
    assert processes.rss_bytes(os.getpid()) > 1 << 20
    assert processes.rss_bytes(2**22 + 1) == 0

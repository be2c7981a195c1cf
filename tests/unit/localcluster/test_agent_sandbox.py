"""The moments between starting a container and having its process."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from localcluster.agent.sandbox import Launch, Sandbox

WAITS = ["sh", "-c", "echo up > up; sleep 1000"]


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    made = Sandbox()
    await made.check(tmp_path / "check")
    if made.why_not is not None:
        pytest.skip(f"no namespaces here: {made.why_not}")
    yield made


def launch(directory: Path) -> Launch:
    env = {"PATH": os.environ["PATH"]}
    return Launch(WAITS, env, str(directory), [], directory / "c", directory / "log")


def seen(path: Path) -> bool:
    """Whether a program has said that it runs; nothing else happens here meanwhile."""
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        os.sched_yield()
    return path.exists()


async def test_a_program_ahead_of_its_launcher_is_started_only_with_its_pid(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    running = sandbox.start(launch(tmp_path))
    assert seen(tmp_path / "up")
    assert running.pid is None, "the launcher's end cannot be known yet"
    assert await running.not_started() is None
    assert running.pid is not None
    running.kill()
    assert await running.wait() == -9


@pytest.mark.parametrize("end", ["kill", "terminate"])
async def test_a_container_ended_before_its_pid_is_known_is_gone(
    sandbox: Sandbox, tmp_path: Path, end: str
) -> None:
    running = sandbox.start(launch(tmp_path))
    getattr(running, end)()
    assert await running.wait() == -9
    assert running.pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


async def test_a_container_that_overtook_its_launcher_can_be_ended(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    running = sandbox.start(launch(tmp_path))
    assert seen(tmp_path / "up")
    running.terminate()
    assert await running.wait() == -9

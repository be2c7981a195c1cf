"""docs/quickstart.md, run from beginning to end as a reader would, on one sort of nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.page import Ran, Step, Terminal, steps

from localcluster import binaries

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "quickstart.md"
CLUSTER = "pdserve"
"""The name that `make kind` and `pdserve local up` give a cluster by default."""
WANTS_MODEL = bool(os.environ.get("PDSERVE_TEST_MODEL"))
"""Whether tests may download a model (93 MB), and compute with it."""
COMMANDS = 6
"""What the page promises."""


_LOOK = """
exec 2>&1
kubectl get nodes,pods -A -o wide
kubectl get events -A --sort-by=.metadata.creationTimestamp | tail -30
kubectl logs -n pdserve-system -l app.kubernetes.io/name=pdserve --tail=20
"""
"""What a person would look at when a command failed."""


def page_steps(nodes: str, *, model: bool = False) -> list[Step]:
    """What a reader with that sort of nodes does; with `model`, one who wants a real model too."""
    return steps(PAGE.read_text(encoding="utf-8"), nodes, model=model)


def first_token(found: list[Step]) -> int:
    """How many commands it takes to the first token."""
    return next(i for i, s in enumerate(found, 1) if s.command.startswith("kubectl pdserve ask"))


@contextmanager
def reader(scratch: Path) -> Iterator[Terminal]:
    """A terminal in the checkout with the tools the page asks for; no cluster is left behind."""
    tools = [binaries.helm().parent, binaries.kube(programs=("kubectl",)).directory]
    environment = {k: v for k, v in os.environ.items() if k not in ("KUBECONFIG", "VIRTUAL_ENV")}
    environment["PATH"] = os.pathsep.join([environment["PATH"], *map(str, tools)])
    environment["PDSERVE_STATE"] = str(scratch / "state")
    terminal = Terminal(ROOT, environment, scratch)
    try:
        yield terminal
    except AssertionError as error:
        raise AssertionError(f"{error}\n\n{terminal.look(_LOOK)}") from error
    finally:
        terminal.run(Step(f".venv/bin/pdserve local down --name {CLUSTER}", 0), 180)


def read(terminal: Terminal, found: list[Step], timeout: float) -> list[Ran]:
    """Run every step; prints the seconds of each as it goes. `timeout` in seconds, per step."""
    done = []
    for step in found:
        ran = terminal.run(step, timeout)
        print(f"{ran.seconds:7.1f} s  {step.command}", flush=True)
        done.append(ran)
    return done

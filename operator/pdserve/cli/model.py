"""`pdserve model`: fetch a real model into a directory that engines read."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from pdserve.models.catalog import CATALOG
from pdserve.models.errors import ModelError
from pdserve.models.store import StoredModel, changed_files, get_model, stored_models

_EXAMPLES = """examples:
  pdserve model get smollm2-135m              download it (93 MB) and print its directory
  pdserve model get smollm2-135m --to ./smol  the same, into a directory of yours
  pdserve model get ORG/NAME@REVISION         any Llama-family model of a model hub (HF_ENDPOINT)
  pdserve model list                          what is known and what is there
  pdserve-engine --weights "$(pdserve model get smollm2-135m)" ...
"""


def add_parser(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "model",
        help="fetch a real model into a directory that engines read",
        description="Models in the user's cache (XDG_CACHE_HOME). A directory is made whole or "
        "not at all, and says where it comes from (pdserve-source.json).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    get = actions.add_parser("get", help="fetch a model; prints its directory")
    get.add_argument("name", help="a name of `pdserve model list`, or ORG/NAME[@REVISION]")
    get.add_argument("--to", type=Path, metavar="DIR", help="directory; must not exist yet")
    get.add_argument(
        "--from-hub", action="store_true", help="original weights from the model hub instead"
    )
    get.add_argument("--again", action="store_true", help="fetch it although it is there")
    get.add_argument("-o", "--output", choices=("text", "json"), default="text")
    get.set_defaults(run=_get)
    listing = actions.add_parser("list", help="known models and those that are there")
    listing.add_argument("--check", action="store_true", help="compare files with their hashes")
    listing.add_argument("-o", "--output", choices=("text", "json"), default="text")
    listing.set_defaults(run=_list)


def _get(arguments: argparse.Namespace) -> int:
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {text}", file=sys.stderr)

    try:
        found = get_model(
            arguments.name, folder=arguments.to, from_hub=arguments.from_hub,
            again=arguments.again, say=say,
        )  # fmt: skip
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: {error}: install it with pip install 'pdserve[models]'", file=sys.stderr)
        return 1
    say(f"{found.size / 1e6:.0f} MB from {found.source}")
    if arguments.output == "json":
        print(json.dumps(_described(found)))
    else:
        print(found.folder)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    there = stored_models()
    changed = {m.name: changed_files(m) for m in there} if arguments.check else {}
    if arguments.output == "json":
        known = [{"name": m.name, "title": m.title, "licence": m.licence} for m in CATALOG.values()]
        listed = [{**_described(m), "changed": changed.get(m.name, [])} for m in there]
        print(json.dumps({"known": known, "there": listed}))
    else:
        for model in CATALOG.values():
            print(f"{model.name:16} {model.title}, {model.licence}")
        for found in there:
            wrong = (
                f", CHANGED: {', '.join(changed[found.name])}" if changed.get(found.name) else ""
            )
            print(
                f"{found.name:16} {found.folder} ({found.size / 1e6:.0f} MB, {found.source}){wrong}"
            )
    return 1 if any(changed.values()) else 0


def _described(model: StoredModel) -> dict[str, object]:
    return {
        "name": model.name, "folder": str(model.folder), "source": model.source,
        "bytes": model.size,
    }  # fmt: skip

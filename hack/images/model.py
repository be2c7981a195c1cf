"""The engine's image with a real model in it, under the same name: what `--model` adds.

Its own small build on top of the image that the Dockerfile made: the model lies in the user's
cache, outside of that build's context, and one layer of its own is neither built nor pushed again
when only code changes.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hack.images.base import HERE
from hack.images.containers import Containers, ImagesError, say

from pdserve.models.catalog import IN_CONTAINERS
from pdserve.models.errors import ModelError
from pdserve.models.store import StoredModel, changed_files, get_model

DOCKERFILE = HERE / "Dockerfile.model"


def fetch(name: str) -> StoredModel:
    """The model, fetched once and kept in the user's cache.

    Raises:
        ImagesError: unknown name, it cannot be fetched, or its files are not as they were fetched.
    """
    try:
        found = get_model(name, say=say)
    except ModelError as error:
        raise ImagesError(f"model {name}: {error}") from error
    except ImportError as error:
        raise ImagesError(f"model {name}: {error}: pip install 'pdserve[models]'") from error
    if changed := changed_files(found):
        raise ImagesError(
            f"model {name}: changed in {found.folder}: {', '.join(changed)} (`pdserve model get "
            f"{name} --again` fetches it anew)"
        )
    return found


def add(engine: Containers, name: str, model: StoredModel, log: Path, arch: str = "") -> float:
    """Put `model` into image `name`; seconds it took.

    `arch`: another architecture than the engine's own, as the image was built for.

    Raises:
        ImagesError: with the end of the log.
    """
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch)
        for file in sorted(model.folder.iterdir()):
            shutil.copyfile(file, context / file.name)
            (context / file.name).chmod(0o644)
        context.chmod(0o755)
        return engine.build(
            name, context, log, dockerfile=DOCKERFILE, architecture=arch,
            arguments={
                "ENGINE": name, "FOLDER": f"{IN_CONTAINERS}/{model.folder.name}/",
                "MODEL": model.source,
            },
        )  # fmt: skip

"""The models that clients may name: `/v1/models` and `/v1/models/NAME` of the OpenAI API."""

from __future__ import annotations

from urllib.parse import unquote

import orjson

from pdserve.gateway.service import Service
from pdserve.http1.errors import ApiError
from pdserve.http1.reply import Reply
from pdserve.terms.json import JsonObject
from pdserve.wire.calls import PATH_MODELS

JSON = "application/json"


def is_models(path: str) -> bool:
    """Whether a path is one of these two."""
    return path == PATH_MODELS or path.startswith(PATH_MODELS + "/")


def list_models(service: Service, path: str, reply: Reply) -> None:
    """Answer with all models, or with the one that the path names.

    Raises:
        ApiError: 404, there is no such model; 503, no route table is loaded.
    """
    names = service.models()
    items = [_model(name, service.model_len(name)) for name in names]
    if path == PATH_MODELS:
        reply.send(200, orjson.dumps({"object": "list", "data": items}), JSON)
        return
    name = unquote(path[len(PATH_MODELS) + 1 :])
    if name not in names:
        raise ApiError(
            404,
            f"model {name!r:.200} does not exist; known: {', '.join(names)}",
            code="model_not_found",
            param="model",
        )
    reply.send(200, orjson.dumps(items[names.index(name)]), JSON)


def _model(name: str, tokens: int) -> JsonObject:
    """An entry of the list of models; `max_model_len` as vLLM names it, where it is known."""
    known = {"max_model_len": tokens} if tokens else {}
    return {"id": name, "object": "model", "created": 0, "owned_by": "pdserve", **known}

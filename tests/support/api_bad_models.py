"""Bad sources of weights: part of the table in `api_bad`."""

from __future__ import annotations

from typing import Any

from tests.support.api_case import of_service
from tests.support.api_objects import GONE

_IMAGE, _URI = "spec.model.source.image", "spec.model.source.uri"


def _of_image(**image: Any) -> dict[str, Any]:
    return {"spec.model.source": {"path": "/m", "image": image}}


def _of_uri(**edits: Any) -> dict[str, Any]:
    uri = {"url": "https://h.example/m.gguf", "sha256": "a" * 64} | edits
    given = {key: value for key, value in uri.items() if value is not GONE}
    return {"spec.model.source": {"path": "/m", "uri": given}}


BAD_MODELS = (
    of_service(
        "relative weights path",
        {"spec.model.source": {"path": "models/llama"}},
        "spec.model.source.path",
        "must be an absolute path such as /models/llama",
    ),
    of_service(
        "a claim at the root of the file system",
        {"spec.model.source": {"path": "/", "pvc": {"name": "weights"}}},
        "spec.model.source.path",
        "must be below / where",
    ),
    of_service(
        "a claim without a path",
        {"spec.model.source": {"pvc": {"name": "weights"}}},
        "spec.model.source.path",
        "Required value",
    ),
    of_service(
        "a claim without a name",
        {"spec.model.source": {"path": "/m", "pvc": {}}},
        "spec.model.source.pvc.name",
        "Required value",
    ),
    of_service(
        "a claim's name with a slash",
        {"spec.model.source": {"path": "/m", "pvc": {"name": "other/weights"}}},
        "spec.model.source.pvc.name",
        "must be",
    ),
    of_service(
        "weights from two places",
        {"spec.model.source": {"path": "/m", "pvc": {"name": "w"}, "image": {"reference": "w:1"}}},
        "spec.model.source",
        "must have at most one of pvc, image and uri",
    ),
    of_service(
        "weights of an image at the root of the file system",
        {"spec.model.source": {"path": "/", "image": {"reference": "w:1"}}},
        "spec.model.source.path",
        "must be below / where",
    ),
    *(
        of_service(f"weights of an image: {what}", _of_image(**image), f"{_IMAGE}.{field}", says)
        for what, image, field, says in (
            ("no reference", {"subPath": "a"}, "reference", "Required value"),
            ("a reference with a space", {"reference": "w :1"}, "reference", "an image reference"),
            ("a policy", {"reference": "w:1", "pullPolicy": "Once"}, "pullPolicy", "Unsupported"),
            (
                "out of it",
                {"reference": "w:1", "subPath": "../x"},
                "subPath",
                "a directory inside it",
            ),
        )
    ),
    *(
        of_service(f"weights from a URI: {what}", _of_uri(**uri), f"{_URI}.{field}", says)
        for what, uri, field, says in (
            ("no URL", {"url": GONE}, "url", "Required value"),
            ("no hash", {"sha256": GONE}, "sha256", "Required value"),
            ("a bucket", {"url": "s3://b/m.gguf"}, "url", "must be an http:// or https:// URL"),
            ("a file", {"url": "file:///etc/passwd"}, "url", "must be an http:// or https:// URL"),
            ("a directory", {"url": "https://h/m/"}, "url", "that ends with a file's name"),
            ("no path", {"url": "https://h"}, "url", "that ends with a file's name"),
            ("a user", {"url": "https://u:p@h/m"}, "url", "without user, query or fragment"),
            ("a query", {"url": "https://h/m?sig=x"}, "url", "without user, query or fragment"),
            ("a fragment", {"url": "https://h/m#x"}, "url", "without user, query or fragment"),
            ("a line end", {"url": "https://h/m\n"}, "url", "must be an http:// or https:// URL"),
            ("a space", {"url": "https://h/a b/m"}, "url", "must be an http:// or https:// URL"),
            ("a hidden file", {"url": "https://h/.m"}, "url", "that ends with a file's name"),
            ("a long one", {"url": "https://h/" + "m" * 1024}, "url", "may not be more"),
            ("a short hash", {"sha256": "ab"}, "sha256", "64 hexadecimal digits"),
            ("capital digits", {"sha256": "A" * 64}, "sha256", "64 hexadecimal digits"),
            ("a content", {"content": "Zip"}, "content", "Unsupported"),
            ("no bytes", {"maxGigabytes": 0}, "maxGigabytes", "greater than or equal to 1"),
            ("all bytes", {"maxGigabytes": 65537}, "maxGigabytes", "less than or equal to 65536"),
            ("a Secret elsewhere", {"secretRef": {"name": "a/b"}}, "secretRef.name", "must be"),
        )
    ),
    *(
        of_service(
            f"directory of a claim: {what}",
            {"spec.model.source": {"path": "/m", "pvc": {"name": "weights", "subPath": path}}},
            "spec.model.source.pvc.subPath",
            says,
        )
        for what, path, says in (
            ("absolute", "/llama", "must be a directory inside it such as models/llama"),
            ("out of it", "models/../../etc", "must be a directory inside it"),
            ("its parent", "..", "must be a directory inside it"),
            ("a slash at the end", "models/", "must be a directory inside it"),
            ("a line end", "models\n", "must be a directory inside it"),
            ("empty", "", "at least 1 chars"),
            ("too long", "m" * 257, "may not be more"),
        )
    ),
)

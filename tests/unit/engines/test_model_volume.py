"""Where an instance's weights come from, in its pod, for every engine type."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.rendered_pod import NEW, OWNER, engine, group

from pdserve.downloader.__main__ import parser
from pdserve.engines import registry
from pdserve.engines.model_volume import DOWNLOAD_CONTAINER, VOLUME
from pdserve.engines.pod_parts import PodSettings
from pdserve.engines.pod_profile import Allowed, Rights
from pdserve.engines.pods import render_pod
from pdserve.engines.template_errors import NotAllowedError, TemplateError

Json = dict[str, Any]
CHECKED = Rights(authors_checked=True)
CACHE = PodSettings("r/gateway:7", "/var/lib/pdserve/models")
SHA = "a" * 64
URI: Json = {"url": "https://h.example/llama/m.gguf", "sha256": SHA}
SECRET = {"secretRef": {"name": "hub"}}
TYPES = sorted(registry.known())


def pod_of(
    source: Json, type_name: str = "Reference", settings: PodSettings = CACHE,
    rights: Rights | None = CHECKED, namespace: str = "prod", template: Json | None = None,
) -> Json:  # fmt: skip
    edits = {"spec.model.source": source, "spec.engine.type": type_name,
             "metadata.namespace": namespace}  # fmt: skip
    if template is not None:
        edits["spec.prefill.template"] = template
    return render_pod(group(**edits), NEW, OWNER, rights, settings=settings)


def mounts(container: Json) -> list[Json]:
    return [m for m in container["volumeMounts"] if m["name"] == VOLUME]


def volume(pod: Json) -> Json:
    (found,) = (v for v in pod["spec"]["volumes"] if v["name"] == VOLUME)
    return {key: value for key, value in found.items() if key != "name"}


def download(pod: Json) -> Json:
    (found,) = (c for c in pod["spec"]["initContainers"] if c["name"] == DOWNLOAD_CONTAINER)
    return dict(found)


MOUNTED: list[tuple[Json, Json, Json]] = [
    (
        {"pvc": {"name": "weights"}},
        {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}},
        {},
    ),
    (
        {"pvc": {"name": "weights", "subPath": "llama"}},
        {"persistentVolumeClaim": {"claimName": "weights", "readOnly": True}},
        {"subPath": "llama"},
    ),
    ({"image": {"reference": "r/w:1"}}, {"image": {"reference": "r/w:1"}}, {}),
    (
        {"image": {"reference": "r/w:1", "pullPolicy": "Always", "subPath": "a/b"}},
        {"image": {"reference": "r/w:1", "pullPolicy": "Always"}},
        {"subPath": "a/b"},
    ),
]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize(("source", "wanted", "mount"), MOUNTED)
def test_claims_and_images_are_mounted_for_reading(
    type_name: str, source: Json, wanted: Json, mount: Json
) -> None:
    pod = pod_of({"path": "/models/x", **source}, type_name)
    assert volume(pod) == wanted
    assert mounts(engine(pod)) == [
        {"name": VOLUME, "mountPath": "/models/x", "readOnly": True, **mount}
    ]
    assert engine(pod)["args"].count("/models/x") == 1
    assert "initContainers" not in pod["spec"]


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize(
    ("uri", "loads"),
    [
        (URI, "/models/x/m.gguf"),
        ({**URI, "content": "Archive", "url": "http://h/a.tar.gz", **SECRET}, "/models/x"),
        ({**URI, "content": "Manifest", "url": "http://h/w/SHA256SUMS"}, "/models/x"),
    ],
)
def test_what_a_uri_names_is_what_the_engine_loads(type_name: str, uri: Json, loads: str) -> None:
    pod = pod_of({"path": "/models/x", "uri": uri}, type_name, PodSettings())
    assert engine(pod)["args"].count(loads) == 1
    assert volume(pod) == {"emptyDir": {}}
    (mount,) = mounts(engine(pod))
    assert mount["mountPath"] == "/models/x"
    assert (mount["subPath"], mount["readOnly"]) == ("files", True)
    assert mounts(download(pod)) == [{"name": VOLUME, "mountPath": "/model"}]
    asked = parser().parse_args(download(pod)["args"])
    assert (asked.url, asked.sha256, str(asked.to)) == (uri["url"], SHA, "/model")
    assert asked.content == uri.get("content", "File").lower()
    assert asked.max_bytes == 500 * 10**9
    assert asked.secret == ("hub" if "secretRef" in uri else "")


def test_a_download_is_of_the_gateways_image_and_restricted() -> None:
    found = download(pod_of({"path": "/m", "uri": {**URI, "maxGigabytes": 7}}))
    assert found["image"] == "r/gateway:7"
    assert found["command"][1:] == ["-m", "pdserve.downloader"]
    assert found["securityContext"]["readOnlyRootFilesystem"] is True
    assert "7000000000" in found["args"]


def test_a_urls_dollars_are_not_expanded() -> None:
    found = download(pod_of({"path": "/m", "uri": {**URI, "url": "https://h/$(X)/m.gguf"}}))
    assert "https://h/$$(X)/m.gguf" in found["args"]


def test_the_secret_is_shown_to_the_download_alone() -> None:
    pod = pod_of({"path": "/m", "uri": {**URI, **SECRET}})
    (secret,) = (v for v in pod["spec"]["volumes"] if "secret" in v)
    assert secret["secret"]["secretName"] == "hub"
    (mount,) = (m for m in download(pod)["volumeMounts"] if m["name"] == secret["name"])
    asked = parser().parse_args(download(pod)["args"])
    assert str(asked.secret_dir) == mount["mountPath"]
    assert mount["readOnly"] is True
    for container in pod["spec"]["containers"]:
        assert secret["name"] not in str(container)


def sub_path(namespace: str = "prod", **edits: Any) -> str:
    pod = pod_of({"path": "/m", "uri": {**URI, **edits}}, namespace=namespace)
    path: str = mounts(download(pod))[0]["subPath"]
    assert mounts(engine(pod))[0]["subPath"] == f"{path}/files"
    return path


def test_only_named_namespaces_use_a_nodes_directory() -> None:
    some = PodSettings(model_cache="/var/m", cached_namespaces=frozenset({"research"}))
    for namespace, kind in (("research", "hostPath"), ("prod", "emptyDir")):
        pod = pod_of({"path": "/m", "uri": URI}, settings=some, namespace=namespace)
        assert set(volume(pod)) == {kind}


def test_a_node_keeps_one_copy_for_each_namespace_secret_and_content() -> None:
    pod = pod_of({"path": "/m", "uri": URI})
    host = {"path": "/var/lib/pdserve/models", "type": "Directory"}
    assert volume(pod) == {"hostPath": host}
    assert sub_path().startswith("prod/")
    assert sub_path() == sub_path(maxGigabytes=3)
    different = [
        sub_path(),
        sub_path("other"),
        sub_path(secretRef={"name": "hub"}),
        sub_path(secretRef={"name": "hub2"}),
        sub_path(sha256="b" * 64),
        sub_path(url="https://h.example/llama/n.gguf"),
        sub_path(content="Archive"),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("rights", "fits"),
    [
        (Rights(), False),
        (Rights((Allowed.parse("spec.volumes[*].secret=hub"),)), True),
        (Rights((Allowed.parse("prod:spec.volumes[*].secret"),)), True),
        (Rights((Allowed.parse("test:spec.volumes[*].secret"),)), False),
        (Rights((Allowed.parse("spec.volumes[*].secret=other"),)), False),
        (CHECKED, True),
        (None, True),
    ],
)
def test_a_secret_is_the_authors_or_the_allow_lists_to_give(
    rights: Rights | None, fits: bool
) -> None:
    """What it holds is sent to a server of the author's choice."""
    source = {"path": "/m", "uri": {**URI, **SECRET}}
    if fits:
        assert pod_of(source, rights=rights)
        return
    with pytest.raises(NotAllowedError, match=r"model.source.uri.secretRef: .*secret=hub"):
        pod_of(source, rights=rights)


def engine_with(**part: Any) -> Json:
    return {"spec": {"containers": [{"name": "engine", **part}]}}


def beside(**part: Any) -> Json:
    return {"spec": {"containers": [{"name": "x", "image": "x", **part}]}}


def before(**part: Any) -> Json:
    return {"spec": {"initContainers": [{"name": "x", "image": "x", **part}]}}


def in_download(**part: Any) -> Json:
    return {"spec": {"initContainers": [{"name": DOWNLOAD_CONTAINER, **part}]}}


EVERYTHING = {"name": VOLUME, "mountPath": "/all"}
HOST = {"hostPath": {"path": "/var/lib/pdserve/models"}}
REACHES: dict[str, Json] = {
    "the whole cache": engine_with(volumeMounts=[EVERYTHING]),
    "another namespace's, by the path of ours": engine_with(
        volumeMounts=[{"mountPath": "/m", "subPath": "other/key/files"}]
    ),
    "ours for writing": engine_with(volumeMounts=[{"mountPath": "/m", "readOnly": False}]),
    "the cache from a sidecar": beside(volumeMounts=[EVERYTHING]),
    "the cache before the engine": before(volumeMounts=[EVERYTHING]),
    "the cache instead of the engine's mount": engine_with(
        volumeMounts=[{"mountPath": "/m", "$patch": "delete"}, EVERYTHING]
    ),
    "the cache under another name": {"spec": {"volumes": [{"name": "v", **HOST}]}},
    "a part of it": {"spec": {"volumes": [{"name": "v", "hostPath": {
        "path": "/var/lib/pdserve/models/other"}}]}},
    "another directory under its name": {"spec": {"volumes": [{"name": VOLUME, "hostPath": {
        "path": "/etc"}}]}},
    "no volume": {"spec": {"volumes": [{"name": VOLUME, "$patch": "delete"}]}},
    "another volume under its name": {"spec": {"volumes": [{"name": VOLUME, "emptyDir": {}}]}},
    "another download": in_download(args=["--url", "http://other"]),
    "another program": in_download(command=["sh"]),
    "another image": in_download(image="other"),
    "another mount of the download": in_download(volumeMounts=[EVERYTHING]),
    "a download that goes on": in_download(restartPolicy="Always"),
    "no download": in_download(**{"$patch": "delete"}),
    "no init containers": {"spec": {"initContainers": None}},
}  # fmt: skip


@pytest.mark.parametrize("what", REACHES)
def test_a_template_that_reaches_for_the_cache_is_refused(what: str) -> None:
    with pytest.raises(TemplateError, match=r"^template\.spec\."):
        pod_of({"path": "/m", "uri": {**URI, **SECRET}}, template=REACHES[what])


def test_a_template_may_give_a_download_its_proxy_and_room() -> None:
    template = in_download(
        env=[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        resources={"limits": {"memory": "1Gi"}},
    )
    found = download(pod_of({"path": "/m", "uri": URI}, template=template))
    assert found["env"] == [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
    assert found["resources"]["limits"] == {"memory": "1Gi"}
    assert "--sha256" in found["args"]

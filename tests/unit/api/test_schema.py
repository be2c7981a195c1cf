"""The CRDs are structural, bounded, and say the same as the models."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pdserve.api import KINDS, CustomResource
from pdserve.api.crd import crd_manifest, root_schema, spec_and_status

ROOT = Path(__file__).parents[3]
PRESERVED = {"metadata", "spec"}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below `schema`, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def parts(kind: type[CustomResource]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Nodes of spec and status."""
    properties = root_schema(kind)["properties"]
    for part in ("spec", "status"):
        yield from nodes(properties[part], part)


@pytest.fixture(params=KINDS, ids=lambda k: k.info.name)
def kind(request: pytest.FixtureRequest) -> type[CustomResource]:
    return request.param  # type: ignore[no-any-return]


def test_no_references_no_free_types_and_every_number_has_bounds(
    kind: type[CustomResource],
) -> None:
    for path, node in parts(kind):
        assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert node["type"] != "number" or {"minimum", "maximum"} <= set(node), path
        assert not {"$ref", "anyOf", "allOf", "oneOf", "title", "const"} & node.keys(), path


def test_every_list_string_number_and_map_is_bounded(kind: type[CustomResource]) -> None:
    for path, node in parts(kind):
        if node["type"] == "string":
            assert "maxLength" in node or "enum" in node, path
        if node["type"] == "array":
            assert "maxItems" in node, path
            assert node["x-kubernetes-list-type"] in {"map", "atomic"}, path
        if node["type"] == "integer":
            assert {"minimum", "maximum", "format"} <= node.keys(), path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_keys_of_list_maps_are_required(kind: type[CustomResource]) -> None:
    for path, node in parts(kind):
        keys = node.get("x-kubernetes-list-map-keys", [])
        assert set(keys) <= set(node.get("items", {}).get("required", [])), path


def test_unknown_fields_are_kept_only_in_pod_templates(kind: type[CustomResource]) -> None:
    for path, node in parts(kind):
        if "x-kubernetes-preserve-unknown-fields" in node:
            assert path.endswith((".template.metadata", ".template.spec")), path


def test_every_field_is_described(kind: type[CustomResource]) -> None:
    for path, node in parts(kind):
        if not path.endswith(("[]", "{}")):
            assert node.get("description"), path


def test_status_has_no_defaults_and_no_rules(kind: type[CustomResource]) -> None:
    for path, node in nodes(root_schema(kind)["properties"]["status"], "status"):
        assert "default" not in node, path
        assert "x-kubernetes-validations" not in node, path


def test_counts_of_a_scenario_group_have_no_default() -> None:
    group = next(k for k in KINDS if k.info.name == "ScenarioGroup")
    spec = root_schema(group)["properties"]["spec"]
    for holder in (spec, spec["properties"]["prefill"], spec["properties"]["decode"]):
        assert "default" not in holder["properties"]["replicas"]
        assert "replicas" not in holder["required"]


def test_every_rule_of_a_written_type_says_what_would_be_right(kind: type[CustomResource]) -> None:
    for path, node in [("", root_schema(kind)), *parts(kind)]:
        for rule in node.get("x-kubernetes-validations", []):
            words = rule["message"].split()
            assert {"must", "needs", "is"} & set(words), (path, rule["message"])


def test_required_and_defaults_agree_with_the_models(kind: type[CustomResource]) -> None:
    spec_type, _ = spec_and_status(kind)
    schema = root_schema(kind)["properties"]["spec"]
    for field in spec_type.model_fields.values():
        required = str(field.alias) in schema["required"]
        assert required == field.is_required(), field.alias


def test_names_and_subresources(kind: type[CustomResource]) -> None:
    spec = crd_manifest(kind)["spec"]
    assert spec["names"]["shortNames"] == [
        {"PDService": "pds", "ScenarioGroup": "psg", "RoCEDomain": "rdom"}[kind.info.name]
    ]
    assert spec["names"]["categories"] == ["pdserve"]
    subresources = spec["versions"][0]["subresources"]
    assert set(subresources) == (
        {"status", "scale"} if kind.info.name == "ScenarioGroup" else {"status"}
    )


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "hack" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # what a script's folder is to its imports
        patch.syspath_prepend(ROOT / "hack")
        spec.loader.exec_module(module)
    return module


def test_generated_files_are_up_to_date(generate: ModuleType) -> None:
    assert generate.drift() == {}, "run `make generate`"


@pytest.mark.parametrize(
    "change",
    [
        "crds/pdservices.pdserve.io.yaml", "docs/reference/api.md", "crds/stray.yaml",
        "charts/pdserve/files/crds/pdservices.pdserve.io.yaml",
        "charts/pdserve/files/crds/stray.yaml", "docs/pictures/pdserve-dark.svg",
    ],
)  # fmt: skip
def test_drift_is_found_named_and_repaired(
    generate: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    for part in ("crds", "charts", "docs/reference", "docs/pictures", "examples"):
        shutil.copytree(ROOT / part, tmp_path / part)
    root = ["--root", str(tmp_path)]
    assert generate.main(["--check", *root]) == 0
    with (tmp_path / change).open("a") as file:
        file.write("drifted: true\n")
    assert generate.main(["--check", *root]) == 1
    assert capsys.readouterr().err.startswith(f"{change}: not as generated")
    assert generate.main(root) == 0
    assert generate.main(["--check", *root]) == 0

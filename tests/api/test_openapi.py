"""The document: valid, whole, and about what is really served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from tests.api.served import served
from twinshare.protocols.services import SERVICES
from twinshare.protocols.table import all_methods


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolved(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


@pytest.mark.parametrize("root", ["/api", "/api/v1"])
async def test_the_document_is_valid_and_whole(root: str, tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        document = await api.get(f"{root}/openapi.json")
        assert all(path.startswith("/api/v1/") is (root == "/api/v1") for path in document["paths"])
        validate(document)
        assert document["openapi"] == "3.1.0"
        for reference in set(references(document)):
            assert resolved(document, reference), reference
        used = " ".join(references(document))
        for name in document["components"]["schemas"]:
            assert f"/{name}" in used, f"{name} is described and never used"


async def test_every_operation_is_documented_with_its_role_and_errors(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        document = await api.get("/api/openapi.json")
        documented = {one["operationId"]: one for path in document["paths"].values() for one in path.values()}
        for method in all_methods(SERVICES).values():
            assert documented[method.name]["x-role"] == method.role
            assert (f"remote_{method.name}" in documented) is not method.local
        for name, one in documented.items():
            assert one["responses"]["default"] == {"$ref": "#/components/responses/ErrorResponse"}, name
            assert one["summary"].endswith("."), name
            assert ("202" in one["responses"]) is any(
                "IdempotencyKey" in parameter.get("$ref", "") for parameter in one.get("parameters", [])
            )


@pytest.mark.parametrize("root", ["/api", "/api/v1"])
async def test_what_is_documented_is_served(root: str, tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        document = await api.get(f"{root}/openapi.json")
        for path, verbs in document["paths"].items():
            asked = path.replace("{host_port}", "1").replace("{", "").replace("}", "")
            allowed = (await api.client.options(asked)).headers["allow"].split(", ")
            assert {verb.upper() for verb in verbs} <= set(allowed), path


async def test_the_guides_bodies_are_in_the_document(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        document = await api.get("/api/openapi.json")
        answer = document["paths"]["/api/vm/{vm}/start"]["post"]["responses"]["200"]["content"]["application/json"]
        started = resolved(document, answer["schema"]["$ref"])
        assert {"success", "name", "status", "vnc_port"} <= started["properties"].keys()
        error = resolved(document, "#/components/schemas/Error")
        assert error["required"] == ["error", "code"]
        assert "ErrorBody" not in json.dumps(document)


async def test_medas_bodies_are_in_its_document(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        document = await api.get("/api/v1/openapi.json")
        answers = document["paths"]["/api/v1/vms"]["post"]["responses"]
        assert {"201", "202", "4XX", "default"} == answers.keys()
        error = resolved(document, "#/components/responses/ErrorResponse/content")["application/json"]["schema"]
        assert resolved(document, error["$ref"])["required"] == ["error", "code", "details"]
        info = resolved(document, "#/components/schemas/VmInfo")["properties"]
        assert list(info) == ["name", "state", "ip", "vcpus", "memory", "disk", "devices", "created"]


def schemas(value: Any) -> Iterator[dict[str, Any]]:
    """Every schema of the document, wherever it stands."""
    if isinstance(value, dict):
        if "type" in value or "enum" in value:
            yield value
        for inner in value.values():
            yield from schemas(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from schemas(inner)


@pytest.mark.parametrize("root", ["/api", "/api/v1"])
async def test_generators_find_what_they_need(root: str, tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        document = await api.get(f"{root}/openapi.json")
        assert document["servers"] == [{"url": "/"}], "the one that it was fetched from"
        components = document["components"]
        assert components["schemas"].keys().isdisjoint(components["responses"]), "one name for two things"
        assert all(tag["description"] for tag in document["tags"])
        names: list[str] = []
        for schema in schemas(document):
            if "enum" in schema:
                assert schema["type"] == "string"
                names += schema.get("x-enum-varnames", [])
            assert schema.get("type") not in {"integer", "number"} or schema["format"] in {"int64", "double"}
        assert names, "no enum has names for its values"
        assert len(names) == len(set(names)), "two values have one name"
        times = [
            field
            for schema in components["schemas"].values()
            for name, field in schema.get("properties", {}).items()
            if name.endswith("_at") or name in {"created", "timestamp"}
        ]
        for field in times:
            assert all(
                one.get("format") == "date-time" for one in field.get("anyOf", [field]) if one["type"] == "string"
            )
        assert times


def inputs(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schema of each parameter and each body, with where it is."""
    for path, verbs in document["paths"].items():
        for verb, one in verbs.items():
            for parameter in one.get("parameters", []):
                yield f"{verb} {path} {parameter.get('name')}", parameter.get("schema", {})
            for media in one.get("requestBody", {}).get("content", {}).values():
                yield f"{verb} {path}", media["schema"]


@pytest.mark.parametrize("root", ["/api", "/api/v1"])
async def test_every_number_that_is_sent_has_bounds(root: str, tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        document = await api.get(f"{root}/openapi.json")
        for where, schema in inputs(document):
            waiting, seen = [schema], set[str]()
            while waiting:
                one = waiting.pop()
                for reference in set(references(one)) - seen:
                    seen.add(reference)
                    waiting.append(resolved(document, reference))
                for number in schemas(one):
                    if number.get("type") == "integer":
                        assert {"minimum", "maximum"} <= number.keys(), f"{where}: {number}"

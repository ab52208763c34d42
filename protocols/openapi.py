"""An OpenAPI 3.1 document out of endpoint descriptions: every schema comes from a msgspec type, none is written twice.

A dialect lists what it serves as `Endpoint`s (most of them made by `endpoint` from the operation table); `document`
turns them into one document without dangling references: one `Error` schema for every failure, the role of each
operation as `x-role`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .access import Role
from .errors import ErrorBody
from .method import Method
from .openapi_schemas import Schema, Schemas
from .operation import Operation

JSON = "application/json"

_FAILURE = "ErrorResponse"
_PLACEHOLDER = re.compile(r"<(\w+)>")


@dataclass(frozen=True, slots=True)
class Media:
    """A body as the document tells it. `kind` is a type, a ready-made schema where none describes it, None for none."""

    kind: Any
    media_type: str = JSON
    description: str = "Done."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One verb on one path. `path` is written as in the operation table: `/vm/<vm>/start`."""

    verb: str
    path: str
    operation_id: str
    summary: str
    tag: str
    answers: Mapping[int, Media]
    role: Role | None = None
    path_params: Mapping[str, Any] = field(default_factory=dict)
    query: type[msgspec.Struct] | None = None
    body: Media | None = None
    body_required: bool = False
    example: Any = None
    # A mutation that the journal keeps: it takes an idempotency key and can answer 202 with its operation.
    journaled: bool = False


def endpoint(
    method: Method,
    path: str,
    answers: Mapping[int, Media],
    *,
    operation_id: str,
    tag: str,
    more_params: Mapping[str, Any] | None = None,
) -> Endpoint:
    """Describe an operation of the table as a dialect serves it under `path`, with a body for each status.

    `more_params` are what `path` holds beyond the operation's own.
    """
    return Endpoint(
        verb=method.verb,
        path=path,
        operation_id=operation_id,
        summary=method.summary,
        tag=tag,
        answers=answers,
        role=method.role,
        path_params={**(more_params or {}), **method.path_params},
        query=method.query,
        body=Media(method.body) if method.body is not None else None,
        body_required=method.body_required,
        example=method.example,
        journaled=method.mutates,
    )


def document(
    endpoints: Sequence[Endpoint],
    *,
    title: str,
    version: str,
    description: str,
    tags: Mapping[str, str],
    error: type[msgspec.Struct] = ErrorBody,
) -> Schema:
    """The whole document, ready to be encoded as JSON.

    Its server is the one that it was fetched from. `tags` describes each tag; `error` is the body of every refusal.
    """
    schemas = Schemas(_kinds(endpoints, error), [one.query for one in endpoints if one.query is not None])
    failure = {"description": "What failed, why, what to do.", "content": {JSON: {"schema": schemas.of(error)}}}
    paths: dict[str, Schema] = {}
    for one in endpoints:
        paths.setdefault(_PLACEHOLDER.sub(r"{\1}", one.path), {})[one.verb.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": description,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "parameters": _HEADER_PARAMETERS,
            "responses": {_FAILURE: failure},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # The empty requirement is the caller on this machine who is the node's own user.
        "security": [{"token": []}, {}],
        "tags": [{"name": tag, "description": tags[tag]} for tag in dict.fromkeys(one.tag for one in endpoints)],
    }


_HEADER_PARAMETERS = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "The same key with the same request is the same operation.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    "Prefer": {
        "name": "Prefer",
        "in": "header",
        "description": "`respond-async` answers 202 with the operation instead of waiting for its result.",
        "schema": {"type": "string"},
        "example": "respond-async",
    },
}


def _kinds(endpoints: Iterable[Endpoint], error: type[msgspec.Struct]) -> Iterable[Any]:
    yield from (error, Operation)
    for one in endpoints:
        bodies = [*one.answers.values(), *([one.body] if one.body else [])]
        yield from (media.kind for media in bodies if not isinstance(media.kind, dict | None))
        yield from one.path_params.values()


def _operation(one: Endpoint, schemas: Schemas) -> Schema:
    operation: Schema = {"operationId": one.operation_id, "summary": one.summary, "tags": [one.tag]}
    if one.role is not None:
        operation["x-role"] = str(one.role)
    if parameters := _parameters(one, schemas):
        operation["parameters"] = parameters
    if one.body is not None:
        content: Schema = {"schema": schemas.of(one.body.kind)}
        if one.example is not None:
            content["example"] = one.example
        operation["requestBody"] = {"required": one.body_required, "content": {one.body.media_type: content}}
    operation["responses"] = _responses(one, schemas)
    return operation


def _parameters(one: Endpoint, schemas: Schemas) -> list[Schema]:
    found: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": schemas.of(one.path_params[name])}
        for name in _PLACEHOLDER.findall(one.path)
    ]
    if one.query is not None:
        fields = schemas.fields[one.query.__name__]
        found += [
            {"name": name, "in": "query", "required": name in fields["required"], "schema": _without_null(schema)}
            for name, schema in fields["properties"].items()
        ]
    if one.journaled:
        found += [{"$ref": f"#/components/parameters/{name}"} for name in _HEADER_PARAMETERS]
    return found


def _without_null(schema: Schema) -> Schema:
    """A query cannot carry null: the parameter is left out instead."""
    kinds: list[Schema] = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else schema


def _responses(one: Endpoint, schemas: Schemas) -> Schema:
    responses: Schema = {
        str(status): {
            "description": answer.description,
            **({"content": {answer.media_type: {"schema": schemas.of(answer.kind)}}} if answer.kind else {}),
        }
        for status, answer in one.answers.items()
    }
    if one.journaled:
        responses["202"] = {
            "description": "Under way: the operation, as `Prefer: respond-async` asked for.",
            "headers": {"Location": {"description": "Where the operation is.", "schema": {"type": "string"}}},
            "content": {JSON: {"schema": schemas.of(Operation)}},
        }
    responses |= {key: {"$ref": f"#/components/responses/{_FAILURE}"} for key in ("4XX", "default")}
    return responses

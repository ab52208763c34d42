"""The page of the REST dialect twinshare: the operation table as people read it."""

from __future__ import annotations

from typing import Any

import msgspec

from scripts.documents.markdown import code, sentence, table
from twinshare.api.twinshare.listing import Listing
from twinshare.api.twinshare.operations import LISTINGS as OF_TABLE
from twinshare.api.twinshare.operations import TABLE
from twinshare.protocols.listing import MAX_LIMIT
from twinshare.protocols.method import Method
from twinshare.protocols.peer import FleetVms
from twinshare.protocols.services import SERVICES, VmService
from twinshare.protocols.table import all_methods, methods

HEAD = """# REST

Routes of the dialect twinshare, below `/api` (by default at `http://127.0.0.1:8080/api`). Those not marked *this node
alone* exist again under `/api/remote/{peer}`, where the peer is a peer ID, a unique prefix of one, or a node's name.
Every success answers 200; every failure answers as [errors.md](errors.md) says. The node serves the same as OpenAPI at
`/api/openapi.json`, and that of Meda's dialect below `/api/v1` at `/api/v1/openapi.json`; `/swagger-ui` shows both.

A change takes `Idempotency-Key: <your key>` (the same request again is then done once) and `Prefer: respond-async`
(202 and the operation at once, in place of the result at the end).

"""

LISTINGS = f"""## Listings

The routes below, and those of them that exist under `/api/remote/{{peer}}`, take these parameters; without any of them
the answer is the whole list.

- `limit`: rows in the answer at the most, 1 to {MAX_LIMIT}. When more follow, the answer has `next`.
- `after`: the `next` of the answer before, with the same `sort` and filters. It is a place in the order: rows
  that come and go meanwhile neither repeat nor hide others.
- `sort`: a field, or `-field` for descending. Text is ordered without regard to case and by the numbers in it (`vm-9`
  before `vm-10`); what is not known comes last. With any of these parameters the default is `name`, for operations
  `-created_at`.
- `FIELD=VALUE` for a field that is text: `*` in the value is any text.
- `label=KEY=VALUE`, or `label=KEY`, once for each label that must be there.

A parameter, a field or a cursor that there is not is answered 400 with its name. Operations are listed a thousand at a
time, of ten thousand that are looked at for one answer: `next` leads to the older ones, also without any parameter. In
another order than `-created_at` the list is of the newest ten thousand.
"""

CONSOLE = """## Console and screen

`GET /vm/{vm}/console` is a websocket: the serial console of a running VM, here or below `/api/remote/{peer}`, for the
VM's owner in the role operator, or an admin. Its messages are the console's bytes, both ways; a text message is typed
as UTF-8. Up to eight may listen to a VM at once: each gets what the guest says from then on, and all may type.
`GET /vm/{vm}/log` has what it said before. `GET /vm/{vm}/screen` is the same for the screen: its messages are RFB
(RFC 6143) without authentication, and each viewer has a connection of its own to QEMU. A browser's page must be of the
node itself or of a site in `api.origins`.

A refusal is answered as any other before the websocket begins; without `Upgrade: websocket` it is 426. The close frame
says why it ended: 1000 when the VM has stopped, else 4000 and the HTTP status of an error, with its code word and its
sentence: 4503 `overloaded: …` to a listener who falls 256 KiB behind, 4502 `peer_unreachable: …`, 4401
`unauthenticated: …` when the token is revoked, 4503 `unavailable: …` when the node stops. A message may have 64 KiB.
"""


def page() -> str:
    parts = [HEAD, _listings()]
    for service in SERVICES:
        parts.append(f"## {service.__name__.removesuffix('Service')}\n\n{sentence(service.__doc__)}\n")
        rows = [_row(method) for method in methods(service).values()]
        parts.append(table(("route", "role", "takes", "answers", ""), rows))
        if service is VmService:
            parts.append(CONSOLE)
    return "\n".join([*parts, "## Types\n", *_types()])


def _listings() -> str:
    every = {TABLE[name].path: listing for name, listing in OF_TABLE.items()} | {"/fleet/vm": Listing(FleetVms)}
    rows = [
        (code(f"GET {path}"), " ".join(map(code, listing.sorts)), " ".join(map(code, listing.filters)))
        for path, listing in every.items()
    ]
    return f"{LISTINGS}\n{table(('route', 'sorted by', 'filtered by'), rows)}"


def _row(method: Method) -> tuple[str, ...]:
    path = method.path.replace("<", "{").replace(">", "}")
    where = " *(this node alone)*" if method.local else ""
    return (code(f"{method.verb} {path}"), method.role.value, _takes(method), _answers(method), method.summary + where)


def _takes(method: Method) -> str:
    if method.body_param and method.body:
        return _link(method.body.__name__)
    carried, kind = (method.query, "?") if method.query else (method.body, "")
    return " ".join(code(f"{kind}{name}") for name in carried.__struct_fields__) if carried else ""


def _answers(method: Method) -> str:
    [schema], _ = msgspec.json.schema_components([method.result], ref_template="{name}")
    return _kind(schema)


def _types() -> list[str]:
    """Every named type that an operation takes or answers, from its JSON schema."""
    table_ = all_methods(SERVICES).values()
    roots = [kind for method in table_ for kind in (method.result, method.body_param and method.body) if kind]
    _, components = msgspec.json.schema_components(roots, ref_template="{name}")
    return [_type(name, schema) for name, schema in sorted(components.items())]


def _type(name: str, schema: dict[str, Any]) -> str:
    head = f"### {name}\n\n{sentence(schema.get('description'))}\n"
    if "enum" in schema:
        return f"{head}\nOne of {', '.join(code(str(value)) for value in schema['enum'])}.\n"
    required = schema.get("required", [])
    rows = [
        (code(field), _kind(kind), "yes" if field in required else _default(kind))
        for field, kind in schema.get("properties", {}).items()
    ]
    return f"{head}\n{table(('field', 'type', 'required, or default'), rows)}"


def _default(schema: dict[str, Any]) -> str:
    return code(msgspec.json.encode(schema["default"]).decode()) if "default" in schema else ""


def _kind(schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        return _link(schema["$ref"])
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "enum" in schema:
        return " ".join(code(str(value)) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], dict):
        return f"map of {_kind(schema['additionalProperties'])}"
    return " ".join([str(schema.get("type", "anything")), *_bounds(schema)])


def _bounds(schema: dict[str, Any]) -> list[str]:
    words = {
        "minimum": "≥ {}", "maximum": "≤ {}", "exclusiveMinimum": "> {}", "maxLength": "of at most {} characters",
        "minLength": "of at least {} characters", "pattern": "matching `{}`", "format": "({})",
    }  # fmt: skip
    return [text.format(schema[key]) for key, text in words.items() if key in schema]


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"

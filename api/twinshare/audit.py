"""`GET /api/audit`: who changed what on this node, newest first. No peer can read it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import msgspec
import trio
from msgspec import Meta
from quart import Response

from ...agent.audit.chain import Entry
from ...agent.audit.reading import newest
from ...agent.node import Node
from ...protocols.access import MAX_INTEGER, Role
from ...protocols.openapi import Endpoint, Media
from ..rest.requests import current_request
from ..rest.responses import json_response
from ..rest.routes import Route


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`before` is the number of a row: older ones are wanted."""

    limit: Annotated[int, Meta(ge=1, le=500)] = 100
    before: Annotated[int, Meta(ge=1, le=MAX_INTEGER)] | None = None


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row; a call has one when it begins, without an `outcome`, and one with its outcome under the same `call`."""

    row: int
    at: datetime
    call: str
    principal: str
    what: str
    on: str
    outcome: str
    at_peer: str


class AuditRows(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is what `before` must be for the rows that follow; None at the end."""

    rows: list[AuditRow]
    next: int | None


def route(node: Node) -> Route:
    """Return the route of the audit log."""

    async def view() -> Response:
        query = current_request().query_as(AuditQuery)
        read = partial(newest, node.home.database, query.limit + 1, query.before)
        found = (await trio.to_thread.run_sync(read))[::-1]
        rows = [_row(number, entry) for number, entry in found[: query.limit]]
        return json_response(AuditRows(rows=rows, next=rows[-1].row if len(found) > query.limit else None))

    endpoint = Endpoint(
        verb="GET", path="/api/audit", operation_id="list_audit", tag="node", role=Role.ADMIN, query=AuditQuery,
        summary="List the rows of the audit log, newest first.", answers={200: Media(AuditRows)},
    )  # fmt: skip
    return Route("GET", endpoint.path, "list_audit", view, endpoint)


def _row(number: int, entry: Entry) -> AuditRow:
    return AuditRow(
        row=number, at=datetime.fromtimestamp(entry.at, UTC), call=entry.call, principal=entry.principal,
        what=entry.what, on=entry.on, outcome=entry.outcome, at_peer=entry.at_peer,
    )  # fmt: skip

"""The page of events: what `GET /api/events` sends."""

from __future__ import annotations

import msgspec

from scripts.documents.markdown import code, sentence, table
from twinshare.protocols.events import PAYLOADS, EventKind, EventPayload

HEAD = """# Events

What a node publishes on `GET /api/events` (server-sent events, `?types=vm.*,op.done` chooses) and to its peers:

```json
{"id": 7, "type": "vm.deleted", "at": "2026-11-28T10:00:00Z", "data": {"id": "…"}}
```

`id` grows by one with each event of a node; `Last-Event-ID` continues after it. An event of a kind that is not here
comes from a later version and is passed on as it is.

"""


def page() -> str:
    return HEAD + table(("type", "data", "when"), [_row(kind, PAYLOADS[kind]) for kind in EventKind])


def _row(kind: EventKind, payload: type[EventPayload]) -> tuple[str, ...]:
    fields = ", ".join(code(field.encode_name) for field in msgspec.structs.fields(payload))
    return code(kind), fields, sentence(payload.__doc__)

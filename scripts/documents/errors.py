"""The page of errors: the tree that is raised, sent and answered."""

from __future__ import annotations

from scripts.documents.markdown import code, sentence, table
from twinshare.protocols.errors import ALL_ERRORS, TwinshareError

HEAD = """# Errors

Every failure that a caller can meet, on REST, between peers and in the Python client:

```json
{"error": "a sentence for people", "code": "a_word_for_programs", "details": {"path": "the.field"}}
```

`details` is `null` when there is nothing to add. The Python client raises the class; a code that it does not know is
raised as the most general class of its HTTP status.

"""


def page() -> str:
    return HEAD + table(
        ("code", "HTTP", "class", "is a", "meaning"), [_row(kind) for kind in sorted(ALL_ERRORS, key=_order)]
    )


def _order(kind: type[TwinshareError]) -> tuple[int, int]:
    return (kind.status, ALL_ERRORS.index(kind))


def _row(kind: type[TwinshareError]) -> tuple[str, ...]:
    parent = kind.__bases__[0].__name__ if kind is not TwinshareError else ""
    own = kind.__doc__ if kind.__doc__ != kind.__bases__[0].__doc__ else ""
    return (code(kind.code), str(kind.status), code(kind.__name__), code(parent), sentence(own))

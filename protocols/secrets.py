"""Secrets in what callers ask for: which fields they are, and requests without them.

A field is marked where it is defined, `Annotated[str, UNTIL_END]`; whatever is kept of a request goes through
`without_secrets`, so a new field needs its mark alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import Meta

Request = TypeVar("Request", bound=msgspec.Struct)

_MARK = "secret"
UNTIL_END = Meta(extra={_MARK: "until end"})
"""The field is written down for the time after a crash, until its operation has ended."""
NEVER = Meta(extra={_MARK: "never"})
"""The field is never written down: after a crash the operation goes on without it."""


def without_secrets(request: Request, *, ended: bool) -> Request:
    """Return the request as it may be written down; of an operation that has ended, without `UNTIL_END` too."""
    changed = {}
    for field, mark in _marks(type(request)):
        value = getattr(request, field.name)
        if mark == NEVER or (ended and mark == UNTIL_END):
            changed[field.name] = _default(field)
        elif isinstance(value, msgspec.Struct) and (kept := without_secrets(value, ended=ended)) is not value:
            changed[field.name] = kept
    if all(getattr(request, name) == value for name, value in changed.items()):
        return request
    return msgspec.structs.replace(request, **changed)


def secrets_until_end(request: msgspec.Struct) -> list[Any]:
    """Return the secrets that belong to what is asked: two requests that differ in them are two requests."""
    return list(_secrets(request))


def _secrets(request: msgspec.Struct) -> Iterator[Any]:
    for field, mark in _marks(type(request)):
        value = getattr(request, field.name)
        if mark == UNTIL_END:
            yield value
        elif mark is None and isinstance(value, msgspec.Struct):
            yield from _secrets(value)


@functools.cache
def _marks(kind: type[msgspec.Struct]) -> list[tuple[msgspec.structs.FieldInfo, Meta | None]]:
    """Each field with its mark."""
    return [(field, _mark_of(field)) for field in msgspec.structs.fields(kind)]


def _mark_of(field: msgspec.structs.FieldInfo) -> Meta | None:
    mark = next((part for part in get_args(field.type) if part in (UNTIL_END, NEVER)), None)
    if mark is not None and field.required:
        raise TypeError(f"the secret field {field.name} needs a default, which stands for it where it is left out")
    return mark


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


@functools.cache
def has_secrets(kind: Any) -> bool:
    """Return whether a field of `kind`, or of a Struct in it, is a secret."""
    return any(
        _mark_of(field) is not None or any(has_secrets(inner) for inner in _structs(field.type))
        for field in msgspec.structs.fields(kind)
    )


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in get_args(kind):
        yield from _structs(part)

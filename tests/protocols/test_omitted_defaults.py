"""A request carries what was asked and no defaults: an older peer gets a new field only when somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from twinshare.protocols.mesh import JoinService, MeshService
from twinshare.protocols.services import SERVICES, VmService
from twinshare.protocols.table import all_methods, methods
from twinshare.protocols.vm import VmSpec

TABLE = all_methods([*SERVICES, MeshService, JoinService])


def test_a_request_at_its_defaults_is_as_short_as_it_can_be() -> None:
    packed = methods(VmService)["create_vm"].pack({"spec": VmSpec(name="web", image="tiny")})
    assert msgspec.msgpack.decode(packed) == {"spec": {"name": "web", "image": "tiny"}}
    packed = methods(VmService)["stop_vm"].pack({"vm": "web", "force": False, "timeout": None})
    assert msgspec.msgpack.decode(packed) == {"vm": "web"}


@pytest.mark.parametrize("name", TABLE)
def test_every_part_of_a_request_omits_its_defaults(name: str) -> None:
    for kind in structs(inspect.type_info(TABLE[name].args)):
        has_defaults = any(not field.required for field in msgspec.structs.fields(kind))
        assert kind.__struct_config__.omit_defaults or not has_defaults, kind.__name__


def structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(kind, inspect.StructType):
        yield kind.cls
        for field in kind.fields:
            yield from structs(field.type)
    parts = [getattr(kind, name, None) for name in ("type", "item_type", "value_type")]
    for below in (*parts, *getattr(kind, "types", ())):
        if isinstance(below, inspect.Type):
            yield from structs(below)

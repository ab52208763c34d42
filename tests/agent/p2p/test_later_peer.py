"""A peer of a later version calls and is called: what this one does not know is refused by name, or left out."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import pytest

from twinshare.protocols import method
from twinshare.protocols.access import Role
from twinshare.protocols.errors import InvalidRequest, TwinshareError, Unsupported
from twinshare.protocols.messages import unpack_error
from twinshare.protocols.routes import rest
from twinshare.protocols.table import methods

from .workshop import ADMIN, open_pair


class LaterPiece(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size: int = 0
    colour: str = "blue"


class FormerPiece(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    size: int = 0


class LaterService(Protocol):
    """The workshop of a later version."""

    @rest("POST", "/piece", Role.OPERATOR)
    async def make(self, piece: LaterPiece, dry_run: bool = False) -> LaterPiece: ...

    @rest("POST", "/piece/<name>/paint", Role.OPERATOR)
    async def paint(self, name: str) -> LaterPiece: ...


LATER = methods(LaterService)


async def test_a_method_that_this_version_lacks_is_refused_by_name_and_version() -> None:
    async with open_pair() as pair:
        with pytest.raises(Unsupported, match="runs test and does not know the method 'paint'") as refused:
            await pair.calls.call("b", LATER["paint"], {"name": "bolt"}, ADMIN)
        assert refused.value.details == {"method": "paint", "agent": "test"}
        assert await pair.call("echo", text="the line lives") == "the line lives"


async def test_fields_and_arguments_that_this_version_lacks_are_left_out() -> None:
    async with open_pair() as pair:
        asked = {"piece": LaterPiece(name="bolt", size=3, colour="red"), "dry_run": True}
        made = await pair.calls.call("b", LATER["make"], asked, ADMIN)
        assert (made.name, made.size, made.colour) == ("bolt", 3, "blue")
        assert [piece.name for piece in pair.shop.made] == ["bolt"]


async def test_a_field_that_a_strict_former_version_refuses_is_named_with_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Former versions read what peers send as they read REST: without room for a field that came later."""

    def read_strictly(data: bytes, kind: Any) -> Any:
        try:
            return msgspec.msgpack.decode(data, type=msgspec.defstruct("Former", [("piece", FormerPiece)]))
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"piece: {error}", path="piece") from None

    monkeypatch.setattr(method, "decode_msgpack", read_strictly)
    async with open_pair() as pair:
        asked = {"piece": LaterPiece(name="bolt", colour="red")}
        with pytest.raises(Unsupported, match="runs test and does not know 'colour': leave it out") as refused:
            await pair.calls.call("b", LATER["make"], asked, ADMIN)
        assert refused.value.details == {"peer": "b", "field": "colour", "agent": "test"}
        assert pair.shop.made == []


def test_an_error_of_a_later_version_has_its_code_and_the_class_of_its_status() -> None:
    failure = {"error": "moved", "code": "vm_moved", "status": 409, "details": {"to": "x"}, "hint": "y"}
    error = unpack_error(msgspec.msgpack.encode(failure))
    assert isinstance(error, TwinshareError)
    assert (error.status, error.message, error.details) == (409, "moved", {"to": "x"})

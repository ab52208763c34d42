"""The types of commands and files inside a guest: what is refused, and what survives the way."""

from __future__ import annotations

import msgspec
import pytest

from twinshare.protocols.access import Role
from twinshare.protocols.errors import InvalidRequest, PeerMisbehaved
from twinshare.protocols.guest import MAX_COMMAND, ExecRequest, path_bytes, text_or_base64
from twinshare.protocols.guest_stream import (
    HEAD,
    MAX_MESSAGE,
    PIECE,
    AttachSession,
    GuestStreamRequest,
    Input,
    Opened,
    Output,
    WriteFile,
    decode_from_owner,
    decode_request,
    decode_to_guest,
    encode_message,
    message_length,
    pieces,
)

REFUSED = [
    ({}, "command must name a program"),
    ({"command": ["a"], "command_base64": ["YQ=="]}, "one or the other"),
    ({"command": ["a"], "stdin": "x", "stdin_base64": "eA=="}, "one or the other"),
    ({"command": ["a\0b"]}, "NUL"),
    ({"command": ["a"], "env": {"A=B": "c"}}, "NUL"),
    ({"command": ["a"], "interactive": True}, "ask for detach"),
    ({"command": ["x" * MAX_COMMAND]}, "131072 bytes each"),
    ({"command": ["a"], "env": {"N": "x" * MAX_COMMAND}}, "131072 bytes each"),
    ({"command": ["a"], "timeout": 0}, ">= 1"),
    ({"command": ["a"], "user": "-root"}, "matching"),
]


@pytest.mark.parametrize(("fields", "why"), REFUSED, ids=[why for _, why in REFUSED])
def test_a_command_that_cannot_run_is_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=why):
        msgspec.convert(fields, ExecRequest)


def test_the_longest_command_line_is_taken() -> None:
    request = ExecRequest(command=["x" * (MAX_COMMAND - 1)])
    assert len(request.argv_bytes()) == MAX_COMMAND


def test_bytes_that_are_not_utf8_arrive_whole() -> None:
    request = msgspec.convert({"command_base64": ["/w=="], "stdin_base64": "gA=="}, ExecRequest)
    assert request.argv() == [b"\xff"]
    assert request.stdin_bytes() == b"\x80"
    assert text_or_base64(b"\xff") == ("", "/w==")
    assert text_or_base64("é".encode()) == ("é", None)
    assert path_bytes("", "/w==") == b"\xff"


@pytest.mark.parametrize(("path", "encoded"), [("", None), ("a", "YQ=="), ("a\0", None), ("", "!")])
def test_a_path_that_names_no_file_is_refused(path: str, encoded: str | None) -> None:
    with pytest.raises(InvalidRequest):
        path_bytes(path, encoded)


def test_messages_of_a_stream_survive_the_way() -> None:
    asked = GuestStreamRequest(vm="web", role=Role.OPERATOR, open=AttachSession(session="0" * 16, offset=7))
    data = encode_message(asked)
    assert message_length(data[: HEAD.size]) == len(data) - HEAD.size
    assert decode_request(data[HEAD.size :]) == msgspec.convert(msgspec.to_builtins(asked), GuestStreamRequest)
    for message in (Opened(offset=3), Output(offset=9, data=b"\xff" * PIECE)):
        assert decode_from_owner(encode_message(message)[HEAD.size :]) == message
    assert decode_to_guest(encode_message(Input(data=b"x"))[HEAD.size :]) == Input(data=b"x")


def test_what_a_peer_may_not_send_is_refused() -> None:
    with pytest.raises(PeerMisbehaved):
        message_length(HEAD.pack(MAX_MESSAGE + 1))
    with pytest.raises(PeerMisbehaved):
        decode_to_guest(encode_message(Opened())[HEAD.size :])
    wrong = msgspec.msgpack.encode({"vm": "web", "role": "admin", "open": {"type": "write", "path": b""}})
    with pytest.raises(PeerMisbehaved):
        decode_request(wrong)
    with pytest.raises(PeerMisbehaved):
        decode_from_owner(b"\xc1")
    with pytest.raises(ValueError, match="too large"):
        encode_message(Input(data=bytes(MAX_MESSAGE)))


def test_content_is_cut_into_messages_that_fit() -> None:
    parts = list(pieces(bytes(PIECE * 2 + 1)))
    assert [len(part) for part in parts] == [PIECE, PIECE, 1]
    assert all(encode_message(Output(offset=1 << 62, data=part)) for part in parts)


def test_a_write_names_its_upload_in_hex() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"path": b"/a", "upload": "../x"}, WriteFile)

"""What is wrong with a body is said in words, with the field's path."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from twinshare.protocols.errors import InvalidRequest
from twinshare.protocols.node import TokenRequest
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.reading import convert_query, decode_json
from twinshare.protocols.size import SizeText
from twinshare.protocols.vm import ForwardSpec, VmSpec


@pytest.mark.parametrize(
    ("body", "kind", "sentence", "path"),
    [
        (b'{"name":"a_b","image":"x"}', VmSpec, "name: must be 1 to 63 of a-z, 0-9 and '-', and neither", "name"),
        (
            b'{"name":"0f6e1c1e-6f0e-5d7b-9a51-8c3f5d6f7a10","image":"x"}',
            VmSpec,
            "name must not be shaped like an id",
            "$",
        ),
        (b'{"name":"a","image":"x","hypervisor":"xen"}', VmSpec, "hypervisor: must be kvm or qemu", "hypervisor"),
        (b'{"host_port":1,"guest_port":1,"protocol":"x"}', ForwardSpec, "protocol: must be tcp or udp", "protocol"),
        (b'"2"', SizeText, "must be a number and a unit, such as 512M or 2G", "$"),
        (b'{"name":"a","image":"x","memory":3}', VmSpec, "memory: Expected `int` >= 64", "memory"),
        (b'{"name":"a","image":"x","mac":"52:54:00:AB:CD:EF"}', VmSpec, "mac: must be a MAC address in lower", "mac"),
        (b'{"name":"a","image":"x","image":"y"}', VmSpec, "image: is there twice", "image"),
        (b'{"limits":{"vm":2}}', InviteRequest, "limits: Object contains unknown field `vm`", "limits"),
        (b'{"name":"a/b"}', TokenRequest, "name: must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'", "name"),
        (b'{"name":"a","image":"x","labels":{"":"b"}}', VmSpec, "labels: a key: Expected `str` of length", "labels"),
        (b'{"image":"x"}', VmSpec, "name: Object missing required field", "name"),
    ],
)
def test_what_is_wrong_is_said_in_words(body: bytes, kind: Any, sentence: str, path: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        decode_json(body, kind)
    assert wrong.value.message.startswith(sentence)
    assert wrong.value.details["path"] == path


class Times(msgspec.Struct):
    """A query with a time in it."""

    until: datetime | None = None


@pytest.mark.parametrize("number", ["0", "0.5", "-1", "1e9"])
def test_a_time_in_a_query_is_no_number(number: str) -> None:
    assert convert_query({"until": "2026-01-31T12:00:00Z"}, Times).until == datetime(2026, 1, 31, 12, tzinfo=UTC)
    with pytest.raises(InvalidRequest, match="until: must be a time") as wrong:
        convert_query({"until": number}, Times)
    assert wrong.value.details["path"] == "until"

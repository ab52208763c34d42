"""The RPC state machine: two ends driven without clock or socket, and an end driven by an enemy."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.protocols.access import Role
from twinshare.protocols.caller_session import CallerSession
from twinshare.protocols.errors import (
    InvalidRequest,
    NotFound,
    PeerMisbehaved,
    PeerUnreachable,
    TooLarge,
    TwinshareError,
    Unsupported,
    VmNotFound,
)
from twinshare.protocols.frames import MAX_FRAME, Frame, Kind, encode
from twinshare.protocols.messages import (
    Answered,
    Called,
    Cancelled,
    Closed,
    Event,
    Failed,
    Failure,
    Granted,
    Greeted,
    Hello,
    Received,
    Request,
    pack_error,
    unpack_error,
)
from twinshare.protocols.owner_session import OwnerSession
from twinshare.protocols.session import MAX_CALLS, MAX_CREDIT, Session


def request(credit: int = 0, timeout: float = 30.0, key: str | None = None) -> Request:
    return Request(timeout, Role.VIEWER, key, False, credit, msgspec.Raw(b"\x80"))


def pair(idle_timeout: float = 15.0) -> tuple[CallerSession, OwnerSession]:
    caller = CallerSession(Hello(name="near"), 0.0, idle_timeout)
    owner = OwnerSession(Hello(name="far"), 0.0, idle_timeout)
    assert carry(caller, owner) == [Greeted(Hello(name="near"))]
    assert carry(owner, caller) == [Greeted(Hello(name="far", versions=(1,)))]
    return caller, owner


def carry(source: Session, target: Session, now: float = 0.0) -> list[Event]:
    data = source.data_to_send()
    return list(target.receive(data, now)) if data else []


def send(target: Session, *frames: Frame) -> list[Event]:
    return list(target.receive(b"".join(map(encode, frames)), 0.0))


def test_a_call_and_its_answer() -> None:
    caller, owner = pair()
    call = caller.call("get_vm", request(key="k"), 0.0)
    [called] = carry(caller, owner)
    assert called == Called(call, "get_vm", request(key="k"))
    assert caller.in_flight == owner.in_flight == 1
    owner.result(call, b"vm")
    assert carry(owner, caller) == [Answered(call, b"vm")]
    assert caller.in_flight == owner.in_flight == 0


def test_an_error_arrives_as_the_same_class_with_its_details() -> None:
    caller, owner = pair()
    call = caller.call("get_vm", request(), 0.0)
    carry(caller, owner)
    owner.fail(call, VmNotFound("no VM 'a' here", name="a"))
    [failed] = carry(owner, caller)
    assert isinstance(failed, Failed)
    assert type(failed.error) is VmNotFound
    assert (failed.error.message, failed.error.details) == ("no VM 'a' here", {"name": "a"})


def test_an_error_too_new_for_us_falls_back_to_its_status() -> None:
    body = msgspec.msgpack.encode(Failure(error="no such dog", code="dog_not_found", status=404))
    assert type(unpack_error(body)) is NotFound


def test_an_error_with_unwieldy_details_still_arrives() -> None:
    assert unpack_error(pack_error(InvalidRequest("odd", thing=object()))).message == "odd"
    assert unpack_error(pack_error(InvalidRequest("x" * 99_999))).message == "x" * 1024


def test_a_cancelled_call_keeps_its_place_until_the_owner_has_answered() -> None:
    caller, owner = pair()
    call = caller.call("list_vms", request(), 0.0)
    caller.cancel(call)
    assert carry(caller, owner)[1] == Cancelled(call)
    assert caller.in_flight == 1
    owner.fail(call, TwinshareError("cancelled"))
    owner.result(call, b"too late")
    assert len(carry(owner, caller)) == 1
    caller.cancel(call)
    assert carry(caller, owner) == []
    assert caller.closed is owner.closed is None


def test_an_answer_that_is_too_large_becomes_an_error() -> None:
    caller, owner = pair()
    call = caller.call("list_vms", request(), 0.0)
    carry(caller, owner)
    owner.result(call, bytes(MAX_FRAME))
    [failed] = carry(owner, caller)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, TooLarge)


def test_arguments_that_are_too_large_are_refused_before_they_are_sent() -> None:
    caller, owner = pair()
    with pytest.raises(TooLarge):
        caller.call(
            "create_vm",
            Request(1.0, Role.VIEWER, None, False, 0, msgspec.Raw(b"\xc6\x00\x10\x00\x00" + bytes(MAX_FRAME))),
            0.0,
        )
    assert caller.in_flight == 0
    assert caller.call("list_vms", request(), 0.0) == 1
    assert len(carry(caller, owner)) == 1


def test_a_stream_takes_no_more_items_than_its_credit() -> None:
    caller, owner = pair()
    call = caller.call("events", request(credit=2), 0.0)
    carry(caller, owner)
    while owner.credit(call):
        owner.item(call, "vm.state", b"x")
    assert carry(owner, caller) == [Received(call, "vm.state", b"x")] * 2
    caller.grant(call, 1)
    assert carry(caller, owner) == [Granted(call)]
    assert owner.credit(call) == 1
    assert isinstance(send(caller, *[Frame(Kind.ITEM, call)] * 2)[1], Closed)


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    caller, owner = pair(idle_timeout=15)
    assert caller.next_tick == 5
    assert list(caller.tick(5.0)) == []
    assert carry(caller, owner, 5.0) == []
    assert carry(owner, caller, 5.0) == []  # PONG
    assert caller.next_tick == 10
    list(caller.tick(10.0))
    assert caller.next_tick == 15
    list(caller.tick(15.0))
    assert caller.next_tick == 20
    [closed] = caller.tick(20.0)
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, PeerUnreachable)


def test_a_peer_may_be_silent_for_less_long_while_somebody_waits_for_it() -> None:
    caller, owner = pair(idle_timeout=60)
    caller.call("follow_events", request(credit=1), 0.0)
    carry(caller, owner)
    list(caller.tick(20.0))
    assert carry(caller, owner, 20.0) == carry(owner, caller, 20.0) == []
    caller.call("get_vm", request(), 39.0)
    list(caller.tick(39.0))
    assert caller.next_tick == pytest.approx(39 + 5 / 3)
    [closed] = caller.tick(44.0)
    assert isinstance(closed, Closed)


def test_the_end_of_the_stream_ends_the_session() -> None:
    caller, _ = pair()
    [closed] = caller.receive(b"", 0.0)
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, PeerUnreachable)
    assert list(caller.receive(b"anything", 0.0)) == []


def test_no_common_version_is_a_typed_answer_to_the_caller() -> None:
    caller = CallerSession(Hello(versions=(7, 8)), 0.0)
    owner = OwnerSession(Hello(), 0.0)
    assert isinstance(carry(caller, owner)[0], Closed)
    [closed] = carry(owner, caller)
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, Unsupported)
    assert "7, 8 there, 1 here" in closed.error.message


def test_the_best_common_version_is_chosen_and_newer_fields_are_let_pass() -> None:
    owner = OwnerSession(Hello(), 0.0)
    hello = msgspec.msgpack.encode({"versions": [1, 2], "name": "new", "colour": "green"})
    [greeted] = send(owner, Frame(Kind.HELLO, 0, "", hello))
    assert isinstance(greeted, Greeted)
    newer = msgspec.msgpack.encode([30.0, "viewer", None, False, 0, {}, "a later field"])
    assert isinstance(send(owner, Frame(Kind.CALL, 1, "anything", newer))[0], Called)


def body(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


CALL = body(request())


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(Kind.HELLO, 0, "", body(Hello()))],
        [Frame(Kind.HELLO, 0, "", b"\xc1")],
        [Frame(Kind.RESULT, 1)],
        [Frame(Kind.CANCEL, 1)],
        [Frame(Kind.CREDIT, 1, "", body(1))],
        [Frame(Kind.CALL, 1, "", CALL)],
        [Frame(Kind.CALL, 0, "m", CALL)],
        [Frame(Kind.CALL, 1, "m", b"")],
        [Frame(Kind.CALL, 1, "m", b"\x91" * 100_000)],
        [Frame(Kind.CALL, 1, "m", CALL), Frame(Kind.CALL, 1, "m", CALL)],
        [Frame(Kind.CALL, 1, "m", body(request(timeout=-1.0)))],
        [Frame(Kind.CALL, 1, "m", body(request(timeout=float("nan"))))],
        [Frame(Kind.CALL, 1, "m", body(request(timeout=1e12)))],
        [Frame(Kind.CALL, 1, "m", body(request(key="k" * 256)))],
        [Frame(Kind.CALL, 1, "m", body(request(credit=MAX_CREDIT + 1)))],
        [Frame(Kind.CALL, 1, "m", body([30.0, 7, None, False, 0, {}]))],
        [Frame(Kind.CALL, 1, "m", CALL), Frame(Kind.CREDIT, 1, "", body(0))],
        [Frame(Kind.CALL, 1, "m", CALL), Frame(Kind.CREDIT, 1, "", body("many"))],
        [Frame(Kind.CALL, number, "m", CALL) for number in range(1, MAX_CALLS + 2)],
    ],
)
def test_an_owner_ends_the_session_at_the_first_breach(frames: list[Frame]) -> None:
    _, owner = pair()
    last = send(owner, *frames)[-1]
    assert isinstance(last, Closed)
    assert isinstance(last.error, PeerMisbehaved)
    assert owner.data_to_send()  # it says why


@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.ERROR, Kind.DETACHED, Kind.ITEM, Kind.CALL, Kind.CANCEL])
def test_a_caller_ends_the_session_at_a_frame_of_an_unknown_call(kind: Kind) -> None:
    caller, _ = pair()
    [closed] = send(caller, Frame(kind, 7, "m", b""))
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, PeerMisbehaved)


def test_nothing_passes_before_hello() -> None:
    for session in (OwnerSession(Hello(), 0.0), CallerSession(Hello(), 0.0)):
        assert isinstance(send(session, Frame(Kind.PING, 1))[0], Closed)


@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 3), st.sampled_from(["", "m"]), st.binary(max_size=40)))
)
def test_any_frames_at_all_end_in_a_sound_state(sent: list[tuple[Kind, int, str, bytes]]) -> None:
    for session in pair():
        events = send(session, *(Frame(*parts) for parts in sent)) if sent else []
        closings = [event for event in events if isinstance(event, Closed)]
        assert len(closings) == (session.closed is not None)
        assert not closings or events[-1] is closings[0]


OPERATIONS = st.lists(
    st.sampled_from(["call", "cancel", "answer", "fail", "item", "grant", "tick", "carry"]), max_size=60
)


@given(OPERATIONS, st.randoms(use_true_random=False))
def test_in_any_order_every_call_is_answered_once_and_both_ends_agree(ops: list[str], rng: random.Random) -> None:
    world = World(rng)
    for name in ops:
        getattr(world, name)()
    world.settle()
    assert world.caller.closed is world.owner.closed is None
    assert world.answers == dict.fromkeys(range(1, world.made + 1), 1)
    assert world.caller.in_flight == world.owner.in_flight == 0


class World:
    """A caller that makes calls, an owner that serves them, and a wire that carries bytes in odd pieces."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now, self.made = rng, 0.0, 0
        self.caller, self.owner = pair()
        self.serving: set[int] = set()
        self.answers: dict[int, int] = {}
        self.wires = {self.caller: bytearray(), self.owner: bytearray()}

    def call(self) -> None:
        if not self.caller.full:
            self.made = self.caller.call("m", request(credit=self.rng.randrange(3)), self.now)

    def cancel(self) -> None:
        self.caller.cancel(self.rng.randint(0, self.made))

    def grant(self) -> None:
        self.caller.grant(self.rng.randint(0, self.made), self.rng.randint(1, 3))

    def item(self) -> None:
        for call in self.serving:
            if self.owner.credit(call):
                self.owner.item(call, "k", b"i")

    def answer(self) -> None:
        if self.serving:
            self.owner.result(self.serving.pop(), b"r")

    def fail(self) -> None:
        if self.serving:
            self.owner.fail(self.serving.pop(), VmNotFound("no"))

    def tick(self) -> None:
        self.now += 2
        list(self.caller.tick(self.now))
        list(self.owner.tick(self.now))
        self.carry(whole=True)
        self.carry(whole=True)

    def carry(self, *, whole: bool = False) -> None:
        for source, target in ((self.caller, self.owner), (self.owner, self.caller)):
            wire = self.wires[source]
            wire += source.data_to_send()
            size = len(wire) if whole else self.rng.randint(0, len(wire))
            if size:
                for event in target.receive(bytes(wire[:size]), self.now):
                    self.note(event)
                del wire[:size]

    def note(self, event: Event) -> None:
        if isinstance(event, Called):
            self.serving.add(event.id)
        elif isinstance(event, Answered | Failed):
            self.answers[event.id] = self.answers.get(event.id, 0) + 1

    def settle(self) -> None:
        self.carry(whole=True)
        while self.serving:
            self.answer()
        self.carry(whole=True)
        self.carry(whole=True)


@pytest.mark.parametrize(
    "much",
    [{"agent": "x" * 60_000}, {"name": "x" * 60_000}, {"addresses": [""] * 60_000}, {"versions": [1] * 60_000}],
)
def test_a_hello_that_would_be_kept_is_small(much: dict[str, object]) -> None:
    """Each session keeps its peer's, decoded: 64 KiB of empty texts take half a MiB."""
    owner = OwnerSession(Hello(name="far"), 0.0, 15.0)
    [closed] = send(owner, Frame(Kind.HELLO, 0, "", msgspec.msgpack.encode(much)))
    assert isinstance(closed, Closed)
    assert isinstance(closed.error, PeerMisbehaved)
    assert owner.greeting is None

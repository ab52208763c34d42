"""Tickets: single use, both sides prove the secret, wrong tries burn one."""

import pytest

from tests.agent.p2p.test_membership import DAY, Clock, signer
from twinshare.agent.limits import RESERVED_PART
from twinshare.agent.p2p import tickets as tickets_module
from twinshare.agent.p2p.store import MemoryKeyValueStore
from twinshare.agent.p2p.tickets import MAX_NONCES, NONCE_LIFE, TicketBook, open_tickets
from twinshare.protocols.access import Caller, Limits, Role
from twinshare.protocols.errors import Forbidden, Overloaded
from twinshare.protocols.peer import InviteRequest
from twinshare.protocols.ticket import NONCE_SIZE

JOINER = signer(9).peer_id


async def book(clock: Clock | None = None, store: MemoryKeyValueStore | None = None) -> TicketBook:
    return await open_tickets(store or MemoryKeyValueStore(), signer(1).peer_id, clock or Clock())


async def test_a_ticket_is_good_once_and_both_sides_prove_it() -> None:
    tickets = await book()
    assert not tickets.live
    ticket = await tickets.make(InviteRequest(role=Role.OPERATOR, limits=Limits(vms=2), expires=600, uses=1), [])
    assert tickets.live
    nonce = tickets.challenge(JOINER, ticket.id, b"theirs")
    role, limits, proof = await tickets.redeem(JOINER, ticket.id, ticket.proof("joiner", JOINER, nonce, b"theirs"))
    assert (role, limits) == (Role.OPERATOR, Limits(vms=2))
    assert proof == ticket.proof("inviter", JOINER, nonce, b"theirs")
    assert not tickets.live
    nonce = tickets.challenge(JOINER, ticket.id, b"theirs")
    with pytest.raises(Forbidden, match="used up"):
        await tickets.redeem(JOINER, ticket.id, ticket.proof("joiner", JOINER, nonce, b"theirs"))


async def test_a_proof_is_of_no_use_to_another_peer_nor_again() -> None:
    tickets = await book()
    ticket = await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=5), [])
    nonce = tickets.challenge(JOINER, ticket.id, b"n")
    proof = ticket.proof("joiner", JOINER, nonce, b"n")
    other = signer(10).peer_id
    tickets.challenge(other, ticket.id, b"n")
    with pytest.raises(Forbidden):
        await tickets.redeem(other, ticket.id, proof)
    await tickets.redeem(JOINER, ticket.id, proof)
    with pytest.raises(Forbidden):
        await tickets.redeem(JOINER, ticket.id, proof)
    tickets.challenge(JOINER, ticket.id, b"n")
    with pytest.raises(Forbidden):
        await tickets.redeem(JOINER, ticket.id, proof)


async def test_five_wrong_tries_burn_a_ticket_even_over_a_restart() -> None:
    store, clock = MemoryKeyValueStore(), Clock()
    tickets = await book(clock, store)
    ticket = await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1), [])
    for _ in range(5):
        assert tickets.live
        tickets.challenge(JOINER, ticket.id, b"n")
        with pytest.raises(Forbidden, match="not valid here"):
            await tickets.redeem(JOINER, ticket.id, b"wrong")
        tickets = await book(clock, store)
    assert not tickets.live
    nonce = tickets.challenge(JOINER, ticket.id, b"n")
    with pytest.raises(Forbidden, match="burnt"):
        await tickets.redeem(JOINER, ticket.id, ticket.proof("joiner", JOINER, nonce, b"n"))


async def test_a_ticket_expires_is_remembered_for_a_day_and_then_forgotten() -> None:
    clock, store = Clock(), MemoryKeyValueStore()
    tickets = await book(clock, store)
    ticket = await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1), [])
    clock.now += 601
    assert not tickets.live
    nonce = tickets.challenge(JOINER, ticket.id, b"n")
    with pytest.raises(Forbidden, match="expired"):
        await tickets.redeem(JOINER, ticket.id, ticket.proof("joiner", JOINER, nonce, b"n"))
    clock.now += 2 * DAY
    await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1), [])
    assert len(await store.load("ticket")) == 1


async def test_a_challenge_does_not_wait_for_ever() -> None:
    clock = Clock()
    tickets = await book(clock)
    ticket = await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1), [])
    nonce = tickets.challenge(JOINER, ticket.id, b"n")
    clock.now += 31
    with pytest.raises(Forbidden):
        await tickets.redeem(JOINER, ticket.id, ticket.proof("joiner", JOINER, nonce, b"n"))


async def test_a_revoked_peer_is_barred_from_the_tickets_made_before_also_after_a_restart() -> None:
    clock, store = Clock(), MemoryKeyValueStore()
    tickets = await book(clock, store)
    old = await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=5), [])
    await tickets.bar([JOINER])
    tickets = await book(clock, store)
    new = await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=5), [])
    for joiner, ticket, barred in ((JOINER, old, True), (signer(10).peer_id, old, False), (JOINER, new, False)):
        nonce = tickets.challenge(joiner, ticket.id, b"n")
        proof = ticket.proof("joiner", joiner, nonce, b"n")
        if barred:
            with pytest.raises(Forbidden, match="revoked since"):
                await tickets.redeem(joiner, ticket.id, proof)
        else:
            await tickets.redeem(joiner, ticket.id, proof)


async def test_only_so_many_tickets_are_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "MAX_TICKETS", 3)
    clock = Clock()
    tickets = await book(clock)
    for _ in range(3):
        await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1), [])
    with pytest.raises(Overloaded, match="3 tickets are out"):
        await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1), [])
    clock.now += 600 + DAY + 1
    await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1), [])


async def test_tickets_of_an_admin_leave_another_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets_module, "MAX_TICKETS", RESERVED_PART)
    tickets = await book(Clock())
    flood = Caller(principal="token:flood", role=Role.ADMIN)
    invite = InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1)
    for _ in range(RESERVED_PART):
        await tickets.make(invite, [], flood)
    with pytest.raises(Overloaded):
        await tickets.make(invite, [], flood)
    await tickets.make(invite, [])
    with pytest.raises(Overloaded):
        await tickets.make(invite, [])


async def test_only_so_many_strangers_are_challenged_at_once() -> None:
    """Those that name no ticket of ours get a nonce, and take nobody's place."""
    clock = Clock()
    tickets = await book(clock)
    known = (await tickets.make(InviteRequest(role=Role.VIEWER, limits=Limits(), expires=600, uses=1), [])).id
    for number in range(2 * MAX_NONCES):
        assert len(tickets.challenge(f"stranger-{number}", b"t", b"n")) == NONCE_SIZE
    for number in range(MAX_NONCES):
        tickets.challenge(f"peer-{number}", known, b"n")
    assert tickets.is_joining("peer-0")
    assert not tickets.is_joining("stranger-0")
    with pytest.raises(Overloaded, match="joining"):
        tickets.challenge("one-more", known, b"n")
    tickets.challenge("peer-0", known, b"n")
    clock.now += NONCE_LIFE + 1
    assert not tickets.is_joining("peer-0")
    tickets.challenge("one-more", known, b"n")

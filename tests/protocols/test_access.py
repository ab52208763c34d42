"""Who a caller is, here and at a peer: roles are only lowered, and a peer speaks for its own users alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinshare.protocols.access import LOCAL_ADMIN, Caller, Role, account_of
from twinshare.protocols.errors import InvalidRequest

PEER = Caller(principal="12D3KooWpeer", role=Role.OPERATOR, from_peer=True)


def test_a_peer_asks_for_its_own_user_or_for_one_of_its_principals() -> None:
    assert PEER.acting_for("", Role.ADMIN) == PEER
    assert PEER.acting_for("", Role.VIEWER).role is Role.VIEWER
    token = PEER.acting_for("token:ci", Role.OPERATOR)
    assert (token.principal, token.role, token.from_peer) == ("12D3KooWpeer/token:ci", Role.OPERATOR, True)


@given(st.text(max_size=300))
def test_whatever_a_peer_says_stays_below_its_own_name(delegate: str) -> None:
    try:
        caller = PEER.acting_for(delegate, Role.ADMIN)
    except InvalidRequest:
        return
    assert caller.role is Role.OPERATOR
    assert account_of(caller.principal) == PEER.principal
    assert caller.principal == PEER.principal or caller.principal.startswith(f"{PEER.principal}/")


@pytest.mark.parametrize("bad", ["x", "token:", ":x", "TOKEN:x", "token:a\nb", "token:\x00", "token:" + "x" * 233, "/"])
def test_what_is_no_name_of_a_principal_is_refused(bad: str) -> None:
    with pytest.raises(InvalidRequest):
        PEER.acting_for(bad, Role.ADMIN)


def test_a_token_changes_what_it_made_and_its_nodes_user_what_its_tokens_made() -> None:
    ci, other = PEER.acting_for("token:ci", Role.OPERATOR), PEER.acting_for("token:ci/x", Role.OPERATOR)
    assert ci.may_change(ci.principal)
    assert not ci.may_change(other.principal)
    assert not ci.may_change(PEER.principal)
    assert not other.may_change(ci.principal)
    assert PEER.may_change(ci.principal)
    assert not Caller(principal="12D3KooWother", role=Role.OPERATOR).may_change(ci.principal)
    assert not Caller(principal="token:ci", role=Role.OPERATOR).may_change(ci.principal)
    assert LOCAL_ADMIN.may_change(ci.principal)


def test_a_node_names_its_own_user_by_nothing() -> None:
    assert LOCAL_ADMIN.delegate == ""
    assert Caller(principal="token:ci", role=Role.VIEWER).delegate == "token:ci"


@pytest.mark.parametrize(
    ("principal", "account"),
    [("local", "local"), ("token:a", "token:a"), ("oidc:a/b", "oidc:a/b"), ("12D3", "12D3"), ("12D3/token:a", "12D3")],
)
def test_limits_count_for_the_account(principal: str, account: str) -> None:
    assert account_of(principal) == account

"""What tests of the images of a fleet ask for."""

from __future__ import annotations

import pytest

from tests.agent.remote import Remote, install
from tests.nodes.images import Sent
from twinshare.agent.images import peer_pull


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    """Nothing is at a registry, unless a test puts it there; a peer that fails is asked again soon."""
    monkeypatch.setattr(peer_pull, "PAUSE", 0.01)
    return install(monkeypatch)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(monkeypatch)

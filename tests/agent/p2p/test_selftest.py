"""A libp2p that lacks what we reach into is refused with its name, before anything is opened."""

from __future__ import annotations

import pytest

from twinshare.agent.p2p.libp2p import selftest
from twinshare.agent.p2p.libp2p.selftest import INSIDES, LibP2pChanged, check_libp2p


async def test_the_installed_version_has_everything() -> None:
    await check_libp2p()


@pytest.mark.parametrize(("path", "kind"), INSIDES)
async def test_what_is_missing_is_named(path: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    *before, last = path.split(".")
    monkeypatch.setattr(selftest, "INSIDES", ((".".join([*before, f"no_{last}"]), kind),))
    with pytest.raises(LibP2pChanged, match=rf"has no \w+\.no_{last}.*install libp2p 0\.8\.1"):
        await check_libp2p()


@pytest.mark.parametrize(("path", "kind"), INSIDES)
async def test_what_has_another_type_is_named(path: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "INSIDES", ((path, dict),))
    with pytest.raises(LibP2pChanged, match=f"{path} is {kind.__name__}, not dict"):
        await check_libp2p()

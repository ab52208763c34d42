"""What happens to a stream that a peer opens: agree on a protocol that it may speak, run the handler, clean up.

Nothing that a peer sends or a handler raises goes further than this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from ..host import Admission, Handler
from .multistream import NegotiationFailed, answer
from .yamux.stream import YamuxStream

log = structlog.get_logger(__name__)

_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(frozen=True, slots=True)
class Served:
    """`guests`: peers that are no members may open it too."""

    handler: Handler
    guests: bool


class Serving:
    """The protocols that we speak. `deadline`: seconds in which a peer must say which one it wants."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._served: dict[str, Served] = {}

    @property
    def protocols(self) -> list[str]:
        return list(self._served)

    def add(self, protocol: str, served: Served) -> None:
        self._served[protocol] = served

    def remove(self, protocol: str) -> None:
        self._served.pop(protocol, None)

    def find(self, protocol: str, admission: Admission) -> Handler | None:
        """Who answers a peer of that standing."""
        served = self._served.get(protocol)
        if served is None or admission is Admission.REFUSED:
            return None
        return served.handler if served.guests or admission is Admission.MEMBER else None

    async def take(self, stream: YamuxStream, admission: Callable[[], Admission]) -> None:
        """Carry the stream to its end; `admission` is asked when the peer names a protocol. Raises only Cancelled."""
        try:
            handler = await self._negotiate(stream, admission)
            if handler is not None:
                await handler(stream)
        except Exception as error:
            # A border: neither a peer's bytes nor a handler's bug may end the host.
            if not _only_broken(error):
                log.exception("a stream's handler failed", protocol=stream.protocol, peer=stream.peer_id)
            stream.reset()
        except BaseException:
            stream.reset()
            raise
        else:
            await stream.aclose()

    async def _negotiate(self, stream: YamuxStream, admission: Callable[[], Admission]) -> Handler | None:
        with trio.move_on_after(self._deadline):
            try:
                protocol, ahead = await answer(
                    stream.receive_some, stream.send_all, lambda name: self.find(name, admission()) is not None
                )
            except NegotiationFailed as error:
                log.debug("no agreement on a protocol", peer=stream.peer_id, reason=str(error))
            else:
                stream.agree(protocol, ahead)
                return self.find(protocol, admission())
        stream.reset()
        return None


def _only_broken(error: Exception) -> bool:
    """Whether the peer only left; a handler that has a nursery raises that in a group."""
    if isinstance(error, ExceptionGroup):
        return all(_only_broken(each) for each in error.exceptions)
    return isinstance(error, _BROKEN)

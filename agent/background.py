"""A nursery for what works behind a resource: it ends with the body, whose own error stays as it was raised."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background() -> AsyncIterator[trio.Nursery]:
    """Yield a nursery; when the body ends its tasks are cancelled.

    A plain nursery would wrap the body's error in an ExceptionGroup, and no caller could catch it by its class.
    A task that fails cancels the body, and its group of errors is raised: that is a bug in us.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - raised again below, as it is
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure

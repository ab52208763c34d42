"""What a node does at registries and other servers: one client for all of it, and no image fetched twice at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from ....protocols.image import Image
from ....protocols.reference import Reference
from ..parallel import Turns
from ..port import ImportRequest, Report, Requester
from ..settings import RegistrySettings
from ..store import DiskImageStore
from .client import RegistryClient, Repository, open_registry_client
from .fetch import pull_foreign, pull_url
from .http_client import Request
from .manifest import Kind, kind_of
from .pull import pull_chunks
from .push import push_image

_NOWHERE = "sha256:" + "0" * 64


class Remote:
    """Fetches into `store` and sends from it. Raises: RegistryFailed and InsufficientResources throughout."""

    def __init__(self, store: DiskImageStore, client: RegistryClient) -> None:
        self._store = store
        self._client = client
        self._turns = Turns()

    async def small_file(self, url: str, limit: int) -> bytes:
        _, content = await self._client.web.fetch(Request("GET", url), limit)
        return content

    async def pull_url(self, url: str, digest: tuple[str, str], request: ImportRequest) -> Image:
        """The disk at `url`, which must hash to the algorithm's `digest`. Raises: ImageNotFound."""
        request = _from(request, url, ":".join(digest))
        async with self._turns.take(request.origin.manifest):
            known = await self._known(request)
            client = self._client.reporting(request.report)
            return known or await pull_url(self._store, client, url, digest, request)

    async def pull_reference(self, reference: Reference, request: ImportRequest) -> Image:
        """The image of that name or digest at its registry. Raises: ImageNotFound, InvalidRequest if it is no disk."""
        repository = Repository.of(reference.registry, reference.name)
        client = self._client.acting_for(request.origin.requester).reporting(request.report)
        found = await client.manifest(repository, reference.digest or reference.tag)
        request = _from(request, str(reference), found.digest)
        async with self._turns.take(found.digest):
            known = await self._known(request)
            if known is not None:
                return known
            pull = pull_chunks if kind_of(found.manifest) is Kind.TWINSHARE else pull_foreign
            request = request.labelled(await client.labels(repository, found.manifest))
            return await pull(self._store, client, repository, found, request)

    async def push(self, image: Image, target: Reference, report: Report, requester: Requester) -> str:
        """Send an image; the digest of its manifest. Raises: ImageDamaged."""
        client = self._client.acting_for(requester, push=True).reporting(report)
        return await push_image(self._store, client, image, target, report)

    async def try_login(self, target: Reference, requester: Requester) -> None:
        """Ask for something that is not there, as one who may write."""
        client = self._client.acting_for(requester, push=True)
        await client.has_blob(Repository.of(target.registry, target.name), _NOWHERE)

    async def _known(self, request: ImportRequest) -> Image | None:
        """The image if it was fetched before, under its name from now on. Raises: Forbidden."""
        tags, origin = self._store.repository.tags, request.origin
        if digest := tags.of_manifest(origin.manifest):
            return await self._store.repository.rename(request.name, digest, origin)
        tags.require_movable(request.name, origin.caller)
        return None


def _from(request: ImportRequest, source: str, manifest: str) -> ImportRequest:
    return replace(request, origin=replace(request.origin, source=source, manifest=manifest))


@asynccontextmanager
async def open_remote(
    store: DiskImageStore,
    registries: Sequence[RegistrySettings],
    sleep: Callable[[float], Awaitable[None]],
    proxy: str,
) -> AsyncIterator[Remote]:
    """`sleep` waits between attempts."""
    async with open_registry_client(registries, sleep, proxy) as client:
        yield Remote(store, client)

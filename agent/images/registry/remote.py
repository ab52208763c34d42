"""What a node does at registries and other servers: one client for all of it, and no image fetched twice at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from ....protocols.image import Image
from ....protocols.reference import Reference
from ..parallel import Turns
from ..port import Report
from ..settings import RegistrySettings
from ..store import DiskImageStore, ImportRequest, Origin
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

    async def pull_url(
        self, url: str, digest: tuple[str, str], name: Reference, labels: Mapping[str, str], report: Report
    ) -> Image:
        """The disk at `url`, which must hash to the algorithm's `digest`. Raises: ImageNotFound."""
        origin = Origin(url, ":".join(digest), labels)
        async with self._turns.take(origin.manifest):
            known = await self._known(origin.manifest, name)
            request = ImportRequest(name, origin, report)
            return known or await pull_url(self._store, self._client, url, digest, request)

    async def pull_reference(
        self, reference: Reference, name: Reference, labels: Mapping[str, str], report: Report
    ) -> Image:
        """The image of that name or digest at its registry. Raises: ImageNotFound, InvalidRequest if it is no disk."""
        repository = Repository.of(reference.registry, reference.name)
        found = await self._client.manifest(repository, reference.digest or reference.tag)
        origin = Origin(str(reference), found.digest, labels)
        async with self._turns.take(found.digest):
            known = await self._known(found.digest, name)
            if known is not None:
                return known
            pull = pull_chunks if kind_of(found.manifest) is Kind.TWINSHARE else pull_foreign
            return await pull(self._store, self._client, repository, found, ImportRequest(name, origin, report))

    async def push(self, image: Image, target: Reference, report: Report) -> str:
        """Send an image; the digest of its manifest. Raises: ImageDamaged."""
        return await push_image(self._store, self._client, image, target, report)

    async def try_login(self, target: Reference) -> None:
        """Ask for something that is not there, as one who may write."""
        await self._client.has_blob(Repository.of(target.registry, target.name), _NOWHERE)

    async def _known(self, manifest: str, name: Reference) -> Image | None:
        """The image if it was fetched before, under its name from now on."""
        digest = self._store.repository.tags.of_manifest(manifest)
        return await self._store.repository.rename(name, digest, manifest, replace=True) if digest else None


@asynccontextmanager
async def open_remote(
    store: DiskImageStore, registries: Sequence[RegistrySettings], sleep: Callable[[float], Awaitable[None]]
) -> AsyncIterator[Remote]:
    """`sleep` waits between attempts."""
    async with open_registry_client(registries, sleep) as client:
        yield Remote(store, client)

"""Speaks OCI distribution 1.1: manifests and blobs of repositories, read and written. Every byte is checked."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import httpx
import structlog
import trio

from ....protocols.errors import ImageNotFound, RegistryFailed
from ..port import Report, Requester
from ..settings import RegistrySettings
from .auth import DOCKER_HUB, registry_host
from .http_client import Body, HttpClient, Request
from .http_policy import PassingError
from .manifest import (
    ACCEPT,
    CONFIG,
    DOCKER_CONFIG,
    HOST_ARCHITECTURE,
    MACHINES,
    MAX_CONFIG,
    MAX_MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
    choose_platform,
    decode_manifest,
    labels_of,
    sha256,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Repository:
    """One name at one registry."""

    host: str
    name: str

    @classmethod
    def of(cls, registry: str, name: str) -> Repository:
        host = registry_host(registry)
        return cls(host, f"library/{name}" if host == DOCKER_HUB and "/" not in name else name)


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest and the digest that it has."""

    digest: str
    manifest: Manifest


class RegistryClient:
    """Made by `open_registry_client`."""

    def __init__(self, web: HttpClient) -> None:
        self.web = web

    def acting_for(self, requester: Requester, *, push: bool = False) -> RegistryClient:
        """Return this client with the logins that serve the requester."""
        return RegistryClient(self.web.acting_for(requester, push=push))

    def reporting(self, report: Report) -> RegistryClient:
        """Return this client for an operation, whose progress says why it has to wait."""
        return RegistryClient(self.web.reporting(report))

    async def manifest(self, repository: Repository, reference: str, architecture: str = HOST_ARCHITECTURE) -> Found:
        """The manifest of a tag or digest; of an image for several machines the one for `architecture`.

        Raises: ImageNotFound, RegistryFailed, InvalidRequest where there is none for this architecture.
        """
        wanted = reference
        for _ in range(2):
            response, body = await self.web.fetch(
                Request("GET", self._url(repository, "manifests", wanted), {"accept": ACCEPT}, _pull(repository)),
                MAX_MANIFEST,
            )
            digest = sha256(body)
            for expected in (wanted if ":" in wanted else "", response.headers.get("docker-content-digest", "")):
                if expected.startswith("sha256:") and expected != digest:
                    raise RegistryFailed(f"{repository.host} answers with another manifest than {expected}")
            found = decode_manifest(body, response.headers.get("content-type", ""))
            if isinstance(found, Manifest):
                return Found(digest, found)
            wanted = choose_platform(found, architecture).digest
        raise RegistryFailed(f"{repository.host} has a list of lists of manifests")

    async def labels(self, repository: Repository, manifest: Manifest) -> dict[str, str]:
        """What the image's configuration says of it. Raises: ImageNotFound, RegistryFailed."""
        if manifest.config.media_type not in {CONFIG, DOCKER_CONFIG}:
            return {}
        config = ImageConfig.decode(await self.blob(repository, manifest.config, MAX_CONFIG))
        # An image for this machine need not say so; for another one it is refused by what makes a VM of it.
        foreign = config.architecture not in {"", HOST_ARCHITECTURE}
        machine = MACHINES.get(config.architecture, config.architecture)
        return labels_of(config) | ({"architecture": machine[:64]} if foreign else {})

    async def blob(self, repository: Repository, blob: Descriptor, limit: int) -> bytes:
        """A small blob, whole and checked. Raises: ImageNotFound, RegistryFailed."""
        if blob.size > limit:
            raise RegistryFailed(f"the image has a part of {blob.size} bytes where at most {limit} are expected")
        body = bytearray()
        async with aclosing(self.read(repository, blob)) as parts:
            async for data in parts:
                body += data
        return bytes(body)

    async def read(self, repository: Repository, blob: Descriptor) -> AsyncGenerator[bytes, None]:
        """A whole blob, as it comes; its digest is checked at its end, and an error then spoils all that was read.

        Raises: ImageNotFound, RegistryFailed.
        """
        hashed = hashlib.sha256()
        async with aclosing(self.range(repository, blob, 0, blob.size)) as parts:
            async for data in parts:
                hashed.update(data)
                yield data
        if f"sha256:{hashed.hexdigest()}" != blob.digest:
            raise RegistryFailed(f"{repository.host} sends other bytes than {blob.digest} stands for")

    def range(self, repository: Repository, blob: Descriptor, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Some bytes of a blob, unchecked: whoever asks for a part knows what it should be."""
        url = self._url(repository, "blobs", blob.digest)
        return self.web.stream(url, start, end, scope=_pull(repository))

    async def has_blob(self, repository: Repository, digest: str) -> bool:
        request = Request("HEAD", self._url(repository, "blobs", digest), scope=_push(repository))
        try:
            await self.web.fetch(request)
        except ImageNotFound:
            return False
        return True

    async def put_blob(
        self, repository: Repository, digest: str, size: int, content: Body, mount_from: Sequence[str] = ()
    ) -> bool:
        """Write a blob unless it is there already; False when nothing had to be sent.

        `content` is called for each attempt. `mount_from` names repositories of the same registry that may have it.
        Raises: RegistryFailed.
        """
        if await self.has_blob(repository, digest):
            return False
        for name in mount_from:
            if name != repository.name and await self._mount(repository, digest, name):
                return False

        async def attempt() -> None:
            location = await self._begin_upload(repository, "")
            headers = {"content-type": "application/octet-stream", "content-length": str(size)}
            url = str(httpx.URL(location).copy_add_param("digest", digest))
            led = httpx.URL(location).netloc.decode() != repository.host
            request = Request("PUT", url, headers, _push(repository), content, led=led)
            try:
                async with self.web.open(request) as response:
                    if response.status_code not in {201, 204}:
                        raise PassingError(f"{repository.host} answers {response.status_code} to an upload")
            except ImageNotFound:  # it has restarted since the upload was begun
                raise PassingError(f"{repository.host} knows nothing of an upload that it let begin") from None

        await self.web.policy.run(attempt)
        return True

    async def put_manifest(self, repository: Repository, reference: str, manifest: Manifest) -> str:
        """Write a manifest under a tag; its digest. Raises: RegistryFailed."""
        body = manifest.encode()
        headers = {"content-type": manifest.media_type, "content-length": str(len(body))}
        url = self._url(repository, "manifests", reference)
        response, _ = await self.web.fetch(Request("PUT", url, headers, _push(repository), once(body)))
        digest = sha256(body)
        if response.headers.get("docker-content-digest", digest) != digest:
            raise RegistryFailed(f"{repository.host} keeps another manifest than it was sent")
        return digest

    async def _mount(self, repository: Repository, digest: str, name: str) -> bool:
        """Whether the registry took the blob over from another repository: a help, never a reason to fail."""
        try:
            return await self._begin_upload(repository, f"?mount={digest}&from={name}") == ""
        except (RegistryFailed, ImageNotFound, PassingError) as error:
            log.info("a registry mounts no blob", registry=repository.host, source=name, why=str(error))
            return False

    async def _begin_upload(self, repository: Repository, query: str) -> str:
        """The place to send a blob to; empty when the registry had it mounted."""
        url = f"{self.web.base(repository.host)}/v2/{repository.name}/blobs/uploads/{query}"
        request = Request("POST", url, {"content-length": "0"}, _push(repository))
        async with self.web.open(request) as response:
            if response.status_code == 201 and query:
                return ""
            location = response.headers.get("location", "")
            if response.status_code != 202 or not location:
                raise RegistryFailed(f"{repository.host} does not say where to send a blob")
            return self.web.joined(str(response.url), location)

    def _url(self, repository: Repository, kind: str, reference: str) -> str:
        return f"{self.web.base(repository.host)}/v2/{repository.name}/{kind}/{reference}"


def once(body: bytes) -> Body:
    """A body that is in memory."""

    async def parts() -> AsyncIterator[bytes]:
        yield body

    return parts


def _pull(repository: Repository) -> str:
    return f"repository:{repository.name}:pull"


def _push(repository: Repository) -> str:
    return f"repository:{repository.name}:pull,push"


@asynccontextmanager
async def open_registry_client(
    settings: Sequence[RegistrySettings] = (),
    sleep: Callable[[float], Awaitable[None]] = trio.sleep,
    proxy: str = "",
) -> AsyncIterator[RegistryClient]:
    """A client that knows these registries from the configuration; `sleep` waits between attempts.

    `proxy` is as `ProxyRules.read` has it.
    """
    web = HttpClient(settings, sleep, proxy)
    try:
        yield RegistryClient(web)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(5):
            await web.close()

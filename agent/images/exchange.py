"""Images from elsewhere and to elsewhere: finds out what a name means, and fetches or sends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from ...protocols.errors import ImageDamaged, ImageNotFound, InvalidRequest
from ...protocols.image import CatalogueEntry, Image, Pushed
from ...protocols.reference import DEFAULT_TAG, LOCAL, Reference, parse_reference
from .catalogue import MAX_SUMS, OWN_CATALOGUE, Catalogue, Entry, find_sum, load_catalogue
from .port import NODE, ImportRequest, Origin, Report, Requester
from .settings import RegistrySettings
from .store import DiskImageStore
from .tag_index import parse_new_name

if TYPE_CHECKING:
    from .registry.remote import Remote


class DiskImageExchange:
    """`ImageExchange` between the store on disk and registries. `default` is `registry/org` for names without one.

    `open_remote` gives the way out, opened when it is first needed: a node that fetches nothing loads no client.
    """

    def __init__(
        self, store: DiskImageStore, catalogue: Catalogue, default: str, open_remote: Callable[[], Awaitable[Remote]]
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._default = default
        self._remote = open_remote

    async def find_image(self, ref: str) -> Image:
        """The local image that `ref` means: of that name, or of that name at the default registry."""
        try:
            return await self._store.get_image(ref)
        except ImageNotFound:
            reference = parse_reference(ref)
            if self._default and reference.registry == LOCAL and reference.name:
                with suppress(ImageNotFound):
                    return await self._store.get_image(f"{self._default}/{reference}")
            raise

    def catalogue(self) -> Sequence[CatalogueEntry]:
        return [
            CatalogueEntry(
                name=name.name if name.tag == DEFAULT_TAG else str(name),
                source=target.url or target.image,
                user=target.user,
                about=entry.about or target.about,
            )
            for name, entry in self._catalogue.entries.items()
            for target in [self._catalogue.target(entry)]
        ]

    def _entry(self, reference: Reference) -> Entry | None:
        """What the catalogue says of a name; an alias of it gives way to the default registry, which may have it."""
        entry = self._catalogue.find(reference)
        if entry is None or (entry.alias and self._default):
            return None
        return self._catalogue.target(entry)

    def knows(self, ref: str) -> bool:
        """Whether a pull would know where to look for `ref`."""
        reference = parse_reference(ref)
        return bool(reference.name) and (
            reference.registry != LOCAL or self._entry(reference) is not None or bool(self._default)
        )

    async def pull_image(
        self,
        ref: str,
        *,
        report: Report,
        name: str = "",
        sha256: str = "",
        requester: Requester = NODE,
        raw: bool = False,
    ) -> Image:
        if ref.startswith(("https://", "http://")):
            return await self._pull_url(ref, sha256, name, _by(requester, raw=raw), report)
        if sha256:
            raise InvalidRequest(
                "sha256 is for a disk by https; a registry's image is named with @sha256:…", path="sha256"
            )
        reference = parse_reference(ref)
        entry = self._entry(reference)
        if entry is not None:
            local = parse_new_name(name) if name else reference
            return await self._pull_entry(entry, ImportRequest(local, _by(requester, raw=raw), report))
        if reference.is_digest or (reference.registry == LOCAL and not self._default):
            raise ImageNotFound(f"'{ref}' is not in the fleet or the catalogue; name a registry: registry/name:tag")
        if reference.registry == LOCAL:
            reference = parse_reference(f"{self._default}/{reference}")
        local = parse_new_name(name) if name else _without_digest(reference)
        return await (await self._remote()).pull_reference(
            reference, ImportRequest(local, _by(requester, raw=raw), report)
        )

    async def push_image(
        self, ref: str, target: str, *, report: Report, dry_run: bool = False, requester: Requester = NODE
    ) -> Pushed:
        image = await self.find_image(ref)
        if image.damaged:
            raise ImageDamaged(f"the disk of the image '{ref}' is damaged; pull or import it anew, or remove it")
        where = parse_new_name(target)
        if where.registry == LOCAL:
            raise InvalidRequest(f"'{target}' names no registry; name one: registry/name:tag", path="target")
        remote = await self._remote()
        if dry_run:
            await remote.try_login(where, requester)
            return Pushed(image=image, target=str(where))
        manifest = await remote.push(image, where, report, requester)
        if image.name:
            own = Reference(registry=image.registry, name=image.name, tag=image.tag)
            image = (
                await self._store.repository.rename(own, image.digest, Origin("push", manifest, requester=requester))
                or image
            )
        return Pushed(image=image, target=str(where), manifest=manifest)

    async def _pull_entry(self, entry: Entry, request: ImportRequest) -> Image:
        remote, request = await self._remote(), request.labelled({"user": entry.user} if entry.user else {})
        if not entry.url:
            return await remote.pull_reference(parse_reference(entry.image), request)
        digest = entry.digest or find_sum(await remote.small_file(str(entry.sums), MAX_SUMS), entry.url)
        return await remote.pull_url(entry.url, digest, request)

    async def _pull_url(self, url: str, sha256: str, name: str, origin: Origin, report: Report) -> Image:
        if not url.startswith("https://"):
            raise InvalidRequest("a disk is fetched by https only", path="image")
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise InvalidRequest("a disk by https needs its sha256, 64 hexadecimal digits", path="sha256")
        parts = urlsplit(url)
        if not parts.hostname or "@" in parts.netloc or any(c.isspace() or not c.isprintable() for c in url):
            raise InvalidRequest("this is not an address that a disk can be fetched from", path="image")
        local = parse_new_name(name or PurePosixPath(parts.path).name.partition(".")[0].lower())
        return await (await self._remote()).pull_url(url, ("sha256", sha256), ImportRequest(local, origin, report))


def _by(requester: Requester, *, raw: bool) -> Origin:
    """The origin of what is fetched for `requester`; the registry's side fills in the rest."""
    return Origin(requester=requester, raw=raw)


def _without_digest(reference: Reference) -> Reference:
    """What an image that was asked for by digest is called here."""
    tag = reference.tag or reference.digest.partition(":")[2][:12]
    return Reference(registry=reference.registry, name=reference.name, tag=tag)


@asynccontextmanager
async def open_image_exchange(
    store: DiskImageStore,
    *,
    registries: Sequence[RegistrySettings] = (),
    catalogues: Sequence[Path] = (),
    default: str = "",
    sleep: Callable[[float], Awaitable[None]] = trio.sleep,
    proxy: str = "",
) -> AsyncIterator[DiskImageExchange]:
    """Open the way out for `store`. `catalogues` are files over our own; `default` is `registry/org` for short names.

    `proxy` is an address, `direct` for none, or empty for the environment's.

    Raises: CatalogueError.
    """
    catalogue = await trio.to_thread.run_sync(load_catalogue, OWN_CATALOGUE, *catalogues)
    async with AsyncExitStack() as stack:
        opening = trio.Lock()
        opened: list[Remote] = []

        async def way_out() -> Remote:
            async with opening:
                if not opened:
                    open_remote = await trio.to_thread.run_sync(_load)
                    opened.append(await stack.enter_async_context(open_remote(store, registries, sleep, proxy)))
            return opened[0]

        yield DiskImageExchange(store, catalogue, default, way_out)


def _load() -> Callable[..., AbstractAsyncContextManager[Remote]]:
    from .registry.remote import open_remote

    return open_remote

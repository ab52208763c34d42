"""Images from elsewhere and to elsewhere: finds out what a name means, and fetches or sends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import trio

from ...protocols.errors import ImageNotFound, InvalidRequest
from ...protocols.image import Image, Pushed
from ...protocols.reference import LOCAL, Reference, parse_reference
from .catalogue import MAX_SUMS, OWN_CATALOGUE, Catalogue, Entry, find_sum, load_catalogue
from .parallel import Turns
from .port import Report
from .registry.client import RegistryClient, Repository, open_registry_client
from .registry.fetch import pull_foreign, pull_url
from .registry.manifest import Kind, kind_of
from .registry.pull import pull_chunks
from .registry.push import push_image
from .registry.reach import RegistrySettings
from .registry.web import Request
from .shelf import parse_new_name
from .store import DiskImageStore, Origin


class DiskImageExchange:
    """`ImageExchange` between the store on disk and registries. `default` is `registry/org` for names without one."""

    def __init__(self, store: DiskImageStore, client: RegistryClient, catalogue: Catalogue, default: str) -> None:
        self._store = store
        self._client = client
        self._catalogue = catalogue
        self._default = default
        self._turns = Turns()

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

    def knows(self, ref: str) -> bool:
        """Whether a pull would know where to look for `ref`."""
        reference = parse_reference(ref)
        return bool(reference.name) and (
            reference.registry != LOCAL or self._catalogue.find(reference) is not None or bool(self._default)
        )

    async def pull_image(self, ref: str, *, report: Report, name: str = "", sha256: str = "") -> Image:
        if ref.startswith(("https://", "http://")):
            return await self._pull_url(ref, name, sha256, report)
        if sha256:
            raise InvalidRequest(
                "sha256 is for a disk by https; a registry's image is named with @sha256:…", path="sha256"
            )
        reference = parse_reference(ref)
        entry = self._catalogue.find(reference)
        if entry is not None:
            local = parse_new_name(name) if name else reference
            return await self._pull_entry(entry, local, report)
        if reference.is_digest or (reference.registry == LOCAL and not self._default):
            raise ImageNotFound(f"'{ref}' is neither in the catalogue nor at a registry; name one: registry/name:tag")
        if reference.registry == LOCAL:
            reference = parse_reference(f"{self._default}/{reference}")
        local = parse_new_name(name) if name else _without_digest(reference)
        return await self._pull_reference(reference, local, {}, report)

    async def push_image(self, ref: str, target: str, *, report: Report, dry_run: bool = False) -> Pushed:
        image = await self.find_image(ref)
        where = parse_new_name(target)
        if where.registry == LOCAL:
            raise InvalidRequest(f"'{target}' names no registry; name one: registry/name:tag", path="target")
        if dry_run:
            repository = Repository.of(where.registry, where.name)
            await self._client.has_blob(repository, "sha256:" + "0" * 64)
            return Pushed(image=image, target=str(where))
        manifest = await push_image(self._store, self._client, image, where, report)
        if image.name:
            own = Reference(registry=image.registry, name=image.name, tag=image.tag)
            image = await self._store.bases.rename(own, image.digest, manifest, replace=True) or image
        return Pushed(image=image, target=str(where), manifest=manifest)

    async def _pull_entry(self, entry: Entry, name: Reference, report: Report) -> Image:
        labels = {"user": entry.user} if entry.user else {}
        if not entry.url:
            return await self._pull_reference(parse_reference(entry.image), name, labels, report)
        digest = entry.digest
        if digest is None:
            _, sums = await self._client.web.fetch(Request("GET", str(entry.sums)), MAX_SUMS)
            digest = find_sum(sums, entry.url)
        return await self._take_url(entry.url, digest, name, labels, report)

    async def _pull_url(self, url: str, name: str, sha256: str, report: Report) -> Image:
        if not url.startswith("https://"):
            raise InvalidRequest("a disk is fetched by https only", path="image")
        if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
            raise InvalidRequest("a disk by https needs its sha256, 64 hexadecimal digits", path="sha256")
        parts = urlsplit(url)
        if not parts.hostname or "@" in parts.netloc or any(c.isspace() or not c.isprintable() for c in url):
            raise InvalidRequest("this is not an address that a disk can be fetched from", path="image")
        local = parse_new_name(name or PurePosixPath(parts.path).name.partition(".")[0].lower())
        return await self._take_url(url, ("sha256", sha256), local, {}, report)

    async def _take_url(
        self, url: str, digest: tuple[str, str], name: Reference, labels: dict[str, str], report: Report
    ) -> Image:
        origin = Origin(url, ":".join(digest), labels)
        async with self._turns.take(origin.manifest):
            known = await self._known(origin.manifest, name)
            return known or await pull_url(self._store, self._client, url, digest, name, origin, report, replace=True)

    async def _pull_reference(
        self, reference: Reference, name: Reference, labels: dict[str, str], report: Report
    ) -> Image:
        repository = Repository.of(reference.registry, reference.name)
        found = await self._client.manifest(repository, reference.digest or reference.tag)
        origin = Origin(str(reference), found.digest, labels)
        async with self._turns.take(found.digest):
            known = await self._known(found.digest, name)
            if known is not None:
                return known
            own = kind_of(found.manifest) is Kind.TWINSHARE
            pull = pull_chunks if own else pull_foreign
            return await pull(self._store, self._client, repository, found, name, origin, report, replace=True)

    async def _known(self, manifest: str, name: Reference) -> Image | None:
        """The image if it was fetched before, under its name from now on."""
        digest = self._store.bases.shelf.of_manifest(manifest)
        return await self._store.bases.rename(name, digest, manifest, replace=True) if digest else None


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
) -> AsyncIterator[DiskImageExchange]:
    """Open the way out for `store`. `catalogues` are files over our own; `default` is `registry/org` for short names.

    Raises: CatalogueError.
    """
    catalogue = await trio.to_thread.run_sync(load_catalogue, OWN_CATALOGUE, *catalogues)
    async with open_registry_client(registries, sleep) as client:
        yield DiskImageExchange(store, client, catalogue, default)

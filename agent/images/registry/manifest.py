"""OCI manifests: the types, what is accepted of a registry's answer, and which kind of disk image one describes."""

from __future__ import annotations

import hashlib
import platform
import re
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from ....protocols.bounded.json import check_json
from ....protocols.errors import InvalidRequest, RegistryFailed

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Linux's names of the architectures by those of OCI, where they differ."""
HOST_ARCHITECTURE = {machine: oci for oci, machine in MACHINES.items()}.get(platform.machine(), platform.machine())
MAX_MANIFEST = 4 << 20
MAX_CONFIG = 1 << 20
MAX_LABELS = 64
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = f"{MANIFEST}, {INDEX}, {DOCKER_MANIFEST}, {DOCKER_LIST}"

CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
ARTIFACT = "application/vnd.twinshare.vm.v1"
INDEX_LAYER = "application/vnd.twinshare.disk.index.v1+zstd"
PACK_LAYER = "application/vnd.twinshare.disk.pack.v1+zstd"
TITLE = "org.opencontainers.image.title"
CREATED = "org.opencontainers.image.created"
DIGEST_LABEL = "twinshare.disk.digest"
SIZE_LABEL = "twinshare.disk.size"

_MEDA_CHUNK = "application/vnd.cirunlabs.meda.base-image-chunk.v1"
_MEDA_WHOLE = "application/vnd.cirunlabs.meda.base-image.v1"
_MEDA_TITLE = re.compile(r".*\.chunk\.([0-9]{1,9})")
_LUME_DISK = "application/vnd.trycua.lume.disk.v1"
_LUME_NUMBER = "org.trycua.lume.part.number"
_LUME_OFFSET = "org.trycua.lume.part.offset"
_TAR = re.compile(r"application/vnd\.(oci\.image\.layer\.v1\.tar|docker\.image\.rootfs\.diff\.tar)([.+](gzip|zstd))?")

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
Size = Annotated[int, Meta(ge=0, le=1 << 44)]


_KINDS = {INDEX, DOCKER_LIST, MANIFEST, DOCKER_MANIFEST}


class Platform(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    architecture: str = ""
    os: str = ""


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What a manifest says of a blob."""

    media_type: str
    digest: Digest
    size: Size
    annotations: dict[str, str] = {}
    artifact_type: str = ""
    platform: Platform | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    schema_version: int = 2
    media_type: str = MANIFEST
    artifact_type: str = ""
    config: Descriptor
    layers: Annotated[list[Descriptor], Meta(max_length=4096)]
    annotations: dict[str, str] = {}

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


class ManifestList(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """An image index: one manifest for each platform."""

    manifests: Annotated[list[Descriptor], Meta(max_length=4096)]
    media_type: str = INDEX


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The part of an image's configuration that is read and written here; tools show it."""

    class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
        labels: dict[str, str] = msgspec.field(default_factory=dict, name="Labels")

    class RootFs(msgspec.Struct, frozen=True, kw_only=True):
        type: str = "layers"
        diff_ids: list[str] = []

    architecture: str = HOST_ARCHITECTURE
    os: str = "linux"
    created: str = ""
    config: Config = Config()
    rootfs: RootFs = RootFs()

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> ImageConfig:
        """Raises: RegistryFailed."""
        return _decode(data, cls)


class Kind(StrEnum):
    """How a manifest's layers hold a disk."""

    TWINSHARE = "twinshare"
    MEDA = "meda"
    LUME = "lume"
    CONTAINER_DISK = "containerdisk"


def labels_of(config: ImageConfig) -> dict[str, str]:
    """The labels that an image keeps of those in its configuration: small ones, and not what is found out anew."""
    own = {DIGEST_LABEL, SIZE_LABEL}
    kept = [(key, text) for key, text in config.config.labels.items() if key not in own and len(key) + len(text) <= 512]
    return dict(kept[:MAX_LABELS])


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def decode_manifest(data: bytes, content_type: str) -> Manifest | ManifestList:
    """Read what a registry answered. Raises: RegistryFailed."""
    head = _decode(data, _Head)
    named = content_type.partition(";")[0].strip().lower()
    # A general type such as application/json contradicts nothing: the digest vouches for the body.
    named = named if named in _KINDS else ""
    if head.media_type and named and head.media_type != named:
        raise RegistryFailed(f"the registry says {content_type} of a manifest that says {head.media_type}")
    kind = head.media_type or named or (INDEX if head.manifests else MANIFEST if head.layers else content_type)
    if kind in {INDEX, DOCKER_LIST}:
        return _decode(data, ManifestList)
    if kind in {MANIFEST, DOCKER_MANIFEST}:
        return _decode(data, Manifest)
    raise RegistryFailed(f"the registry answered with '{kind[:100]}', which is no manifest of an image")


class _Head(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    media_type: str = ""
    manifests: list[Any] = []
    layers: list[Any] = []


Wire = TypeVar("Wire", bound=msgspec.Struct)


def _decode(data: bytes, kind: type[Wire]) -> Wire:
    try:
        check_json(data)
        return msgspec.convert(_without_nulls(msgspec.json.decode(data)), type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RegistryFailed(f"the registry's manifest cannot be read: {str(error)[:200]}") from None


def _without_nulls(value: Any) -> Any:
    """Drop the members that are null: writers in Go put null for what is absent."""
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    return [_without_nulls(member) for member in value] if isinstance(value, list) else value


def choose_platform(manifests: ManifestList, architecture: str) -> Descriptor:
    """The manifest for this machine in a list of several. Raises: InvalidRequest when there is none."""
    entries = manifests.manifests
    fits = [
        one
        for one in entries
        if one.platform and (one.platform.architecture, one.platform.os) == (architecture, "linux")
    ]
    # One that names no platform may be the image, or a list of its parts beside it (SBOM, signature).
    unnamed = [one for one in entries if one.platform is None and not one.artifact_type]
    if not fits and not unnamed:
        raise InvalidRequest(f"the image has no version for {architecture}")
    return (fits or unnamed)[0]


def kind_of(manifest: Manifest) -> Kind:
    """Raises: InvalidRequest for what is not a disk image."""
    types = [layer.media_type for layer in manifest.layers]
    if INDEX_LAYER in types:
        return Kind.TWINSHARE
    if _MEDA_CHUNK in types or _MEDA_WHOLE in types:
        return Kind.MEDA
    if _LUME_DISK in types:
        return Kind.LUME
    if types and all(_TAR.fullmatch(kind) for kind in types):
        return Kind.CONTAINER_DISK
    raise InvalidRequest("this is not the image of a virtual machine in any form that is known here")


def twinshare_layers(manifest: Manifest) -> tuple[Descriptor, list[Descriptor]]:
    """The index layer and the packs in order. Raises: RegistryFailed."""
    index, *packs = manifest.layers
    if index.media_type != INDEX_LAYER or any(pack.media_type != PACK_LAYER for pack in packs):
        raise RegistryFailed("the image's layers are not an index and packs")
    return index, packs


def meda_layers(manifest: Manifest) -> list[Descriptor]:
    """The layers whose bytes in this order are the raw disk. Titles say the order alone. Raises: RegistryFailed."""
    parts = [layer for layer in manifest.layers if layer.media_type == _MEDA_CHUNK]
    if not parts:
        return [layer for layer in manifest.layers if layer.media_type == _MEDA_WHOLE][:1]
    numbers = [_MEDA_TITLE.fullmatch(layer.annotations.get(TITLE, "")) for layer in parts]
    found = {int(match[1]): layer for match, layer in zip(numbers, parts, strict=True) if match}
    if sorted(found) != list(range(len(parts))):
        raise RegistryFailed("the image's parts are not numbered one after another")
    return [found[number] for number in sorted(found)]


def lume_layers(manifest: Manifest) -> list[tuple[int, Descriptor]]:
    """The compressed parts of the disk and where each begins, in order. Raises: RegistryFailed."""
    parts = [layer for layer in manifest.layers if layer.media_type == _LUME_DISK]
    try:
        found = sorted(
            (int(part.annotations[_LUME_NUMBER]), int(part.annotations[_LUME_OFFSET]), part.digest, part)
            for part in parts
        )
    except (KeyError, ValueError):
        raise RegistryFailed("the image's parts do not say where they belong") from None
    offsets = [offset for _, offset, _, _ in found]
    if offsets != sorted(offsets) or (offsets and offsets[0] < 0):
        raise RegistryFailed("the image's parts are out of order")
    return [(offset, part) for _, offset, _, part in found]

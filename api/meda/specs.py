"""From what Meda's clients ask to what a VM is made of: names of images, sizes, user data."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

import trio

from ...protocols.errors import InvalidRequest
from ...protocols.reference import LOCAL, parse_reference, vm_name_after
from ...protocols.size import GIB, MIB, exact_size, parse_size
from ...protocols.user_data import content_type
from ...protocols.vm import CloudInit, VmSpec
from .bodies import ImageRun, VmCreate

# What Meda gives a VM of which nothing is said.
MEMORY, CPUS, DISK = "1G", 2, "10G"
# Where Meda looks for an image when it is given only half of the place.
REGISTRY, ORG = "ghcr.io", "cirunlabs"
_LEAST_MEMORY, _MOST_MEMORY = 64 * MIB, (1 << 30) * MIB
_MOST_DISK = (1 << 20) * GIB
_MAX_USER_DATA = 65536


def image_ref(image: str, registry: str | None, org: str | None) -> str:
    """Return the whole name of an image that is given in parts; a part that the name has itself stands.

    Raises: InvalidRequest.
    """
    if registry is None and org is None:
        return image
    if parse_reference(image).registry != LOCAL:
        return image
    host = registry or REGISTRY
    owner = org or (ORG if host == REGISTRY else "")
    place = f"{host}/{owner}" if owner and "/" not in image else host
    parse_reference(f"{place}/{image}")
    return f"{place}/{image}"


def tagged(name: str, tag: str) -> str:
    """A name with its tag. Raises: InvalidRequest when the name has one itself, or either is wrong."""
    reference = parse_reference(f"{name}:{tag}")
    if reference.tag != tag or reference.digest:
        raise InvalidRequest("name: give the tag in its own field", path="name")
    return f"{name}:{tag}"


def name_after(image: str, key: str | None) -> str:
    """A name for a VM of which none is given; the same for the same idempotency key."""
    return vm_name_after(image, hashlib.sha256(key.encode()).hexdigest()[:6] if key else secrets.token_hex(3))


def push_target(image: str, registry: str | None) -> str:
    """The whole name that an image is to have at a registry. Raises: InvalidRequest."""
    if registry is None:
        return image
    parse_reference(f"{registry}/x")
    return image if parse_reference(image).registry != LOCAL else f"{registry}/{image}"


def vm_spec(
    request: VmCreate | ImageRun, name: str, image: str, image_size: int, user_data: str, start: bool
) -> VmSpec:
    """`image_size` in bytes is the least that a disk of unsaid size will have. Raises: InvalidRequest."""
    memory = _amount(request.memory or MEMORY, "memory", _LEAST_MEMORY, _MOST_MEMORY)
    disk = _amount(request.disk, "disk", 1, _MOST_DISK) if request.disk else max(parse_size(DISK), image_size)
    return VmSpec(
        name=name,
        image=image,
        cpu_cores=request.cpus or CPUS,
        memory=-(-memory // MIB),
        disk_size=-(-disk // GIB),
        cloud_init=_cloud_init(user_data) if user_data else None,
        start=start,
    )


def _cloud_init(user_data: str) -> CloudInit:
    try:
        return CloudInit(user_data=user_data)
    except ValueError as error:
        raise InvalidRequest(f"user_data: {error}", path="user_data") from None


def _amount(text: str, field: str, least: int, most: int) -> int:
    try:
        amount = parse_size(text)
    except ValueError as error:
        raise InvalidRequest(f"{field}: {error}", path=field) from None
    if not least <= amount <= most:
        bound = f"at least {exact_size(least)}" if amount < least and least > 1 else f"at most {exact_size(most)}"
        raise InvalidRequest(f"{field}: '{text}' cannot be given; ask for {bound}", path=field)
    return amount


async def read_user_data(text: str | None, allowed: str) -> str:
    """The content that `text` is or, below the directory `allowed`, names. Raises: InvalidRequest."""
    if not text or content_type(text) is not None:
        return text or ""
    if not allowed:
        raise _wrong(
            "give the content, in a form of cloud-init ('#cloud-config', '#!' …); a path on the node is read only "
            "where api.allow_user_data_dir allows it"
        )
    content = await trio.to_thread.run_sync(_read_below, Path(allowed), text)
    if content_type(content) is None:
        raise _wrong("the file's content is in no form of cloud-init ('#cloud-config', '#!' …)")
    return content


def _read_below(directory: Path, text: str) -> str:
    """Links are followed before it is judged where the file lies, and not after."""
    try:
        root = directory.resolve(strict=True)
        path = (root / text).resolve(strict=True)
        if not path.is_relative_to(root):
            raise _wrong("the path does not lie in the directory of api.allow_user_data_dir")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        raise _wrong("there is no such file in the directory of api.allow_user_data_dir") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _wrong("the path is not a file")
        content = os.pread(descriptor, _MAX_USER_DATA + 1, 0)
    finally:
        os.close(descriptor)
    try:
        found = content.decode()
    except UnicodeDecodeError:
        raise _wrong("the file is not text") from None
    if len(content) > _MAX_USER_DATA:
        raise _wrong(f"the file has more than {_MAX_USER_DATA} bytes")
    return found


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest(f"user_data: {why}", path="user_data")

"""The keywords of a client's calls that stand for the fields of a request."""

from __future__ import annotations

from typing import TypedDict

from ..protocols.vm import CloudInit, ForwardSpec


class CloudInitFields(TypedDict, total=False):
    """The fields of CloudInit as keywords."""

    user_data: str
    network_config: str
    ssh_authorized_keys: list[str]
    hostname: str


class VmFields(TypedDict, total=False):
    """The fields of VmSpec beside `name` and `image`, as keywords; memory in MiB, disk_size in GiB."""

    cpu_cores: int
    memory: int
    disk_size: int
    network: str
    hypervisor: str
    firmware: str
    mac: str
    cloud_init: CloudInit | CloudInitFields | None
    forwards: list[ForwardSpec]
    start: bool
    autostart: bool
    labels: dict[str, str]
    ttl: int


class ExecFields(TypedDict, total=False):
    """The fields of ExecRequest beside `command`, as keywords; `timeout` in seconds."""

    command_base64: list[str]
    env: dict[str, str]
    env_base64: list[str]
    workdir: str
    workdir_base64: str
    user: str
    stdin: str
    stdin_base64: str
    timeout: int
    detach: bool
    interactive: bool
    terminal: bool
    columns: int
    rows: int


class WriteFields(TypedDict, total=False):
    """How a file is written: permission bits, seconds since 1970, and whose it is to be."""

    mode: int | None
    modified: float | None
    user: str

"""Configuration: one TOML file, environment variables over it, command-line options over both.

The keys are the fields below; `configs/twinshare.toml` shows each with its default. An unknown key or a wrong type is
a `ConfigError` that names the file, the line, the key and the nearest valid key.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import platformdirs
from msgspec import Meta

from ..protocols.access import Role
from ..protocols.membership.statements import means_another


def loopback_endpoint(text: str) -> tuple[str, int]:
    """Return the address and the port that a text names. Raises: ValueError unless they are of the loopback."""
    host, _, port = text.rpartition(":")
    address = ipaddress.ip_address(host.strip("[]"))
    if not address.is_loopback or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"'{text}' is no address of the loopback with a port, such as 127.0.0.1:5354")
    return str(address), int(port)


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`name` defaults to the machine's host name, `data_dir` to the user's data directory."""

    name: str = ""
    data_dir: str = ""

    def __post_init__(self) -> None:
        if means_another(self.name):
            raise ValueError(f"name '{self.name}' stands for another node in commands; choose another")


class OidcConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bearer tokens made by an identity provider. `role_claim` names the claim that holds viewer, operator or admin."""

    issuer: str = ""
    audience: str = ""
    role_claim: str = "twinshare_role"
    jwks_file: str = ""


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the REST API. Sizes in bytes, times in seconds, rates in requests a second."""

    listen: str = "127.0.0.1:8080"
    auth: Literal["local", "token"] = "local"
    tls_cert: str = ""
    tls_key: str = ""
    insecure: bool = False
    hosts: list[str] = []
    origins: list[str] = []
    max_body: Annotated[int, Meta(ge=1024)] = 1 << 20
    max_connections: Annotated[int, Meta(ge=1)] = 256
    idle_timeout: Annotated[float, Meta(gt=0)] = 60.0
    rate: Annotated[float, Meta(gt=0)] = 200.0
    burst: Annotated[int, Meta(ge=1)] = 400
    allow_user_data_dir: str = ""
    oidc: OidcConfig = OidcConfig()


class HypervisorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reserve_*` stay free for the machine itself; memory in MiB, disk in GiB."""

    uri: str = ""
    accelerator: Literal["auto", "kvm", "qemu"] = "auto"
    allow_emulation: bool = True
    sandbox: Literal["auto", "namespaces", "plain"] = "auto"
    user: str = "twinshare"
    stop_timeout: Annotated[int, Meta(ge=1, le=3600)] = 60
    cpu_overcommit: Annotated[float, Meta(gt=0, le=1024)] = 32.0
    memory_overcommit: Annotated[float, Meta(gt=0, le=8)] = 1.0
    reserve_memory: Annotated[int, Meta(ge=0)] = 512
    reserve_disk: Annotated[int, Meta(ge=0)] = 1
    max_vms: Annotated[int, Meta(ge=1)] = 1000
    resync_interval: Annotated[float, Meta(gt=0)] = 30.0


class P2pConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mesh. Addresses are multiaddrs; times in seconds."""

    enabled: bool = True
    listen: list[str] = msgspec.field(default_factory=lambda: ["/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"])
    bootstrap: list[str] = []
    mdns: bool = True
    dht: bool = True
    relay: bool = True
    dead_peer_timeout: Annotated[float, Meta(gt=0)] = 15.0


class PeerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this node allows one peer, at most; it can only lower what the peer's certificate says."""

    deny: bool = False
    role: Role | None = None
    max_vms: int | None = None
    max_cpu: int | None = None
    max_memory: int | None = None
    max_disk: int | None = None


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A registry that needs more than its name; its `host` may be a private address. `insecure` speaks plain http.

    `ca_file` holds the authorities that its certificate is checked against, in place of the system's. This node's login
    serves its user and admins; peers, and callers that are no admins, use it to pull with one of `roles`, and to push
    with one of `push_roles`.
    """

    host: str
    insecure: bool = False
    username: str = ""
    password_file: str = ""
    ca_file: str = ""
    roles: list[Role] = []
    push_roles: list[Role] = []


class ImagesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`catalogue` is a file of names and sources over the one that comes with twinshare. Size in bytes.

    `default_registry`, as `registry/organisation`, is where a name is looked for that is in no catalogue. `proxy`, as
    `http://host:port`, is what registries and disks by https are reached through.
    """

    default: str = "ubuntu-24.04"
    catalogue: str = ""
    default_registry: str = ""
    proxy: str = ""
    max_size: Annotated[int, Meta(ge=1 << 20)] = 1 << 40
    registries: list[RegistryConfig] = []


class DnsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`listen`, an address of the loopback and a port, answers for `VM.twin` and `VM.NODE.twin`."""

    listen: str = ""

    def __post_init__(self) -> None:
        if self.listen:
            loopback_endpoint(self.listen)


class GuestsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ssh_key`: the seed of a new VM lets the node's own SSH key log in."""

    ssh_key: bool = True


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it."""

    node: NodeConfig = NodeConfig()
    api: ApiConfig = ApiConfig()
    hypervisor: HypervisorConfig = HypervisorConfig()
    p2p: P2pConfig = P2pConfig()
    images: ImagesConfig = ImagesConfig()
    guests: GuestsConfig = GuestsConfig()
    dns: DnsConfig = DnsConfig()
    log: LogConfig = LogConfig()
    peers: dict[str, PeerConfig] = {}


class ConfigError(Exception):
    """The configuration cannot be used; the message names the place and the cure."""


def default_data_dir() -> Path:
    """`$TWINSHARE_DATA_DIR`, else the user's data directory."""
    if chosen := os.environ.get("TWINSHARE_DATA_DIR"):
        return Path(chosen)
    return Path(platformdirs.user_data_dir("twinshare", appauthor=False))


def find_config_file() -> Path | None:
    """`$TWINSHARE_CONFIG`, else the system's file, else the user's; None when there is none."""
    if chosen := os.environ.get("TWINSHARE_CONFIG"):
        return Path(chosen)
    candidates = [
        Path("/etc/twinshare/twinshare.toml"),
        Path(platformdirs.user_config_dir("twinshare")) / "twinshare.toml",
    ]
    return next((path for path in candidates if path.is_file()), None)


def load_config(
    file: Path | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read the file (None looks for one), then the environment, then `overrides` by section.

    Raises: ConfigError.
    """
    file = file or find_config_file()
    tree: dict[str, Any] = {}
    text = ""
    if file is not None:
        try:
            text = file.read_text()
            tree = tomllib.loads(text)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from None
    _check(tree, text, file)
    environment = os.environ if environment is None else environment
    tree = _merge(_merge(tree, _from_environment(environment)), dict(overrides or {}))
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"configuration: {error}") from None


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return merged


def _check(tree: Mapping[str, Any], text: str, file: Path | None) -> None:
    """Find the first wrong key in the file itself, so that the message can name its line."""
    for section, values in tree.items():
        kinds = {field.name: field.type for field in msgspec.structs.fields(Config)}
        if section not in kinds:
            raise _unknown(file, text, section, section, list(kinds))
        if section == "peers":
            continue
        keys = [field.name for field in msgspec.structs.fields(kinds[section])]
        for key in values if isinstance(values, dict) else ():
            if key not in keys:
                raise _unknown(file, text, key, f"{section}.{key}", [f"{section}.{name}" for name in keys])
        try:
            msgspec.convert(values, kinds[section])
        except msgspec.ValidationError as error:
            where = str(error).partition("`$.")[2].rstrip("`")
            line = _line(text, where.split(".")[0].split("[")[0] or section)
            key = f"{section}.{where}".rstrip(".")
            raise ConfigError(f"{file}, line {line}: {key}: {str(error).partition(' - at')[0]}") from None


def _unknown(file: Path | None, text: str, word: str, key: str, valid: list[str]) -> ConfigError:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    return ConfigError(f"{file}, line {_line(text, word)}: unknown key '{key}'; did you mean '{near[0]}'?")


def _line(text: str, word: str) -> int:
    pattern = re.compile(rf"^\s*(\[+\s*)?\"?{re.escape(word)}\b")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)), 1)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """`TWINSHARE_<SECTION>_<KEY>`; lists are separated by commas. Other TWINSHARE_ variables are not ours to judge."""
    sections = [field for field in msgspec.structs.fields(Config) if field.name != "peers"]
    found = {field.name: _section(environment, field.type, f"TWINSHARE_{field.name}") for field in sections}
    return {name: values for name, values in found.items() if values}


def _section(environment: Mapping[str, str], kind: type[msgspec.Struct], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        variable = f"{prefix}_{field.name}".upper()
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            if values := _section(environment, field.type, variable):
                found[field.name] = values
        elif variable in environment:
            found[field.name] = _parse(environment[variable], field.type, variable)
    return found


def _parse(value: str, kind: Any, variable: str) -> Any:
    listed = getattr(kind, "__origin__", None) is list
    try:
        return msgspec.convert([part for part in value.split(",") if part] if listed else value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"${variable}: {error}") from None

"""The seed that a guest reads on its first boot: NoCloud (cloud-init), as an ISO 9660 image labelled `cidata`.

Documents are written by serializers, never by templates; user data that needs no merging is passed on byte for byte.
The libraries are loaded by the first VM: an agent that makes none is the smaller for it.
Format: cloud-init documentation, "NoCloud" data source.
"""

from __future__ import annotations

import base64
import io
import json
import uuid
from typing import Any

from ...protocols.errors import InvalidRequest
from ...protocols.user_data import CLOUD_CONFIG, MIME_ARCHIVE, content_type, plain
from ...protocols.vm import CloudInit
from ..bounded_yaml import YamlError, load_yaml
from .vendor_data import vendor_data

_HEADER = "#cloud-config\n"
_MAX_KEYS = 1000


def check_cloud_init(cloud_init: CloudInit) -> None:
    """Refuse what cloud-init would stumble over while the guest boots, where nobody sees it.

    Raises: InvalidRequest.
    """
    if content_type(cloud_init.user_data) == CLOUD_CONFIG:
        _load(plain(cloud_init.user_data), "user_data")
    if cloud_init.network_config:
        _load(cloud_init.network_config, "network_config")


def build_seed(vm_id: str, name: str, cloud_init: CloudInit, node_key: str = "") -> bytes:
    """Return the seed's ISO image. The instance id is the VM's, so a guest configures itself once.

    `node_key`, a line of authorized_keys, may log in too.
    """
    hostname = cloud_init.hostname or name
    # JSON is YAML, and no string in it can become a key.
    meta_data = json.dumps({"instance-id": vm_id, "local-hostname": hostname}, indent=1) + "\n"
    documents = {
        "meta-data": meta_data,
        "user-data": user_data(hostname, cloud_init),
        "vendor-data": vendor_data(node_key),
    }
    if cloud_init.network_config:
        documents["network-config"] = cloud_init.network_config
    return _iso(documents)


def user_data(hostname: str, cloud_init: CloudInit) -> str:
    """Return the caller's user data with its keys and host name merged in; the caller's own words win."""
    ours: dict[str, Any] = {"hostname": hostname}
    if cloud_init.ssh_authorized_keys:
        ours["ssh_authorized_keys"] = list(cloud_init.ssh_authorized_keys)
    theirs = plain(cloud_init.user_data)
    if not theirs:
        return _dump(ours)
    if (kind := content_type(theirs)) != CLOUD_CONFIG:
        return theirs if len(ours) == 1 else _archive(_dump(ours), theirs, kind or "text/plain")
    document = _load(theirs, "user_data")
    keys = [*document.get("ssh_authorized_keys", []), *ours.pop("ssh_authorized_keys", [])]
    if not keys and "hostname" in document:
        return theirs
    merged = {**ours, **document} | ({"ssh_authorized_keys": keys} if keys else {})
    return _dump(merged)


def _dump(document: dict[str, Any]) -> str:
    import yaml

    return _HEADER + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _load(text: str, what: str) -> dict[str, Any]:
    try:
        document = load_yaml(text)
    except YamlError as error:
        raise InvalidRequest(f"{what} is not valid YAML: {error}", path=f"cloud_init.{what}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or len(document) > _MAX_KEYS:
        raise InvalidRequest(f"{what} must be a YAML mapping", path=f"cloud_init.{what}")
    if not isinstance(document.get("ssh_authorized_keys", []), list):
        raise InvalidRequest(f"ssh_authorized_keys in {what} must be a list", path=f"cloud_init.{what}")
    return document


def _archive(config: str, theirs: str, kind: str) -> str:
    """Both documents in one MIME archive, the form cloud-init has for that.

    An archive of the caller's becomes a part as it is: it has headers of its own, and is not parsed here.
    """
    boundary = f"=={uuid.uuid5(uuid.NAMESPACE_OID, config + theirs).hex}=="
    parts = [_part("text/cloud-config", config), theirs.lstrip() if kind == MIME_ARCHIVE else _part(kind, theirs)]
    body = "".join(f"--{boundary}\n{part}\n" for part in parts)
    return f'Content-Type: {MIME_ARCHIVE}; boundary="{boundary}"\nMIME-Version: 1.0\n\n{body}--{boundary}--\n'


def _part(kind: str, text: str) -> str:
    content = base64.encodebytes(text.encode()).decode()
    headers = (f'Content-Type: {kind}; charset="utf-8"', "MIME-Version: 1.0", "Content-Transfer-Encoding: base64")
    return "\n".join(headers) + f"\n\n{content}"


def _iso(documents: dict[str, str]) -> bytes:
    import pycdlib

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for number, (name, text) in enumerate(documents.items()):
        content = text.encode()
        image.add_fp(
            io.BytesIO(content), len(content), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}"
        )  # fmt: skip
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()

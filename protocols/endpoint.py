"""A host and a port as one text: `192.0.2.1:80`, `[2001:db8::1]:80`."""

from __future__ import annotations


def endpoint(host: str, port: int | str) -> str:
    """Return `host:port`, an IPv6 address in brackets, as URLs have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

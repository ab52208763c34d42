"""The forms of user data that cloud-init recognises, distinguished by how the text begins, as cloud-init does.

Source: cloud-init documentation, "User data formats"; cloudinit/handlers/__init__.py, INCLUSION_TYPES_MAP.
"""

from __future__ import annotations

BYTE_ORDER_MARK = "\ufeff"
MIME_ARCHIVE = "multipart/mixed"
CLOUD_CONFIG = "text/cloud-config"

# The longer prefix first: `#cloud-config` begins the others of its family too.
_CONTENT_TYPES = {
    "#cloud-config-archive": "text/cloud-config-archive",
    "#cloud-config-jsonp": "text/cloud-config-jsonp",
    "#cloud-config": CLOUD_CONFIG,
    "## template: jinja": "text/jinja2",
    "#include-once": "text/x-include-once-url",
    "#include": "text/x-include-url",
    "#cloud-boothook": "text/cloud-boothook",
    "#part-handler": "text/part-handler",
    "#!": "text/x-shellscript",
    "content-type:": MIME_ARCHIVE,
    "mime-version:": MIME_ARCHIVE,
}


def plain(text: str) -> str:
    """Return user data without the byte order mark that some editors write, and that cloud-init does not skip."""
    return text.removeprefix(BYTE_ORDER_MARK)


def content_type(text: str) -> str | None:
    """Return the MIME type under which cloud-init handles user data, None for what it would ignore."""
    beginning = plain(text).lstrip()[:64].lower()
    return next((kind for prefix, kind in _CONTENT_TYPES.items() if beginning.startswith(prefix)), None)


def check_user_data(text: str) -> None:
    """Raises: ValueError unless cloud-init recognises the text's form."""
    if content_type(text) is None:
        known = ", ".join(f"'{prefix}'" for prefix in _CONTENT_TYPES)
        raise ValueError(
            "user_data must be content, not a path, in a form that cloud-init knows: "
            f"it begins with '#cloud-config', a script with '#!', others with one of {known}"
        )

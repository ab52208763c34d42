"""Disk images: kept by content, run as overlays, moved between machines."""

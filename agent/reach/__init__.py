"""Streams to peers beside calls: to their guests' ports and consoles, and for their images; the consoles of our own."""

"""py-libp2p: the adapter, the only room that imports it. Every trap it has is handled in here."""

"""A Kademlia table of the fleet under `/twinshare/kad/1.0.0`: hints about where peers are, never more.

libp2p's own would load the whole of libp2p, keeps what nobody validates and answers from its cache for ever; this one
speaks the same messages, keeps only what its validator accepts, and asks the network each time.
"""

from .node import DHT, Dht, open_dht

__all__ = ["DHT", "Dht", "open_dht"]

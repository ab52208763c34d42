"""The mesh: hosts, streams, calls between nodes, membership, discovery."""

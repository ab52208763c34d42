"""The sandbox of a node: where its private libvirtd, its QEMU processes and tools such as qemu-img run.

A process in it sees three folders of the data directory and no other file of the agent or of its owner; it runs as an
unprivileged user without capabilities; its network namespace has a loopback of its own, so a guest finds nothing of the
host on 10.0.2.2.

`supervisor`, `namespaces`, `routes` and `programs` run in the sandbox's own processes, by the bare interpreter: they
import the standard library alone, and so must this file. The other modules run in the agent.
"""

"""Both ends of a plain TCP connection, each in its own process: what goes through a tunnel, and how long it takes.

python -m scripts.benchmarks._sockets serve              prints its port
python -m scripts.benchmarks._sockets send PORT BYTES    prints the seconds until the far end has all
python -m scripts.benchmarks._sockets echo PORT TIMES    prints the median of so many round trips of a byte, in seconds
"""

from __future__ import annotations

import socket
import statistics
import struct
import sys
import threading
import time

PIECE = 1 << 18
_HEAD = struct.Struct(">Q")


def serve() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=_answer, args=(listener.accept()[0],), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = connection.recv(_HEAD.size, socket.MSG_WAITALL)
        if len(head) < _HEAD.size:
            return
        (left,) = _HEAD.unpack(head)
        if not left:
            while data := connection.recv(64):
                connection.sendall(data)
            return
        while left:
            left -= len(connection.recv(min(left, PIECE)))
        connection.sendall(b"!")


def send(port: int, size: int) -> float:
    piece = bytes(range(256)) * (PIECE // 256)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.perf_counter()
        connection.sendall(_HEAD.pack(size))
        for _ in range(size // PIECE):
            connection.sendall(piece)
        connection.recv(1)
        return time.perf_counter() - begun


def echo(port: int, times: int) -> float:
    taken = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(_HEAD.pack(0))
        for _ in range(times):
            begun = time.perf_counter()
            connection.sendall(b"x")
            connection.recv(1)
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    print((send if sys.argv[1] == "send" else echo)(int(sys.argv[2]), int(sys.argv[3])))

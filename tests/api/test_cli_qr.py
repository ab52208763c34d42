"""The ticket as a QR code: the modules that a terminal shows, and that they say the ticket to an independent reader."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import segno

from tests.api.recorded import Answer, recorded_node
from tests.api.test_cli import twinshare
from twinshare.api.cli.qr import QUIET, draw_qr
from twinshare.protocols.ticket import TicketContent, decode_ticket, encode_ticket

INVITER = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
IP6 = tuple(f"/ip6/2001:db8:1111:2222:3333:4444:5555:666{last}/tcp/65535" for last in range(4))
IP4 = ("/ip4/192.168.122.1/tcp/4001", "/ip4/127.0.0.1/tcp/4001")


def ticket(addresses: tuple[str, ...]) -> str:
    content = TicketContent(
        inviter=INVITER, id=bytes(range(6)), secret=bytes(range(16)), expires=2**32 - 1, addresses=addresses
    )
    return encode_ticket(content)


def modules(drawn: str) -> list[list[int]]:
    """What is dark on the screen, the quiet zone left out."""
    rows = []
    for line in drawn.splitlines():
        assert line.startswith("\033[30;107m"), "dark on light"
        line = line.removeprefix("\033[30;107m").removesuffix("\033[0m")
        rows += [[int(sign in "▀█") for sign in line], [int(sign in "▄█") for sign in line]]
    width = len(rows[0])
    inside = [row[QUIET:-QUIET] for row in rows[QUIET : width - QUIET]]
    assert sum(map(sum, rows)) == sum(map(sum, inside)), "the quiet zone is light"
    return inside


# -- an independent reader: version and mask from the standard, no error correction


def function_modules(size: int) -> list[list[bool]]:
    """Where no data stands: finders, timing, alignment, format and version."""
    version = (size - 17) // 4
    taken = [[row == 6 or column == 6 for column in range(size)] for row in range(size)]

    def take(rows: range, columns: range) -> None:
        for row in rows:
            for column in columns:
                taken[row][column] = True

    take(range(9), range(9))
    take(range(9), range(size - 8, size))
    take(range(size - 8, size), range(9))
    if version >= 7:
        take(range(6), range(size - 11, size - 8))
        take(range(size - 11, size - 8), range(6))
    centres = {5: [6, 30], 6: [6, 34], 7: [6, 22, 38], 8: [6, 24, 42], 9: [6, 26, 46]}[version]
    for row in centres:
        for column in centres:
            if (row, column) not in {(6, 6), (6, centres[-1]), (centres[-1], 6)}:
                take(range(row - 2, row + 3), range(column - 2, column + 3))
    return taken


MASKS: list[Callable[[int, int], int]] = [
    lambda i, j: (i + j) % 2, lambda i, _: i % 2, lambda _, j: j % 3, lambda i, j: (i + j) % 3,
    lambda i, j: (i // 2 + j // 3) % 2, lambda i, j: i * j % 2 + i * j % 3,
    lambda i, j: (i * j % 2 + i * j % 3) % 2, lambda i, j: ((i + j) % 2 + i * j % 3) % 2,
]  # fmt: skip
DATA_CODEWORDS = {5: [108], 6: [68, 68], 7: [78, 78], 8: [97, 97], 9: [116, 116]}
"""Of each block at error correction L, by version."""


def read(matrix: list[list[int]]) -> str:
    """The text of a code in byte mode at level L."""
    size = len(matrix)
    taken = function_modules(size)
    form = [matrix[8][column] for column in range(5)]
    level, mask = (form[0] ^ 1) << 1 | form[1] ^ 0, (form[2] ^ 1) << 2 | form[3] << 1 | form[4] ^ 1
    assert level == 0b01, "error correction L"
    bits: list[int] = []
    upwards = True
    for right in [*range(size - 1, 6, -2), 5, 3, 1]:
        for row in range(size - 1, -1, -1) if upwards else range(size):
            free = [column for column in (right, right - 1) if not taken[row][column]]
            bits += [matrix[row][column] ^ (MASKS[mask](row, column) == 0) for column in free]
        upwards = not upwards
    words = [int("".join(map(str, bits[at : at + 8])), 2) for at in range(0, len(bits) - 7, 8)]
    blocks = DATA_CODEWORDS[(size - 17) // 4]
    data = bytes(words[at * len(blocks) + block] for block in range(len(blocks)) for at in range(blocks[block]))
    assert data[0] >> 4 == 0b0100, "byte mode"
    length = (data[0] & 15) << 4 | data[1] >> 4
    return bytes((data[1 + at] & 15) << 4 | data[2 + at] >> 4 for at in range(length)).decode()


@pytest.mark.parametrize(("addresses", "characters", "lines"), [(IP4, 103, 21), (IP6, 190, 27)])
def test_a_reader_gets_the_ticket(addresses: tuple[str, ...], characters: int, lines: int) -> None:
    text = ticket(addresses)
    drawn = draw_qr(text)
    assert abs(len(text) - characters) <= 1
    assert read(modules(drawn)) == text
    assert decode_ticket(read(modules(drawn))).addresses == addresses
    assert len(drawn.splitlines()) <= lines, "it fits on a screen of 80 by 30"


def test_the_longest_ticket_fits() -> None:
    code = segno.make_qr("Z" * 1024, error="l", boost_error=False)
    shown = [list(row) for row in code.matrix_iter(border=0)]
    assert modules(draw_qr("Z" * 1024)) == shown


def test_invite_prints_the_code_and_the_ticket() -> None:
    text = ticket(IP4)
    made = Answer({"ticket": text, "expires": "2025-05-10T10:30:00Z", "role": "operator"})
    with recorded_node({"POST /api/p2p/invite": [made]}) as node:
        plain = twinshare(node, "peer", "invite", "--qr")
        document = twinshare(node, "peer", "invite", "--qr", "--json")
        bare = twinshare(node, "peer", "invite")
    *code, last = plain.stdout.splitlines()
    assert last == text
    coloured = "\n".join(f"\033[30;107m{line}\033[0m" for line in code)
    assert read(modules(coloured)) == text, "no colours where no terminal is"
    assert json.loads(document.stdout)["ticket"] == text
    assert bare.stdout == f"{text}\n"

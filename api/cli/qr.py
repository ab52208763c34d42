"""A text as a QR code for a terminal: two modules a character, dark on light whatever the terminal's colours are."""

from __future__ import annotations

QUIET = 2
"""Light modules around the code. The standard asks for 4; readers take 2, and a smaller code fits on more screens."""
_BLOCKS = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
# Black on bright white. What is no terminal gets the bare characters: click takes the colours away.
_ON, _OFF = "\033[30;107m", "\033[0m"


def draw_qr(text: str) -> str:
    """Lines of half blocks. Error correction is the least: a screen has no stains, and a small code is read sooner."""
    import segno

    rows = [list(row) for row in segno.make_qr(text, error="l", boost_error=False).matrix_iter(border=QUIET)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    lines = ("".join(_BLOCKS[each] for each in zip(upper, lower, strict=True)) for upper, lower in pairs)
    return "\n".join(f"{_ON}{line}{_OFF}" for line in lines)

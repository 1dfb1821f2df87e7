"""GPT-2's alphabet: every byte as one printable character. No torch."""

from __future__ import annotations

#: bytes that stand for themselves; the others are moved up, in order, behind U+00FF
_PRINTABLE = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
_MOVED = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_TO_CHARACTER = [
    chr(byte) if byte in _PRINTABLE else chr(256 + _MOVED.index(byte)) for byte in range(256)
]


def bytes_to_text(token: bytes) -> str:
    """A token's bytes in GPT-2's alphabet."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)

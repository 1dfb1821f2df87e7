"""Lines of mixed text to compare tokenizers on: code, scripts, white space, emoji, anything.

Made from the running Python's own library and Unicode tables with a fixed seed; needs no files.
"""

from __future__ import annotations

import functools
import json
import random
import sysconfig
import unicodedata
from collections.abc import Callable
from pathlib import Path

_SCRIPTS = (
    (0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x587),
    (0x5D0, 0x5EA), (0x620, 0x66F), (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xB80, 0xBFF),
    (0xC00, 0xC7F), (0xD80, 0xDFF), (0xE01, 0xE5B), (0xE80, 0xEDF), (0xF00, 0xF6C),
    (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1200, 0x137C), (0x13A0, 0x13F5), (0x1780, 0x17F9),
    (0x1E00, 0x1FFE),
    (0x2C00, 0x2C7F), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
    (0xFF01, 0xFF5E), (0x10400, 0x1044F), (0x1D400, 0x1D7FF), (0x20000, 0x20100),
)  # fmt: skip
_EMOJI_TEXT = """
😀 😂 🤖 🚀 ✅ ❤️ 👍🏽 👩‍💻 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 🇯🇵 1️⃣ ☕ ⚠️ 🧑🏿‍🚀 🫠 ™ © ♻️ ➡️ 🦙
"""
_SPACES = [" ", "  ", "   ", "    ", "\t", "\n", "\r\n", "\r", "\n\n", "\u00a0", "\u2003", "\u3000"]
_SPACES += ["\v", "\f", "\x85", "\u2028", " \n", "\t ", " " * 17, "\u200b", "\ufeff"]
_WORD_TEXT = r"""
I'm you'll WE'VE it's don't o'clock 'tis 'S 'RE HTTPServer iPhone e.g. x86_64 0x1F 3.14159 1234567
12,345.67 ½ ² Ⅷ -- ... ?!?! => != <= ## $5 100% a+b C++ ~/.x \n {} [] (a) "q" `c` _ | @ # ^ & *
naïve café Straße ﬁn ΑΒγ привет שלום مرحبا नमस्ते ไทย 日本語 中文 한국어 ﷺ Z̤͔ͧ̑̓ ▁ ▁▁x Ġ Ċ
<s> </s> <unk> <|x|> <0x0A> [PAD]
"""


_EMOJI, _WORDS = _EMOJI_TEXT.split(), _WORD_TEXT.split()


@functools.cache
def _library() -> tuple[str, ...]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse", "ast", "typing", "json/decoder", "email/message", "tarfile", "locale")
    texts = [(folder / f"{name}.py").read_text("utf-8") for name in names]
    return tuple(line for text in texts for line in text.split("\n") if line.strip())


def _any_character(rng: random.Random) -> str:
    while True:
        character = chr(rng.randrange(0x110000) if rng.random() < 0.3 else rng.randrange(0x3000))
        if unicodedata.category(character) != "Cs":
            return character


def _script(rng: random.Random) -> str:
    low, high = rng.choice(_SCRIPTS)
    words = []
    for _ in range(rng.randint(1, 6)):
        characters = [chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8))]
        words.append("".join(c for c in characters if unicodedata.category(c) != "Cn"))
    return rng.choice((" ", "", "-", "  ", "\n")).join(words)


def _line(rng: random.Random) -> str:
    library = _library()
    kind = rng.randrange(8)
    if kind <= 1:
        return rng.choice(library)
    if kind == 2:
        return "\n".join(rng.choices(library, k=rng.randint(2, 4)))
    if kind == 3:
        return _script(rng)
    if kind == 4:
        return "".join(_any_character(rng) for _ in range(rng.randint(1, 12)))
    makers: tuple[Callable[[], str], ...] = (
        lambda: rng.choice(_SPACES),
        lambda: rng.choice(_SPACES) * rng.randint(1, 4),
        lambda: rng.choice(_WORDS),
        lambda: json.dumps(rng.random()) if kind == 5 else rng.choice(_EMOJI),
        lambda: _script(rng),
    )
    parts = [rng.choice(makers)() for _ in range(rng.randint(1, 10))]
    return rng.choice(("", " ")).join(parts)


@functools.cache
def mixed_lines(count: int, seed: int = 0) -> tuple[str, ...]:
    """The first `count` lines; a line may hold line breaks. Every character is a scalar value."""
    rng = random.Random(seed)
    return tuple(_line(rng) for _ in range(count))

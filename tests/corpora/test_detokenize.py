"""Text in pieces against the same tokens decoded at once, with tokenizers of every kind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llmopt.corpora.detokenize import StopStrings, TextStream
from llmopt.pretrained import tokenizer_of
from tests.formats.gguf import small_tokenizers as small
from tests.mixed_text import mixed_lines

SENTENCEPIECE = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}
WORDS = ["[UNK]", "don", "'", "t", ".", ",", "!", "n't", "ha", "##ppy", "a", "'s", "we", "'ve"]


def sentencepiece(folder: Path, prepend: bool) -> Path:
    """As Llama's; without the space that is put before a text, as Gemma's."""
    small.sentencepiece(folder, *([small.PREPEND] if prepend else []))
    content = json.loads((folder / "tokenizer.json").read_text())
    decoder = SENTENCEPIECE["decoders"]
    content["decoder"] = {**SENTENCEPIECE, "decoders": decoder if prepend else decoder[:-1]}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def words(folder: Path, *, clean: bool) -> Path:
    """As BERT's: words, and the ends of words."""
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    settings = {"clean_up_tokenization_spaces": clean, "unk_token": "[UNK]"}
    return small.save(folder, json.loads(tokenizer.to_str()), **settings)


def suffixes(folder: Path) -> Path:
    """As the first GPT's: a mark at the end of a word."""
    vocabulary = {p: i for i, p in enumerate(["a", "b", "a</w>", "b</w>", "ab</w>", ".</w>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder()
    return small.save(folder, json.loads(tokenizer.to_str()))


KINDS: dict[str, Callable[[Path], Path]] = {
    "demo": lambda folder: small.DEMO,
    "byte level": lambda folder: small.byte_level(folder, "llama-bpe"),
    "sentencepiece": lambda folder: sentencepiece(folder, prepend=True),
    "sentencepiece without prefix": lambda folder: sentencepiece(folder, prepend=False),
    "words": lambda folder: words(folder, clean=False),
    "words, cleaned": lambda folder: words(folder, clean=True),
    "suffixes": suffixes,
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_of(KINDS[request.param](tmp_path_factory.mktemp("tokenizer") / "model"))


def check(tokenizer: Any, prompt: list[int], tokens: Iterable[int]) -> str:
    tokens = list(tokens)
    stream = TextStream(tokenizer, prompt)
    streamed = "".join([*(stream.feed(token) for token in tokens), stream.finish()])
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    whole = tokenizer.decode(prompt + tokens, skip_special_tokens=True)
    assert streamed == whole[len(before) :]
    return streamed


def test_text_in_every_script(tokenizer: Any) -> None:
    for line in mixed_lines(150, seed=7):
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        for cut in {1, len(ids) // 2, max(len(ids) - 2, 0)}:
            check(tokenizer, ids[:cut], ids[cut:])


def test_any_tokens_at_all(tokenizer: Any) -> None:
    chance = random.Random(3)
    for length in (2, 9, 40, 700):
        for _ in range(20 if length < 100 else 2):
            ids = [chance.randrange(len(tokenizer)) for _ in range(length)]
            check(tokenizer, ids[:3], ids[3:])
            check(tokenizer, [], ids)


def test_bytes_that_make_a_character_or_not(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(sentencepiece(tmp_path / "model", prepend=True))
    euro = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "€".encode()]
    a = tokenizer.convert_tokens_to_ids("▁a")
    assert check(tokenizer, [a], [*euro, a]) == "€ a"
    assert check(tokenizer, [a], [*euro, *euro, euro[0]]) == "\ufffd" * 7
    assert check(tokenizer, [a, *euro], [euro[0], a]) == "\ufffd" * 3 + " a"
    unknown = tokenizer.convert_tokens_to_ids("<unk>")  # left out: the run of bytes goes on
    assert check(tokenizer, [a], [euro[0], unknown, *euro[1:], a]) == "€ a"
    assert check(tokenizer, [a], [*euro, unknown, euro[0]]) == "\ufffd" * 4
    assert check(tokenizer, [a], [a]) == " a"


def test_text_comes_as_soon_as_it_is_certain(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(sentencepiece(tmp_path / "model", prepend=True))
    stream = TextStream(tokenizer, tokenizer("it was", add_special_tokens=False)["input_ids"])
    for token in tokenizer("here and there", add_special_tokens=False)["input_ids"]:
        assert stream.feed(token)


def test_a_long_text_is_not_decoded_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_of(sentencepiece(tmp_path / "model", prepend=True))
    ids = tokenizer("here and there " * 200, add_special_tokens=False)["input_ids"]
    decode, decoded = tokenizer.decode, []

    def counted(ids: list[int], **settings: Any) -> str:
        decoded.append(len(ids))
        return str(decode(ids, **settings))

    monkeypatch.setattr(tokenizer, "decode", counted)
    stream = TextStream(tokenizer, ids[:10])
    for token in ids:
        stream.feed(token)
    assert len(ids) > 600
    assert max(decoded) < 300


@pytest.mark.parametrize(
    ("stops", "pieces", "expected", "found"),
    [
        (["END"], ["a", "E", "N", "D", "b"], "a", "END"),
        (["END"], ["aEN", "ED"], "aENED", None),
        (["ababc"], ["ab", "ababc"], "ab", "ababc"),
        (["b", "ab"], ["x", "a", "b"], "x", "ab"),
        (["\n\n"], ["a\n", "b\n", "\nc"], "a\nb", "\n\n"),
        (["EN", "ENDE"], ["xEND"], "x", "EN"),
        (["zz"], ["a", "z"], "az", None),
        ([], ["a", "z"], "az", None),
    ],
)
def test_stop_strings(
    stops: list[str], pieces: list[str], expected: str, found: str | None
) -> None:
    strings = StopStrings(stops)
    text = ""
    for piece in pieces:
        text += strings.feed(piece)
        if strings.found:
            break
    else:
        text += strings.finish()
    assert (text, strings.found) == (expected, found)

"""Files as bytes, unpacked where their name ends in .gz, .bz2, .xz or .zst."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from llmopt.errors import RequestError


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


#: how a packed file begins
_MAGIC = {
    ".gz": (b"\x1f\x8b",),
    ".bz2": (b"BZh",),
    ".xz": (b"\xfd7zXZ\0",),
    ".zst": (b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"),
}
PACKINGS = tuple(_MAGIC)

#: text packs to a tenth; what unpacks to much more than a hundredfold was made to fill the machine
_ALWAYS, _RATIO = 64_000_000, 100
#: what is unpacked at once: each four bytes of these may stand for 128 kB
_ZSTD_BYTES = 1024


def suffixes(path: Path) -> tuple[str, str]:
    """The suffix that says what a file holds, and that of its packing ("" where it has none)."""
    suffix = path.suffix.lower()
    if suffix in PACKINGS:
        return Path(path.stem).suffix.lower(), suffix
    return suffix, ""


def opened(path: Path) -> BinaryIO:
    """The bytes that `path` holds.

    RequestError, then or while they are read, where a packed file is damaged, not what its name
    says, or unpacks to far more than text would.
    """
    packing = suffixes(path)[1]
    file = path.open("rb")
    start = file.read(8)
    file.seek(0)
    if not packing:
        for other, magic in _MAGIC.items():
            if other != ".bz2" and start.startswith(magic):  # whose mark might begin a text
                file.close()
                raise RequestError(
                    f"{path}: a packed file", hint=f"name it {path.name}{other}, or unpack it"
                )
        return file
    if not start.startswith(_MAGIC[packing]):
        file.close()
        raise RequestError(f"{path}: not a {packing} file", hint="name it as what it is")
    return io.BufferedReader(_Unpacked(path, file, _UNPACKERS[packing]))


class _Unpacked(io.RawIOBase):
    def __init__(
        self, path: Path, file: BinaryIO, unpacker: Callable[[BinaryIO], _Readable]
    ) -> None:
        self._path, self._file, self._source = path, file, unpacker(file)
        self._left = _ALWAYS + _RATIO * path.stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except _damage() as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            raise RequestError(
                f"{self._path}: damaged or cut short, it cannot be unpacked ({cause})"
            ) from error
        self._left -= len(data)
        if self._left < 0:
            raise RequestError(
                f"{self._path}: unpacks to more than {_RATIO} times its size, which is no text"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _damage() -> tuple[type[Exception], ...]:
    """What the unpackers raise at a damaged file."""
    import zstandard

    return (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class _Zstd:
    """zstandard's own reader takes a file that is cut short for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        self._chunks, self._unpacked = _zstd_chunks(file), b""

    def read(self, size: int, /) -> bytes:
        while not self._unpacked:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._unpacked = chunk
        data, self._unpacked = self._unpacked[:size], self._unpacked[size:]
        return data


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    import zstandard

    frame = None
    while block := file.read(_ZSTD_BYTES):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(block)
            block = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends in the middle")


_UNPACKERS: dict[str, Callable[[BinaryIO], _Readable]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _Zstd,
}

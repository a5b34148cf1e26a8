"""What of a PNG or JPEG file the decoder gets to see: pixels, and of the rest what changes them and is sound.

A decoder that meets damaged or very large text, a colour profile, gamma or physical sizes gives up on pixels that are
fine. So those parts are left out before it starts: nothing is copied, and only the heads of parts are read.
"""

from __future__ import annotations

import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import BinaryIO

Span = tuple[int, int]  # bytes of a file, from and to

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# Chunks whose values decide pixels. Of the others those may, that can be checked: orientation, and the colour profile.
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"IEND")
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTATION_TEXTS = (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp")
_LARGEST = 2**20  # bytes of one such part, unpacked; the decoder's own limit
# Segments by the number of their marker: their first bytes, and how long they are at least.
_JPEG_SEGMENTS = {
    0xE0: ((b"JFIF\0",), 14),
    0xE1: ((b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"), 6),
    0xE2: ((b"ICC_PROFILE\0",), 14),
    0xEE: ((b"Adobe",), 12),
}


def pixels_of(file: io.BufferedReader | io.BytesIO) -> io.BufferedReader | io.BytesIO:
    """The file without the parts that decide no pixel or are damaged; itself where it is neither PNG nor JPEG."""
    file.seek(0)
    start = file.read(len(_PNG))
    size = file.seek(0, io.SEEK_END)
    if start == _PNG:
        spans = _png_spans(file, size)
    elif start.startswith(_JPEG):
        spans = _jpeg_spans(file, size)
    else:
        file.seek(0)
        return file
    return io.BufferedReader(_Spliced(file, list(_joined(spans))))


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _joined(spans: Iterator[Span]) -> Iterator[Span]:
    """Spans that touch become one."""
    begin = end = 0
    for start, stop in spans:
        if start != end:
            yield begin, end
            begin = start
        end = stop
    yield begin, end


def _png_spans(file: BinaryIO, size: int) -> Iterator[Span]:
    yield 0, len(_PNG)
    position = len(_PNG)
    while position + 8 <= size:
        length, kind = struct.unpack(">I4s", _read(file, position, 8))
        end = position + length + 12
        is_known = kind in (*_PNG_TEXTS, b"eXIf", b"iCCP") or kind[:1].islower()
        if kind in _PNG_PIXELS or not is_known or _sound_chunk(file, position, kind, length):
            yield position, min(end, size)  # what is cut off stays so, for the decoder to say
        if kind == b"IEND":
            return
        position = end


def _sound_chunk(file: BinaryIO, position: int, kind: bytes, length: int) -> bool:
    """Whether a chunk has the orientation or the colour profile, is whole, and not too large."""
    if kind in _PNG_TEXTS:
        if _read(file, position + 8, 80).split(b"\0")[0] not in _ORIENTATION_TEXTS:
            return False
    elif kind not in (b"eXIf", b"iCCP"):
        return False
    if length > _LARGEST:
        return False
    data = _read(file, position + 8, length + 4)
    if len(data) < length + 4 or zlib.crc32(kind + data[:-4]).to_bytes(4, "big") != data[-4:]:
        return False
    name, _, rest = data[:-4].partition(b"\0")
    if kind in (b"zTXt", b"iCCP"):
        return bool(name) and rest[:1] == b"\0" and _unpacks(rest[1:])
    if kind == b"iTXt" and rest[:1] == b"\1":
        return rest[1:2] == b"\0" and _unpacks(rest[2:].split(b"\0", 2)[-1])
    return True


def _unpacks(packed: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, _LARGEST)
    except zlib.error:
        return False
    return unpacker.eof


def _jpeg_spans(file: BinaryIO, size: int) -> Iterator[Span]:
    yield 0, 2
    position = 2
    while position < size:
        head = _read(file, position, 4)
        if head[:2] == b"\xff\xff":  # filling
            position += 1
            continue
        length = int.from_bytes(head[2:], "big")
        is_segment = head[:1] == b"\xff" and head[1:2] not in (b"\xd9", b"\xda") and length >= 2
        if not is_segment or position + 2 + length > size:
            yield position, size  # from the first scan on, and from where it is no JPEG, all of it
            return
        if _sound_segment(file, position, head[1], length - 2):
            yield position, position + 2 + length
        position += 2 + length


def _sound_segment(file: BinaryIO, position: int, marker: int, length: int) -> bool:
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
        return True
    names, shortest = _JPEG_SEGMENTS.get(marker, ((), 0))
    return length >= shortest and _read(file, position + 4, 32).startswith(tuple(names)) and bool(names)


class _Spliced(io.RawIOBase):
    """Spans of a file, one after the other, as a file."""

    def __init__(self, file: BinaryIO, spans: list[Span]) -> None:
        self._file, self._spans, self._position = file, spans, 0
        self._starts = list(accumulate((stop - start for start, stop in spans), initial=0))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self._starts[-1]:
            return 0
        number = bisect_right(self._starts, self._position) - 1
        start, stop = self._spans[number]
        at = start + self._position - self._starts[number]
        data = _read(self._file, at, min(len(buffer), stop - at))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

"""PNG from a figure, without a browser and without a network."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from ..figures import Figure
from .specification import spec
from .theme import Theme, config

VEGALITE = "6.4"
SIGNATURE = 8  # bytes before a PNG's first chunk


def png(figure: Figure, *, scale: float = 2.0, theme: Theme = "light") -> bytes:
    """The picture with title and caption; `scale` is pixels per drawn pixel."""
    from vl_convert import vegalite_to_png

    drawn = config(theme) | {"aria": False}  # nothing reads a picture's labels aloud, and writing them takes time
    return compressed(
        vegalite_to_png(spec(figure), vl_version=VEGALITE, scale=scale, config=drawn, allowed_base_urls=[])
    )


def compressed(picture: bytes) -> bytes:
    """The same PNG in a third of the bytes: the drawing engine packs for speed, and pictures travel in messages."""
    chunks = list(_chunks(picture))
    packed = zlib.compress(zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT")), 4)
    first = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return picture[:SIGNATURE] + b"".join(map(_chunk, [*others[:first], (b"IDAT", packed), *others[first:]]))


def _chunks(picture: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of every chunk: length, kind, data, checksum (PNG specification, section 5.3)."""
    at = SIGNATURE
    while at < len(picture):
        length, kind = struct.unpack(">I4s", picture[at : at + 8])
        yield kind, picture[at + 8 : at + 8 + length]
        at += length + 12


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

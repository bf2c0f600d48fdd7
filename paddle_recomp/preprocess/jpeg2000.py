"""How much memory a JPEG 2000 file asks for. Its decoder keeps a record of each tile, precinct and
code block, and a file of two hundred bytes can ask for a record of each pixel. The names of fields
are those of the standard, ITU-T T.800, Annex A."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

_START = b"\xff\x4f\xff\x51"
"""SOC and SIZ: a codestream begins. The boxes around it may hold several, or none but a decoy."""
_COD, _COC, _SOT, _SOD, _END = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_SEGMENTS = frozenset(bytes.fromhex("50 51 52 53 55 57 58 59 5c 5d 5e 5f 60 61 63 64 74 75 77 78"))
"""Second bytes of markers with a length behind them. Behind an unknown marker a decoder
looks for the next one that it knows."""


def records(content: bytes, most: int) -> int:
    """Roughly how many records the decoder keeps for the codestream that asks for the most; above
    `most` it stops counting.

    Raises: ValueError for a codestream that is not as the standard has it."""
    found, place, number = 0, content.find(_START), 0
    while place >= 0 and found <= most:
        number += 1
        if number > 100:
            raise ValueError("it has more than 100 beginnings of a codestream")
        try:
            found = max(found, _codestream(content, place + 2, most))
        except struct.error:
            raise ValueError("its codestream is cut off") from None
        place = content.find(_START, place + 1)
    return found


def _codestream(content: bytes, place: int, most: int) -> int:
    """`place` is that of SIZ."""
    fields = struct.unpack_from(">8LH", content, place + 6)
    width, height = fields[0] - fields[2], fields[1] - fields[3]
    components = fields[8]
    if min(width, height, components, *fields[4:6]) < 1:
        raise ValueError("its sizes are not positive")
    tiles = math.ceil(fields[0] / fields[4]) * math.ceil(fields[1] / fields[5])
    found = tiles * components
    for code, start, size in _markers(content, place):
        if code in (_COD, _COC):
            levels, block = _style(content, start, size, code, components)
            area = width * height * components
            found = max(found, tiles * components * (levels + 1), area // block)
        if found > most:
            break
    return found


def _markers(content: bytes, place: int) -> Iterator[tuple[int, int, int]]:
    """Code, place and size of each segment of the main header and of those of the tiles."""
    tile_end = None
    while place < len(content):
        (code,) = struct.unpack_from(">H", content, place)
        if code == _SOD:
            if tile_end is None:
                return
            place, tile_end = tile_end, None
            continue
        if code == _END:
            return
        (size,) = struct.unpack_from(">H", content, place + 2)
        if code == _SOT:
            (length,) = struct.unpack_from(">L", content, place + 6)
            # 0: until the end of the file.
            tile_end = place + length if length else len(content)
            if tile_end < place + 14:
                raise ValueError(f"a part of a tile has {length} bytes")
        elif code >> 8 != 0xFF or code & 0xFF not in _SEGMENTS or size < 2:
            raise ValueError(f"it has the marker {code:04x} of {size} bytes in a header")
        yield code, place + 4, size - 2
        place += 2 + size


def _style(content: bytes, start: int, size: int, code: int, components: int) -> tuple[int, int]:
    """Levels, and pixels of the smallest code block or precinct."""
    place = start + 5
    defined = content[start : start + 1]
    if code == _COC:
        place = start + (2 if components < 257 else 3)
        defined = content[place - 1 : place]
    levels, wide, high = struct.unpack_from(">3B", content, place)
    sizes = [(1 << min(wide, 8) + 2, 1 << min(high, 8) + 2)]
    if defined and defined[0] & 1:
        precincts = content[place + 5 : start + size]
        sizes += [(1 << (one & 15), 1 << (one >> 4)) for one in precincts]
    return levels, min(one[0] for one in sizes) * min(one[1] for one in sizes)

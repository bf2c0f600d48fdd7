"""Protocol buffers, read from their wire format without the library that writes them: the few
messages that matter here are ONNX models and SentencePiece's."""

from __future__ import annotations

from collections.abc import Iterator


def fields(message: memoryview) -> Iterator[tuple[int, int | bytes | memoryview]]:
    """Number and value of each field of a message: an int for a varint, bytes for a number of four
    or eight, and a view of the message for whatever has a length: texts and inner messages.

    Raises: ValueError for bytes that are no message."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == 2:
            length, place = _varint(message, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {place}")
        if length > len(message) - place:
            raise ValueError(f"it ends inside a field at byte {place}")
        part = message[place : place + length]
        yield number, part if wire == 2 else bytes(part)
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError(f"it ends inside a number at byte {place}")
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError(f"a number of more than ten bytes at byte {place}")

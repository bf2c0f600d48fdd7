"""From a path to what lies there, for paths and files of strangers. Where no system could have a
path, nothing is; and nothing but a regular file is opened, so that no read waits for ever."""

from __future__ import annotations

import os
import select
import stat
import time
from typing import BinaryIO

from paddle_recomp.errors import RecompError
from paddle_recomp.limits import limits, the_limit

Location = str | os.PathLike[str]


def is_file(path: Location) -> bool:
    """Whether a regular file is there. Unlike `Path.is_file` it never fails: not for a name that is
    too long, and not for a folder that is closed to us."""
    return os.path.isfile(path)


def is_folder(path: Location) -> bool:
    """Whether a folder is there; never fails, as `is_file`."""
    return os.path.isdir(path)


def open_file(path: Location, broken: type[RecompError], missing: type[RecompError]) -> BinaryIO:
    """A regular file, opened for reading.

    Raises: `missing` when nothing is there; `broken` for anything but a regular file, or one that
    cannot be opened."""
    try:
        # A pipe or a device is not even opened, as that may wait for ever, or do something.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise broken(f"{path} cannot be read: it is not a regular file")
        return open(path, "rb")
    except RecompError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise missing(f"there is no {path}") from None
    except OSError as error:
        raise broken(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError:  # A NUL in the path, or half a character.
        raise missing(f"there is no {os.fspath(path)!r}") from None


def read_file(
    path: Location,
    broken: type[RecompError],
    missing: type[RecompError],
    limit: str = "file_bytes",
    pipe: bool = False,
) -> bytes:
    """The content of a regular file, or with `pipe` of a pipe, such as a shell makes of `<(…)`.
    `limit` names the bound on its bytes.

    Raises: as `open_file`; `broken` for a file beyond the bound, for one that has more bytes than
    it says, as files of the system do that never end, and for a pipe that does not end in time."""
    try:
        if pipe and stat.S_ISFIFO(os.stat(path).st_mode):
            return _read_pipe(path, broken, limit)
    except RecompError:
        raise
    except (OSError, ValueError):
        pass  # `open_file` says why.
    with open_file(path, broken, missing) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > getattr(limits(), limit):
                raise broken(f"{path} has {size} bytes; {the_limit(limit)}")
            content = file.read(size + 1)
        except OSError as error:
            raise broken(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > size:
        raise broken(f"{path} cannot be read: it has more than the {size} bytes that it should")
    return content


def _read_pipe(path: Location, broken: type[RecompError], limit: str) -> bytes:
    """Raises: OSError; `broken` for a pipe that does not end in time, or has too much in it."""
    most, content = getattr(limits(), limit), bytearray()
    end = time.monotonic() + limits().pipe_seconds
    # A pipe that nobody writes into would not even be opened otherwise.
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while len(content) <= most:
            left = end - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise broken(
                    f"{path} cannot be read: it is a pipe that does not end; "
                    f"{the_limit('pipe_seconds')}"
                )
            piece = os.read(pipe, 1 << 20)
            if not piece:
                return bytes(content)
            content += piece
    finally:
        os.close(pipe)
    raise broken(f"{path} has more bytes; {the_limit(limit)}")

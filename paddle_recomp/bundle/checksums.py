"""SHA256SUMS: what every other file of a bundle must hash to, in the words of `sha256sum`.

That finds damage. It is no protection against forgery, for whoever can write a file can write its
sum as well: who needs that signs SHA256SUMS."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from paddle_recomp.errors import BundleError, BundleNotFoundError
from paddle_recomp.files import is_file
from paddle_recomp.json_files import one_line, read_bytes, shown

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True)
class Checksums:
    """The sums of a bundle's files; each file is compared once, when it is first asked for."""

    folder: Path
    expected: dict[str, str]
    """By name, relative to the folder, with `/`."""
    _right: set[str] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def read(cls, folder: Path) -> Checksums:
        """Raises: BundleNotFoundError without SHA256SUMS; BundleError for a line that is not a sum
        and a name, a name that comes twice, or one that leads out of the folder."""
        path = folder / SUMS
        try:
            text = read_bytes(path, BundleError, BundleNotFoundError).decode("utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} is not UTF-8: byte {error.start} is no text") from None
        expected: dict[str, str] = {}
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            match = _LINE.fullmatch(line)
            if match is None:
                raise BundleError(
                    f"{path}: line {number} is {shown(line)}; expected a sum, two spaces, a name"
                )
            digest, name = match.groups()
            check_name(path, name)
            if name in expected:
                raise BundleError(f"{path} has two lines for {shown(name)}")
            expected[name] = digest
        if not text.endswith("\n"):
            raise BundleError(f"{path} is cut off: its last line has no end")
        return cls(folder, expected)

    def verified(self, name: str) -> Path:
        """The path of a file whose content is what SHA256SUMS says.

        Raises: BundleNotFoundError when it is not there; BundleError when it has no sum, was
        changed, or cannot be read."""
        path = self.folder / name
        if name in self._right:
            return path
        if name not in self.expected:
            raise BundleError(f"{self.folder / SUMS} has no sum for {one_line(name)}")
        self.compare(name, checksum(path))
        self._right.add(name)
        return path

    def compare(self, name: str, found: str) -> None:
        """Raises: BundleError when a file has another sum than SHA256SUMS says, or has none."""
        if name not in self.expected:
            raise BundleError(f"{self.folder / SUMS} has no sum for {one_line(name)}")
        if found != self.expected[name]:
            raise BundleError(
                f"{self.folder / name} was changed: its sha256 is {found[:12]}…, but {SUMS} says "
                f"{self.expected[name][:12]}…"
            )


def checksum(path: Path) -> str:
    """The sha256 of a file.

    Raises: BundleNotFoundError, BundleError when it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleError(f"{path} cannot be read: it is not a regular file")
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except FileNotFoundError:
        raise BundleNotFoundError(f"there is no {path}, which the bundle needs") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


def write_checksums(folder: Path) -> None:
    """Writes SHA256SUMS over every other file of a folder, in the order of their names.

    Raises: BundleError as `checksum`, or for a name that is not one line of text."""
    names = sorted(p.relative_to(folder).as_posix() for p in files_below(folder))
    for name in names:
        check_name(folder, name)
    lines = [f"{checksum(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def files_below(folder: Path) -> Iterable[Path]:
    """Every file of a bundle but its SHA256SUMS."""
    return (p for p in folder.rglob("*") if is_file(p) and p != folder / SUMS)


def check_name(path: Path, name: str) -> None:
    """Refuses a file name that leads out of the folder, or that is no plain text.

    Raises: BundleError."""
    parts = PurePosixPath(name).parts
    outside = not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name
    # Longer ones are an error of the system's in some functions, and not in others.
    long = len(name) > 1000 or any(len(part.encode()) > 255 for part in parts)
    if long:
        raise BundleError(f"{path} names the file {shown(name)}, which is longer than names may be")
    if outside or not name.isprintable() or name != PurePosixPath(name).as_posix():
        raise BundleError(f"{path} names the file {shown(name)}, which is not inside the bundle")

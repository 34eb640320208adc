"""Files that are there whole or not at all: the one place where they are written so; and reading none but plain ones."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading, links to one followed. Raises OSError, at once, for a pipe, a device or a folder.

    What a folder from outside calls its model may be a pipe, which nobody ever writes to, or lead to /dev/zero.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no plain file")
    return os.fdopen(handle, "rb")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut. Raises OSError naming it."""
    try:
        _write(path, content)
    except OSError as error:
        error.filename = str(path)  # not that of the scratch file
        raise


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    sync_folder(path.parent)


def write_out(path: Path, content: bytes) -> None:
    """Write what a person asked for by this name: whole or not at all where it is a file, or nothing yet; into a pipe, a
    device or what a link leads to otherwise, which nothing shall take the place of. Raises OSError."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        path.write_bytes(content)
    else:
        write_whole(path, content)


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it is on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

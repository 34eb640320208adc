"""Files and folders that a command will write in the end: whether it can is found out before anything is measured."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from toolchain.errors import HostError


def require_writable(files: Iterable[Path | None], folders: Iterable[Path | None] = ()) -> None:
    """Raise HostError for the first of them that cannot be written; None stands for what was not asked for.

    Folders that are missing are made. A pipe or a device is not opened: somebody may wait at its other end.
    """
    for file in filter(None, files):
        if file.exists() and not file.is_file():
            if not os.access(file, os.W_OK):
                raise HostError(f"{file}: cannot be written (Permission denied); mend that and start again")
        else:
            _try(file, file.resolve().parent)
    for folder in filter(None, folders):
        _try(folder, folder)


def _try(asked: Path, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(prefix=".writing-", dir=folder).close()
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError)  # a file has the folder's name
        reason = os.strerror(errno.ENOTDIR) if in_the_way else error.strerror
        raise HostError(f"{asked}: cannot be written ({reason}); mend that and start again") from error

"""Files and folders that a command will write in the end: whether it can is found out before anything is measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from toolchain.errors import HostError


def require_writable(files: Iterable[Path | None], folders: Iterable[Path | None] = ()) -> None:
    """Raise HostError for the first of them that cannot be written; None stands for what was not asked for.

    Nothing is made yet, and a pipe or a device is not opened: somebody may wait at its other end.
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
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        tempfile.NamedTemporaryFile(prefix=".writing-", dir=folder).close()
    except OSError as error:
        raise HostError(
            f"{asked}: cannot be written ({error.strerror}); mend that and start again"
        ) from error

"""Archives that a package is made from, and that are given with their sha256: a root file system, a kernel."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolchain.errors import PackageError

_OTHERS = {
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}  # what a layer of an image is not


def content(path: Path | None, sha256: str | None, option: str) -> bytes:
    """The file's bytes, once they hash to what was pinned. Raises PackageError; `option`: "--base" or "--boot"."""
    if path is None or sha256 is None:
        raise PackageError(
            f"this target needs {option} FILE.tar and {option}-sha256 HEX ('make {option.strip('-')}' makes them)"
        )
    try:
        found = path.read_bytes()
    except OSError as e:
        raise PackageError(f"{path}: cannot be read ({e.strerror})") from e
    digest = hashlib.sha256(found).hexdigest()
    if digest != sha256.lower():
        raise PackageError(f"{path}: its sha256 is {digest}, not the pinned {sha256}; refused")
    if packed := next((name for start, name in _OTHERS.items() if found.startswith(start)), None):
        raise PackageError(f"{path}: is packed with {packed}; give a tar or tar.gz")
    return found


def names(archive: bytes, path: Path | None) -> frozenset[str]:
    """The names in a tar or tar.gz, without `./`. Raises PackageError when it is none."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            return frozenset(member.name.removeprefix("./") for member in tar)
    except (tarfile.TarError, EOFError, zlib.error) as e:
        raise PackageError(f"{path}: not a tar or tar.gz ({e})") from e


def files(archive: bytes, wanted: Mapping[str, str], path: Path | None) -> dict[str, bytes]:
    """{key: content} of the files that `wanted` names by the path in a tar. Raises PackageError for a missing one."""
    found = {}
    keys = {name: key for key, name in wanted.items()}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            key = keys.get(member.name.removeprefix("./"))
            if key is not None and (file := tar.extractfile(member)):
                found[key] = file.read()
    if missing := [name for key, name in wanted.items() if key not in found]:
        raise PackageError(f"{path}: lacks {', '.join(missing)}")
    return found


def below(archive: bytes, folder: str, path: Path | None) -> dict[str, bytes]:
    """{path: content} of the files in a folder of a tar or tar.gz. Raises PackageError when it is none."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            members = ((member.name.removeprefix("./"), member) for member in tar if member.isfile())
            return {
                name: file.read()
                for name, member in members
                if name.startswith(f"{folder}/") and (file := tar.extractfile(member))
            }
    except (tarfile.TarError, EOFError, zlib.error) as e:
        raise PackageError(f"{path}: not a tar or tar.gz ({e})") from e


def unpack(base: bytes, root: Path) -> None:
    """Unpack a base for reading, its device files left out. Raises PackageError for a name that leaves it."""

    def kept(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        for member in archive:
            if member.name.startswith("/") or ".." in member.name.split("/"):
                raise PackageError(f"the base holds {member.name!r}, which leaves the folder; refused")
            if member.isfile() or member.isdir() or member.issym() or member.islnk():
                member.uid = member.gid = 0
                yield member

    root.mkdir()
    try:
        with tarfile.open(fileobj=io.BytesIO(base)) as archive:
            archive.extractall(root, members=kept(archive), filter="tar")
    except tarfile.TarError as e:  # a link that leads out of the folder, among others
        raise PackageError(f"the base cannot be unpacked ({e}); refused") from e

"""Archives whose bytes depend on their content and one time only: tar, gzip, xz, ar, cpio and zip.

Entries are sorted, owned by root, files 0644 (0755 where said) and folders 0755, all of one time.
See https://reproducible-builds.org/docs/archives and ar(5).
"""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping

Tree = Mapping[str, bytes]  # {path with slashes, relative: content}


def tar(tree: Tree, epoch: int, *, prefix: str = "", executable: Collection[str] = ()) -> bytes:
    """A GNU tar of `tree`, its folders first named; `executable`: paths (as in `tree`) with mode 0755."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted({*tree, *_folders(tree)}):
            about = tarfile.TarInfo(prefix + name)
            about.mtime = epoch
            about.uname = about.gname = "root"
            if name in tree:
                about.size = len(tree[name])
                about.mode = 0o755 if name in executable else 0o644
                archive.addfile(about, io.BytesIO(tree[name]))
            else:
                about.type = tarfile.DIRTYPE
                about.mode = 0o755
                archive.addfile(about)
    return buffer.getvalue()


def _folders(tree: Tree) -> Iterator[str]:
    for name in tree:
        parts = name.split("/")
        yield from ("/".join(parts[:count]) for count in range(1, len(parts)))


def gzipped(data: bytes) -> bytes:
    """gzip (RFC 1952) at its best level, without name and time."""
    return gzip.compress(data, compresslevel=9, mtime=0)


def xzipped(data: bytes) -> bytes:
    """xz with CRC32, which dpkg and kernels read; level 2 is a third of the time of 6 for a few percent more bytes."""
    return lzma.compress(data, check=lzma.CHECK_CRC32, preset=2)


def ar(members: Mapping[str, bytes], epoch: int) -> bytes:
    """A common ar archive, members in the order given; names of at most 15 letters."""
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        parts.append(f"{name:<16}{epoch:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode())
        parts += [content, b"\n" if len(content) % 2 else b""]
    return b"".join(parts)


def cpio(tree: Tree, epoch: int, folders: Collection[str], executable: Collection[str]) -> bytes:
    """A cpio archive ("newc") as kernels take it, of `tree` and of empty `folders`; cpio(5)."""
    names = sorted({*tree, *folders, *_folders(tree)})
    parts = []
    for number, name in enumerate([*names, "TRAILER!!!"], start=1):
        content = tree.get(name, b"")
        kind = 0o100000 if name in tree else 0o040000
        mode = kind | (0o755 if name in executable or name not in tree else 0o644)
        fields = [number, mode, 0, 0, 1, epoch, len(content), 0, 0, 0, 0, len(name.encode()) + 1, 0]
        head = b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def zipped(tree: Tree, epoch: int) -> bytes:
    """A zip of `tree`; times before 1980 count as 1980."""
    when = max(time.gmtime(epoch)[:6], (1980, 1, 1, 0, 0, 0))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(tree):
            about = zipfile.ZipInfo(name, when)
            about.external_attr = 0o100644 << 16
            about.compress_type = zipfile.ZIP_DEFLATED
            about.create_system = 3
            archive.writestr(about, tree[name])
    return buffer.getvalue()

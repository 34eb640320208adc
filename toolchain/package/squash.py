"""A squashfs of a tree, byte-reproducible: for update bundles and images that mount it read-only."""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolchain.package import tools
from toolchain.package.archive import Tree


def write(tree: Tree, epoch: int, out: Path) -> None:
    """Make `out` from `tree`; everything root's. Raises HostError without mksquashfs, PackageError when it fails."""
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        spread(tree, Path(scratch))
        pack(Path(scratch), epoch, out, "xz")


def pack(folder: Path, epoch: int, out: Path, compression: str) -> None:
    """As `write`, of what lies in a folder; no time in it is later than `epoch`."""
    # Times come from SOURCE_DATE_EPOCH; mksquashfs' own options would clash with it.
    words: list[str | Path] = [
        "mksquashfs",
        folder,
        out,
        "-all-root",
        "-noappend",
        "-no-progress",
        "-no-xattrs",
    ]
    tools.run([*words, "-comp", compression, "-processors", "1"], epoch=epoch)


def spread(tree: Tree, folder: Path) -> None:
    """Write the files of a tree below an existing folder, with modes of their own, whatever the umask."""
    folder.chmod(0o755)
    for name, content in tree.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(0o755)
        path.write_bytes(content)
        path.chmod(0o644)

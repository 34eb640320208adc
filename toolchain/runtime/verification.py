"""Whether a bundle is the one that was measured: its files by hash, its answers on this machine."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.runtime import external, host, manifest, sealed
from toolchain.runtime.errors import BundleError, VerificationError
from toolchain.runtime.manifest import Manifest
from toolchain.runtime.session import Session

_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    OverflowError,  # a count without end
    MemoryError,  # an array that claims more than there is
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # as numpy writes them
# Sixteen pictures of 20 megapixels; numpy reads no more of a member than its header says.
GOLDEN_BYTES = 1 << 30


@dataclass(frozen=True)
class Verification:
    """A bundle that was found to be as measured.

    identity, files: of the manifest, and how many files were hashed. golden: pictures answered, agreeing of
    them with the same top label. worst: largest difference of probabilities; tolerance: the one allowed on
    this machine's ISA family `isa`; made_on: the family of the golden answers.
    """

    identity: str
    files: int
    golden: int
    agreeing: int
    worst: float
    tolerance: float
    isa: str
    made_on: str


@dataclass(frozen=True)
class Golden:
    """Pictures, uint8 [H, W, 3] each, and the model's raw probabilities for them, float32 [count, C]."""

    pictures: tuple[NDArray[np.uint8], ...]
    probabilities: NDArray[np.float32]


def sha256_of(path: Path) -> str:
    """A file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, declared: Manifest) -> None:
    """Raise VerificationError naming every file that is missing, changed, not listed, a link or no plain file."""
    problems = [problem for _, problem in sorted(_folder_problems(folder, declared))]
    if manifest.identity(declared.raw, declared.files) != declared.identity:
        problems.append(f"{manifest.MANIFEST}: its identity is not that of its fields and files")
    if problems:
        raise VerificationError(f"{folder}: not the bundle that was measured: {'; '.join(problems)}")


def check_file(folder: Path, name: str, declared: Manifest) -> None:
    """Raise VerificationError unless one file is there, listed and unchanged."""
    path = folder / name
    if name not in declared.files:
        raise VerificationError(f"{path}: not listed in {manifest.MANIFEST}")
    if problem := _problem(path, declared.files[name]):
        raise VerificationError(f"{path}: {problem}")


def check_golden(
    golden: Golden, session: Session, declared: Manifest, isa: str | None = None, at_once: int = 1
) -> Verification:
    """Ask for the golden pictures, each in a call of its own, and compare; `isa` as in `Bundle.verify`.

    at_once: calls beside each other; an answer is the same whatever runs beside it.

    Raises VerificationError naming each picture whose probabilities differ by more than this ISA family's
    tolerance (or are not finite), and when the manifest states no tolerance for it.
    """
    isa = isa or host.isa()
    if isa not in declared.tolerances:
        known = ", ".join(sorted(declared.tolerances))
        raise VerificationError(
            f"{declared.name}: states no tolerance for this machine's ISA {isa!r} (only {known})"
        )
    tolerance = declared.tolerances[isa]
    answers = np.stack(_asked(golden, session, declared.input.name, at_once))
    if answers.shape != golden.probabilities.shape:
        raise VerificationError(
            f"{declared.name}: answers {answers.shape[1:]}, golden are {golden.probabilities.shape[1:]}"
        )
    differences = np.abs(answers.astype(np.float64) - golden.probabilities).max(axis=1)
    wrong = np.flatnonzero(~(differences <= tolerance))  # NaN counts as wrong
    if wrong.size:
        named = ", ".join(f"picture_{index} by {differences[index]:.3g}" for index in wrong)
        raise VerificationError(
            f"{declared.name}: golden answers differ: {named} (allowed on {isa}: {tolerance:g})"
        )
    agreeing = int((answers.argmax(1) == golden.probabilities.argmax(1)).sum())
    return Verification(
        declared.identity, len(declared.files), len(answers), agreeing, float(differences.max()), tolerance,
        isa, declared.made_on,
    )  # fmt: skip


def _asked(golden: Golden, session: Session, name: str, at_once: int) -> list[NDArray[Any]]:
    """The answers, in the order of the pictures. With one at once no thread is started, which would want a heap."""
    feeds = [{name: np.ascontiguousarray(picture[None])} for picture in golden.pictures]
    if at_once == 1:
        return [session.run(feed)[0][0] for feed in feeds]
    with ThreadPoolExecutor(at_once) as pool:
        return [answer[0][0] for answer in pool.map(session.run, feeds)]


def read_golden(path: Path) -> Golden:
    """Read `golden.npz`: count, picture_0 …, probabilities.

    Raises BundleError when it is not of that form, or unpacks to more than GOLDEN_BYTES.
    """
    return _golden(path, str(path))


def read_golden_bytes(content: bytes, label: str) -> Golden:
    """As `read_golden`, of a file's content; `label` names it in errors."""
    return _golden(BytesIO(content), label)


def _golden(source: Path | BytesIO, path: str) -> Golden:
    try:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if any(member.compress_type not in _PACKED or member.flag_bits & 1 for member in members):
                raise BundleError(f"{path}: is packed in a way that golden answers are not")
        if size > GOLDEN_BYTES:
            raise BundleError(f"{path}: unpacks to {size} bytes, more than the {GOLDEN_BYTES} allowed")
        if isinstance(source, BytesIO):
            source.seek(0)
        with np.load(source, allow_pickle=False) as arrays:
            count = int(arrays["count"])
            pictures = tuple(np.asarray(arrays[f"picture_{index}"]) for index in range(count))
            probabilities = np.asarray(arrays["probabilities"]).astype(np.float32)
    except _UNREADABLE as e:
        raise BundleError(f"{path}: not readable golden answers ({' '.join(str(e).split())})") from e
    fit = all(p.dtype == np.uint8 and p.ndim == 3 and p.shape[2] == 3 and p.size for p in pictures)
    if count < 1 or not fit or probabilities.ndim != 2 or len(probabilities) != count:
        raise BundleError(
            f"{path}: needs pictures uint8 [H, W, 3] and one row of probabilities for each, of 1 or more"
        )
    return Golden(pictures, probabilities)


def _folder_problems(folder: Path, declared: Manifest) -> Iterator[tuple[str, str]]:
    """(name, sentence) for everything in the folder that is not as listed, and what is listed and missing."""
    present = set(_below(folder, ""))
    for name in present - set(declared.files) - {manifest.MANIFEST}:
        yield name, f"{name}: not listed in {manifest.MANIFEST}"
    for name, digest in declared.files.items():
        if problem := _problem(folder / name, digest):
            yield name, f"{name}: {problem}"
    if (folder / manifest.MANIFEST).is_symlink():
        yield manifest.MANIFEST, f"{manifest.MANIFEST}: is a link"


def _below(folder: Path, prefix: str) -> Iterator[str]:
    """Names of everything but folders, below `folder`, with slashes; links are not followed."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield prefix + entry.name


def _problem(path: Path, digest: str) -> str | None:
    """What is wrong with a listed file, or None."""
    try:
        found = path.lstat()
        kind = found.st_mode
        if not stat.S_ISREG(kind):
            return "is a link" if stat.S_ISLNK(kind) else "is no plain file"
        if found.st_size > external.MODEL_BYTES:  # told before it is hashed
            return f"has {found.st_size} bytes, more than the {external.MODEL_BYTES} allowed"
        if sha256_of(path) == digest:
            return None
        if sealed.starts_sealed(path) and hashlib.sha256(sealed.read(path)).hexdigest() == digest:
            return None
        return "its content differs from its sha256"
    except VerificationError as e:  # sealed with another key, or changed
        return str(e)
    except FileNotFoundError:
        return "is missing"
    except OSError as e:
        return f"cannot be read ({e.strerror})"

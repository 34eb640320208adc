"""The libraries of a device, out of a folder of wheels: chosen by processor, checked file by file, unpacked."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

from toolchain.errors import PackageError

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
SERVER = (
    "click",
    "h11",
    "httptools",
    "uvicorn",
    "uvloop",
)  # what `serve` needs: uvicorn, httptools and uvloop, with their needs
# Carried when their wheels lie there as well ('make device-wheels GRPC=1'): what `serve --grpc-port` needs.
GRPC = ("grpcio", "typing_extensions")
_PURE = "-none-any"
# What no answer needs: tests, headers, sources of compiled modules, conversion tools of onnxruntime, its C library, which
# its Python module holds a second time, and what pillow draws text and talks to Tk with.
_NEEDLESS = re.compile(
    r"(^|/)tests?/|^onnxruntime/(tools|transformers|quantization|datasets|backend)/|^numpy/(f2py|_core/include)/"
    r"|^onnxruntime/capi/libonnxruntime\.so|^numpy/_core/lib/|\.(pyi|c|h|pxd|pyx)$|^[^/]+\.data/"
    r"|^numpy/_core/_(simd|\w+_tests)\.|^PIL/_imaging(ft|tk)\.|^pillow\.libs/lib(freetype|harfbuzz|brotli|png16)"
)
_LICENCE = re.compile(r"licen[cs]e|copying|notice", re.IGNORECASE)


@dataclass(frozen=True)
class Library:
    """An unpacked wheel: name and version as it says, sha256 of the wheel, its files and its licence texts."""

    name: str
    version: str
    licence: str
    sha256: str
    files: dict[str, bytes]
    licences: dict[str, bytes]


def libraries(folder: Path, arch: str, runtime: str) -> tuple[Library, ...]:
    """What a device needs with `runtime` ("onnxruntime" or "onnxruntime-gpu") on `arch`, from wheels in `folder`; GRPC too.

    Raises PackageError when one is missing or there twice, is damaged, or is for different Pythons.
    """
    if not folder.is_dir():
        raise PackageError(f"{folder}: no such folder of wheels; 'make device-wheels' fetches them")
    wanted = ["numpy", runtime, "pillow", *SERVER]
    if any(folder.glob(f"{GRPC[0]}-*.whl")):
        wanted += GRPC
    paths = [_one(folder, name, MACHINES[arch]) for name in wanted]
    if len({_python(path) for path in paths if not path.stem.endswith(_PURE)}) > 1:
        raise PackageError(f"{folder}: the wheels are for different Pythons: {', '.join(map(str, paths))}")
    return tuple(_unpacked(path) for path in paths)


def python_of(folder: Path, arch: str) -> tuple[int, int]:
    """The Python that numpy's wheel for `arch` is built for, (3, 11). Raises PackageError as `libraries`."""
    return _python(_one(folder, "numpy", MACHINES[arch]))


def _one(folder: Path, name: str, machine: str) -> Path:
    stem = name.replace("-", "_")
    found = sorted(p for p in folder.glob(f"{stem}-*.whl") if p.stem.endswith((machine, _PURE)))
    if len(found) != 1:
        what = "no wheel" if not found else f"{len(found)} wheels"
        raise PackageError(
            f"{folder}: {what} of {name} for {machine}; exactly one is needed ('make device-wheels' fetches it)"
        )
    return found[0]


def _python(path: Path) -> tuple[int, int]:
    found = re.search(r"-cp3(\d+)-", path.name)
    if found is None:
        raise PackageError(f"{path}: not named as a wheel for one CPython (…-cp311-…)")
    return 3, int(found[1])


def _unpacked(path: Path) -> Library:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            about = next(name for name in names if name.endswith(".dist-info/METADATA"))
            record = archive.read(about.replace("METADATA", "RECORD"))
            meta = BytesParser().parsebytes(archive.read(about), headersonly=True)
            digests = {row[0]: row[1] for row in csv.reader(io.StringIO(record.decode())) if len(row) > 1}
            files = dict(_checked(archive, names, digests, path))
    except (zipfile.BadZipFile, StopIteration, KeyError, OSError) as e:
        raise PackageError(f"{path}: not a whole wheel ({e!r}); fetch it again") from e
    licences = {
        name.replace("/", "-"): content
        for name, content in files.items()
        if _LICENCE.search(name.rpartition("/")[2]) and not name.endswith((".py", ".so"))
    }
    return Library(
        name=str(meta["Name"]),
        version=str(meta["Version"]),
        licence=_licence(meta["License-Expression"] or meta["License"] or "not stated"),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        files={name: content for name, content in files.items() if not _NEEDLESS.search(name)},
        licences=licences,
    )


def _licence(text: str) -> str:
    """The first line of what a wheel says: some put a whole text there."""
    return str(text).strip().splitlines()[0]


def _checked(
    archive: zipfile.ZipFile, names: list[str], digests: dict[str, str], path: Path
) -> Iterator[tuple[str, bytes]]:
    """Files whose content is that of RECORD; names that leave the folder are refused."""
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise PackageError(f"{path}: holds {name!r}, which leaves the folder; refused")
        content = archive.read(name)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        said = digests.get(name, "")
        if said != f"sha256={digest}" and not name.endswith(
            (".dist-info/RECORD", "RECORD.jws", "RECORD.p7s")
        ):
            raise PackageError(f"{path}: {name} is not what its RECORD says; fetch the wheel again")
        yield name, content

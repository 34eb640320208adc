"""The machine that answers are computed and timed on, as plain values for the record."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from toolchain.runtime import providers
from toolchain.runtime.errors import RecordError

_CPUINFO = Path("/proc/cpuinfo")
_DEVICE_TREE = Path("/proc/device-tree/model")
_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "numpy", "pillow")
# The instruction sets that decide which of ONNX Runtime's kernels run, in /proc/cpuinfo's spelling.
_FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})
# Of the time in which something was timed, spent waiting for a core: above it figures are wrong; a quiet machine has 0.01.
CONTENDED = 0.05
# What decides how ONNX Runtime lays out tensors: blocks of 16 channels instead of 8, and float16 kernels.
_WIDE = {"x86": "avx512f", "arm64": "asimdhp"}


def isa() -> str:
    """The ISA family of this machine, within which int8 answers agree: see `family`."""
    return family(platform.machine(), _features())


def has_vnni() -> bool:
    """Whether this x86 processor multiplies 8-bit integers without saturating in between."""
    return isa() == "x86-vnni"


def family(machine: str, features: Collection[str]) -> str:
    """Return "x86-vnni", "x86-avx2", "x86-other", "arm64", or the machine's name in lower case.

    Without VNNI, x86 adds pairs of u8 x s8 products in 16 bits, which saturate: AVX-512 without VNNI counts
    as "x86-avx2". arm64 never saturates, with or without its dot product instructions.
    """
    name = machine.lower()
    if name in ("x86_64", "amd64", "i386", "i686"):
        if _VNNI & set(features):
            return "x86-vnni"
        return "x86-avx2" if "avx2" in features else "x86-other"
    return "arm64" if name in ("aarch64", "arm64") else name


def layout() -> str:
    """The processors that ONNX Runtime rewrites a graph for as it does here: "x86", "x86-avx512f", "arm64", …"""
    name = isa().partition("-")[0]
    wide = _WIDE.get(name)
    return f"{name}-{wide}" if wide in _features() else name


def facts() -> dict[str, Any]:
    """What a figure measured here must be read with, JSON-able.

    cpu (name), isa, features, cores (that this process may use), load (1, 5 and 15 minutes), memory_bytes,
    gpus (names), kernel, python, libraries (name -> version).
    """
    return {
        "cpu": _cpu_name(),
        "isa": isa(),
        "features": [name for name in _FEATURES if name in _features()],
        "cores": cores(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": list(providers.gpus()),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: found for name in _LIBRARIES if (found := distribution_version(name))},
    }


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def waited() -> int | None:
    """Nanoseconds since it began in which the calling thread was ready and had no core; None where the kernel doesn't tell.

    Linux's Documentation/scheduler/sched-stats.rst, /proc/<pid>/schedstat: the second figure.
    """
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None


class Contention:
    """A context. share: of its time, how much the calling thread was ready and had no core; None where not told."""

    share: float | None = None

    def __enter__(self) -> Contention:
        self._began, self._waited = perf_counter_ns(), waited()
        return self

    def __exit__(self, *_: object) -> None:
        took, after = perf_counter_ns() - self._began, waited()
        if self._waited is not None and after is not None:
            self.share = round((after - self._waited) / max(took, 1), 4)


def fingerprint(given: Mapping[str, Any]) -> str:
    """Which `facts` may be compared: those of one processor type, ISA, cores, memory (whole GiB) and GPUs.

    Versions of kernel, Python and libraries are not in it: a change of theirs is what a history shall show.
    Raises RecordError for facts of other types.
    """
    if not isinstance(given, Mapping):
        raise RecordError("host must be an object")
    size = given.get("memory_bytes") or 0
    if not isinstance(size, int) or not 0 <= size < 2**63:
        raise RecordError(f"host.memory_bytes must be a whole number, not {size!r}")
    for name in ("features", "gpus"):
        if not isinstance(given.get(name) or [], list | tuple):
            raise RecordError(f"host.{name} must be a list, not {given[name]!r}")
    memory = round(size / 2**30)
    features = "".join(sorted(map(str, given.get("features") or ())))
    told = f"{features}\0{sorted(map(str, given.get('gpus') or ()))}"
    kind = hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()
    return f"{given.get('cpu')}, {given.get('isa')}, {given.get('cores')} cores, {memory} GiB, {kind[:8]}"


def onnxruntime(given: Mapping[str, Any]) -> str:
    """The onnxruntime of some `facts`: "onnxruntime-gpu 1.31.1", or "an unknown onnxruntime"."""
    libraries = given.get("libraries")
    found = libraries.items() if isinstance(libraries, Mapping) else ()
    return ", ".join(f"{name} {version}" for name, version in found if name.startswith("onnxruntime")) or (
        "an unknown onnxruntime"
    )


def onnxruntimes() -> tuple[str, ...]:
    """The distributions of onnxruntime that are installed, by name."""
    return tuple(name for name in ("onnxruntime", "onnxruntime-gpu") if distribution_version(name))


def distribution_version(name: str) -> str | None:
    """The version of an installed distribution (as pip names it), or None."""
    # Here, for it imports many modules, and answering needs no version.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _features() -> frozenset[str]:
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def _cpu_name() -> str:
    """The processor's name; Arm kernels give none, but often the board's."""
    if name := _cpuinfo().get("model name"):
        return name
    try:
        return _DEVICE_TREE.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return platform.processor() or platform.machine()

"""What this machine can do, and the command that mends what it cannot."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from toolchain.record import JSON

_LIBRARIES = (
    "torch", "torchvision", "timm", "torch-pruning", "optimum", "optimum-onnx", "transformers", "onnx",
    "onnxscript", "onnxruntime-gpu", "onnxruntime", "safetensors", "numpy", "pillow", "click",
)  # fmt: skip
_NEEDED_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """One thing looked at. state: "ok", "note" (works, but know this) or "broken"; mend: what to do."""

    name: str
    state: str
    what: str
    mend: str = ""


@dataclass(frozen=True)
class Health:
    """Everything `examine` found."""

    findings: tuple[Finding, ...]

    @property
    def broken(self) -> bool:
        """Whether something must be mended before runs can work."""
        return any(finding.state == "broken" for finding in self.findings)

    def as_json(self) -> list[dict[str, JSON]]:
        """The findings as plain values."""
        return [asdict(finding) for finding in self.findings]

    def text(self) -> str:
        """The findings as a table, each mend below its finding."""
        lines = []
        for finding in self.findings:
            lines.append(f"{finding.state:7} {finding.name:18} {finding.what}")
            if finding.mend:
                lines.append(f"{'':26} -> {finding.mend}")
        return "\n".join(lines)


def examine() -> Health:
    """Look at Python, libraries, processor, ONNX Runtime's providers, torch's GPU, disk and data."""
    found = [_python(), *_libraries(), _runtime()]
    if any(finding.state == "broken" for finding in found):
        return Health(tuple(found))  # what follows needs them
    return Health((*found, _processor(), *_providers(), _torch(), _telemetry(), _disk(), _data()))


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    tried = (3, 11) <= sys.version_info[:2] <= (3, 12)
    what = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding(
        "python", "ok" if tried else "note", what, "" if tried else "3.11 and 3.12 are the ones tried"
    )


def _libraries() -> list[Finding]:
    found = {name: installed(name) for name in _LIBRARIES}
    have = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    runtimes = {"onnxruntime", "onnxruntime-gpu"}
    missing = [name for name, number in found.items() if not number and name not in runtimes]
    listed = [Finding("libraries", "ok", have)]
    if missing:
        mend = f"pip install -c constraints.txt {' '.join(missing)}"
        listed.append(Finding("libraries missing", "broken", ", ".join(missing), mend))
    return listed


def _runtime() -> Finding:
    have = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed(name)]
    if len(have) == 1:
        return Finding("onnxruntime", "ok", f"{have[0]} {installed(have[0])}, the only one installed")
    if not have:
        return Finding(
            "onnxruntime", "broken", "not installed", "pip install -c constraints.txt onnxruntime-gpu"
        )
    mend = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install -c constraints.txt onnxruntime-gpu"
    return Finding("onnxruntime", "broken", "both distributions are installed and overwrite each other", mend)


def _processor() -> Finding:
    from toolchain.runtime import host

    facts, isa = host.facts(), host.isa()
    what = f"{facts['cpu']}, {facts['cores']} cores, {isa}"
    if isa.startswith("x86") and not host.has_vnni():
        note = "8-bit u8s8 saturates on this processor: 'quantize' chooses weights that cannot (weight_bits: auto)"
        return Finding("processor", "note", what + ", no VNNI", note)
    return Finding("processor", "ok", what)


def _providers() -> list[Finding]:
    from toolchain.runtime import providers

    found = []
    for name, why_not in providers.usable().items():
        mend = "only needed for a GPU: NVIDIA driver 580 or newer, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
        state = "ok" if why_not is None else "note"
        found.append(Finding(f"provider {name}", state, why_not or "usable", "" if why_not is None else mend))
    return found


def _torch() -> Finding:
    if installed("torch") is None:
        return Finding(
            "training device", "broken", "torch is not installed", "pip install -c constraints.txt torch"
        )
    from toolchain.device import select

    device = select("auto")
    return Finding("training device", "ok", f"{device.kind} ({device.name}, {device.threads} threads)")


def _telemetry() -> Finding:
    off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    return Finding(
        "telemetry", "ok" if off else "note", "ONNX Runtime's is off" if off else "ONNX Runtime's is on",
        "" if off else "export ORT_DISABLE_TELEMETRY=1",
    )  # fmt: skip


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    state = "ok" if free > _NEEDED_BYTES else "broken"
    return Finding(
        "disk", state, f"{free / 1e9:.1f} GB free here", "" if state == "ok" else "free some space"
    )


def _data() -> Finding:
    folder = os.environ.get("TOOLCHAIN_DATA")
    if folder and Path(folder).is_dir():
        return Finding("TOOLCHAIN_DATA", "ok", folder)
    what = f"{folder}: no such folder" if folder else "not set"
    return Finding("TOOLCHAIN_DATA", "note", what, "only the recipes on example data need it")

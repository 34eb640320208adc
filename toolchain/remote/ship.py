"""The near side: what is packed, how ssh is called, and what the answers mean."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from toolchain import __version__
from toolchain.errors import HostError, ToolchainError, VerificationError
from toolchain.remote.driver import LACKING, LEAST, SIGNALLED
from toolchain.runtime import bench_arguments, manifest
from toolchain.runtime.bench_asked import Asked, find
from toolchain.runtime.bench_record import BenchRecord, parse

_SSH_FAILED = 255
_NO_COMMAND = 127
_STOPPED = 130  # by Ctrl-C there; what was finished came home
_CONNECT_SECONDS = 15
# ssh asks the other side every so many seconds, and ends when as many questions in a row go unanswered.
_ALIVE_SECONDS, _UNANSWERED = 15, 4


@dataclass(frozen=True)
class Remote:
    """ssh://user@host[:port]; identity: a private key's file; python: the interpreter there; keep: leave the
    folder there and say where it is."""

    address: str
    identity: Path | None = None
    python: str = "python3"
    keep: bool = False

    def command(self, words: list[str]) -> list[str]:
        """The ssh command that runs `words` there. Raises ToolchainError for an address of another form."""
        host: str | None
        try:
            parts = urlsplit(self.address)
            host, port = _host(parts.netloc), parts.port
        except ValueError:
            host = port = None
            parts = None
        plain = (
            parts is not None and parts.scheme == "ssh" and parts.path in ("", "/") and parts.password is None
        )
        if (
            not plain
            or parts is None
            or not host
            or host.startswith("-")
            or (parts.username or "").startswith("-")
        ):
            raise ToolchainError(f"--on {self.address}: give ssh://user@host or ssh://user@host:port")
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
        options += ["-o", f"ServerAliveInterval={_ALIVE_SECONDS}", "-o", f"ServerAliveCountMax={_UNANSWERED}"]
        options += [] if port is None else ["-p", str(port)]
        if self.identity is not None:
            options += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
        user = [] if parts.username is None else ["-l", parts.username]
        return ["ssh", *options, *user, "--", host, shlex.join(words)]


def _host(netloc: str) -> str:
    """The host of [user@]host[:port] or [user@][IPv6]:port, in the letters that ssh's configuration may name."""
    place = netloc.rpartition("@")[2]
    return place[1:].partition("]")[0] if place.startswith("[") else place.partition(":")[0]


def bench_on(remote: Remote, model: Path, asked: Asked) -> BenchRecord:
    """Time a model there, as `runtime.bench.bench` does here, and return its record.

    Only toolchain/runtime/ and the model's files are sent; with them goes nothing of the pictures here.
    Raises ToolchainError for what cannot be sent, HostError when ssh fails or the machine lacks something (the
    sentence says what to install there), and otherwise what the bench there raised.
    """
    if asked.pictures is not None:
        raise ToolchainError(
            "--pictures stay on this machine: with --on leave them out (noise, or a bundle's own)"
        )
    found = find(model, asked.file)  # told here, before anything is sent
    files = _files(model, found.path, found.hashes)
    name = "model" if model.is_dir() else f"model/{found.path.name}"
    job = {
        "needed": _needed(asked),
        "words": ["bench", name, *bench_arguments.words(asked)],
        "keep": remote.keep,
    }
    driver = (resources.files("toolchain.remote") / "driver.py").read_text(encoding="utf-8")
    command = remote.command([remote.python, "-c", driver, json.dumps(job)])
    with tempfile.TemporaryFile() as package:
        _pack(package, files)
        code, output, errors = _run(command, package)
    record = _record(remote, code, output, errors)
    named = replace(record.model, name=found.model.name)  # there its folder is another
    return replace(record, model=named, toolchain=__version__, notes=(*record.notes, *_kept(errors)))


def _needed(asked: Asked) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the runtime imports: {module: (what pip calls it, least version)}."""
    runtime = "onnxruntime-gpu" if set(asked.providers) - {"cpu"} else "onnxruntime"
    least = manifest.numbers_of(manifest.MINIMUM_ONNXRUNTIME)
    return {"numpy": ("numpy", ()), "PIL": ("pillow", ()), "onnxruntime": (runtime, least)}


def _files(model: Path, path: Path, hashes: Mapping[str, str]) -> dict[str, Path]:
    """{name in the package: file}: the runtime's sources, and the model with its external weights."""
    runtime = Path(str(resources.files("toolchain.runtime")))
    sources = sorted(runtime.rglob("*.py"))
    sent = {f"toolchain/runtime/{source.relative_to(runtime).as_posix()}": source for source in sources}
    parts = list(hashes)
    if model.is_dir():
        declared = manifest.read(model)
        parts += [manifest.MANIFEST, declared.golden]
    return sent | {f"model/{part}": path.parent / part for part in parts}


def _pack(package: IO[bytes], files: Mapping[str, Path]) -> None:
    with tarfile.open(fileobj=package, mode="w|") as archive:
        # Empty, so that a toolchain that is installed there cannot come first.
        archive.addfile(tarfile.TarInfo("toolchain/__init__.py"))
        for name, file in files.items():
            about = tarfile.TarInfo(name)
            about.size = file.stat().st_size
            with file.open("rb") as content:
                archive.addfile(about, content)
    package.seek(0)


def _run(command: list[str], package: IO[bytes]) -> tuple[int, str, str]:
    """Start ssh, send the package, and hold its input open until it has answered."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=errors)
        except FileNotFoundError as e:
            raise HostError("ssh is not installed on this machine: apt-get install openssh-client") from e
        with process:
            if process.stdin is None:
                raise HostError("ssh was started without an input")
            with suppress(BrokenPipeError):  # it ended early: its exit code and words say why
                while chunk := package.read(1 << 20):
                    process.stdin.write(chunk)
                process.stdin.flush()
            process.wait()
            with suppress(BrokenPipeError):
                process.stdin.close()
        output.seek(0)
        errors.seek(0)
        return (
            process.returncode,
            output.read().decode(errors="replace"),
            errors.read().decode(errors="replace"),
        )


def _record(remote: Remote, code: int, output: str, errors: str) -> BenchRecord:
    where = remote.address
    said = [line for line in errors.splitlines() if line.strip() and not line.startswith("kept: ")]
    last = said[-1].strip() if said else f"exit code {code}"
    told = list(_objects(output))
    if code == LACKING and (missing := [one for one in told if _is_lacking(one)]):
        raise HostError(_lacking(remote, missing[-1]))
    if code == _SSH_FAILED:
        raise HostError(f"{where}: cannot be reached, or the connection broke ({last})")
    if code == _NO_COMMAND:
        raise HostError(
            f"{where}: has no {remote.python}; install python3 there, or name another with --python"
        )
    records = [one for one in told if "kind" in one]
    if code - SIGNALLED in set(signal.Signals) and not (code == _STOPPED and records):
        name = signal.Signals(code - SIGNALLED).name
        raise HostError(f"{where}: the bench there was ended by {name}; it may have run out of memory")
    if code and not (
        code in (HostError.exit_code, _STOPPED) and records
    ):  # with a record some of it was measured
        kinds = {2: ToolchainError, 3: VerificationError}
        left = "".join(f" ({line})" for line in _kept(errors))
        raise kinds.get(code, HostError)(f"{where}: {last.removeprefix('Error: ')}{left}")
    if not records:
        raise HostError(f"{where}: sent no record home ({last})")
    return parse(records[-1], where)


def _objects(output: str) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines; a shell's start-up files may have printed others."""
    for line in output.splitlines():
        if line.startswith("{"):
            with suppress(ValueError, RecursionError):
                yield json.loads(line)


def _is_lacking(told: Mapping[str, Any]) -> bool:
    """Whether this is what the driver says when something is missing."""
    names = told.get("lacking")
    return isinstance(names, list) and all(
        isinstance(one, str) for one in (*names, told.get("python"), told.get("executable"))
    )


def _lacking(remote: Remote, told: Mapping[str, Any]) -> str:
    least = ".".join(map(str, LEAST))
    there = f"{remote.address}: its {remote.python} is Python {told['python']}"
    if not told["lacking"]:
        return f"{there}, and {least} is needed: install one there and name it with --python"
    names = ", ".join(told["lacking"])
    return (
        f"{there} and lacks {names}; there: {told['executable']} -m pip install {shlex.join(told['lacking'])}"
    )


def _kept(errors: str) -> list[str]:
    return [f"left there, as asked: {line[6:]}" for line in errors.splitlines() if line.startswith("kept: ")]

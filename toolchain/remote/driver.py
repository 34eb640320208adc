"""Runs on the other machine, sent as text: unpacks a tar from its standard input, benches, cleans up after itself.

    python3 -c THIS '{"needed": {"numpy": ["numpy", []], …}, "words": ["bench", …], "keep": false}'

needed: {module: [what pip calls it, least version as numbers]}.

It must start on any Python 3 to say that one is too old, so annotations of newer forms are texts. Standard input
stays open while the work goes on: when it ends, nobody waits any more, and work and folder go.
"""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading

LACKING = 97  # exit code: standard output says what
SIGNALLED = 128  # and the number of the signal that ended the work
LEAST = (3, 11)


def lacking(needed: "dict[str, tuple[str, list[int]]]") -> "list[str]":
    """What pip must install here: modules that do not import, or are too old."""
    missing = []
    for module, (name, least) in needed.items():
        try:
            found = importlib.import_module(module).__version__
        except ImportError:
            missing.append(name)
            continue
        if [int(part) for part in re.findall(r"\d+", found)[: len(least)]] < least:
            missing.append(name + ">=" + ".".join(map(str, least)))
    return missing


def unpack(folder: str) -> None:
    """The tar on standard input, into the folder."""
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:  # Python 3.11.2 as Debian 12 has it; the archive is our own
            archive.extractall(folder)


def end_with_the_caller(process: "subprocess.Popen[bytes]") -> None:
    """Stop the work and its children once standard input ends."""
    while os.read(0, 1 << 16):  # not through sys.stdin, whose lock a waiting thread would keep at the end
        pass
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def main() -> int:
    """Check, unpack, bench, clean up; the exit code is the bench's."""
    job = json.loads(sys.argv[1])
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    missing = lacking(job["needed"]) if sys.version_info[:2] >= LEAST else []
    if missing or sys.version_info[:2] < LEAST:
        version = ".".join(map(str, sys.version_info[:3]))
        print(json.dumps({"lacking": missing, "python": version, "executable": sys.executable}))
        return LACKING
    folder = tempfile.mkdtemp(prefix="toolchain-bench-")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(1))
    try:
        unpack(folder)
        os.mkdir(os.path.join(folder, "tmp"))
        environment = dict(os.environ, TMPDIR=os.path.join(folder, "tmp"), PYTHONPATH=folder)
        command = [sys.executable, "-m", "toolchain.runtime"] + job["words"]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        threading.Thread(target=end_with_the_caller, args=(process,), daemon=True).start()
        try:
            code = process.wait()
            return code if code >= 0 else SIGNALLED - code
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    finally:
        if job["keep"]:
            print("kept: " + folder, file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

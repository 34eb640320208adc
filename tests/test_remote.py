"""Benching over a real ssh: an sshd of this test on the loopback, with its own keys and port."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bench_helpers import not_a_number, plain, quick, saved
from runtime_helpers import make_bundle

import toolchain
from toolchain.errors import HostError, ToolchainError
from toolchain.remote import Remote, bench_on, ship
from toolchain.runtime.bench import bench

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
SSH = shutil.which("ssh")
needs_sshd = pytest.mark.skipif(
    SSHD is None or SSH is None, reason="NO TEST OF --on: apt-get install openssh-server openssh-client"
)


@dataclass(frozen=True)
class Server:
    """A running sshd; `remote` reaches it."""

    remote: Remote
    folder: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scratch = folder / "there"
    scratch.mkdir()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSetEnv TMPDIR={scratch}\n"
    )
    host_key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    (folder / "config").write_text(
        f"Host *\n  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking yes\n"
    )
    # The real ssh, with this test's host key instead of the user's file of known hosts.
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {SSH} -F {folder}/config "$@"\n')
    (folder / "bin" / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True) if os.geteuid() == 0 else None
    process = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", folder / "sshd_config"], stderr=(folder / "log").open("w")
    )
    try:
        _wait_for(port, process, folder / "log")
        address = f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
        yield Server(Remote(address, folder / "user", sys.executable), folder)
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def near(server: Server, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """The remote, with the test's ssh first on the path."""
    monkeypatch.setenv("PATH", f"{server.folder}/bin:{os.environ['PATH']}")
    return server.remote


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.fail(f"sshd did not start: {log.read_text()}")
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd does not listen")


def left(server: Server) -> list[str]:
    """What remains on the other machine; a moment is given to a cleaning process."""
    for _ in range(300):
        found = [path.name for path in (server.folder / "there").iterdir()]
        if not found:
            break
        time.sleep(0.05)
    return found


SHORT = quick(sampling={"blocks": 2, "calls": 5, "cold_starts": 1, "traced": 10})


@needs_sshd
def test_a_record_comes_home_and_nothing_remains(server: Server, near: Remote, tmp_path: Path) -> None:
    record = bench_on(near, plain(tmp_path), SHORT)
    assert record.model.path == "plain.onnx"
    assert record.toolchain == toolchain.__version__
    (case,) = record.cases
    assert case.blocks.shape == (2, 5)
    assert case.memory is not None, record.notes
    assert left(server) == []


@needs_sshd
def test_a_bundle_goes_with_its_golden_pictures_and_only_they(
    server: Server, near: Remote, tmp_path: Path
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    record = bench_on(replace(near, keep=True), bundle, SHORT)
    assert record.model.form == "bundle"
    assert record.cases[0].condition.input.source == "pictures"
    (folder,) = (server.folder / "there").iterdir()
    assert [note for note in record.notes if "had the core" not in note] == [
        f"left there, as asked: {folder}"
    ]
    assert {p.name for p in (folder / "model").iterdir()} == {"model.onnx", "manifest.json", "golden.npz"}
    sent = {
        p.parent.relative_to(folder / "toolchain").as_posix() for p in (folder / "toolchain").rglob("*.py")
    }
    assert sent == {".", "runtime", "runtime/server"}
    assert (folder / "toolchain" / "__init__.py").read_bytes() == b""
    shutil.rmtree(folder)


@needs_sshd
def test_what_is_missing_there_is_told(server: Server, near: Remote, tmp_path: Path) -> None:
    model = plain(tmp_path)
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(
        HostError, match=r"lacks numpy, pillow, onnxruntime; there: .*python.* -m pip install numpy"
    ):
        bench_on(replace(near, python=str(bare)), model, SHORT)
    with pytest.raises(
        HostError, match="has no python9; install python3 there, or name another with --python"
    ):
        bench_on(replace(near, python="python9"), model, SHORT)
    with pytest.raises(ToolchainError, match=r"ssh://.*: output 0 has values that are not finite") as caught:
        bench_on(near, saved(not_a_number(), tmp_path / "nan.onnx"), SHORT)
    assert caught.value.exit_code == 2
    assert left(server) == []


@needs_sshd
def test_a_machine_that_does_not_let_us_in(server: Server, near: Remote, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    with pytest.raises(HostError, match=r"cannot be reached, .*\(.*Permission denied"):
        bench_on(replace(near, identity=tmp_path / "other"), plain(tmp_path), SHORT)
    with pytest.raises(HostError, match="cannot be reached"):
        bench_on(replace(near, address="ssh://127.0.0.1:1"), plain(tmp_path), SHORT)


@needs_sshd
def test_when_the_caller_is_killed_nothing_remains_either(
    server: Server, near: Remote, tmp_path: Path
) -> None:
    long = "from pathlib import Path; from toolchain.remote import *; from toolchain.runtime.bench import *; import sys\n"
    long += (
        "bench_on(Remote(sys.argv[1], Path(sys.argv[2]), sys.executable), Path(sys.argv[3]), "
        "Asked(sampling=Sampling(seconds=600.0)))"
    )
    command = [sys.executable, "-c", long, near.address, str(near.identity), str(plain(tmp_path))]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(toolchain.__file__).parents[1])},
                               start_new_session=True)  # fmt: skip
    for _ in range(600):
        if list((server.folder / "there").glob("*/tmp")):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the work there did not begin")
    os.killpg(process.pid, 9)
    process.wait()
    assert left(server) == []


def test_addresses_and_pictures_that_cannot_be(tmp_path: Path) -> None:
    model = plain(tmp_path)
    for address in (
        "host", "http://host", "ssh://", "ssh://host/path", "ssh://-oProxyCommand=x", "ssh://host:port", "ssh://u:p@host"
    ):  # fmt: skip
        with pytest.raises(ToolchainError, match="give ssh://user@host"):
            bench_on(Remote(address), model, SHORT)
    with pytest.raises(ToolchainError, match="--pictures stay on this machine"):
        bench_on(Remote("ssh://host"), model, replace(SHORT, pictures=tmp_path))


def test_a_banner_with_braces_hides_no_record(tmp_path: Path) -> None:
    record = bench(plain(tmp_path), SHORT)
    sent = json.dumps(record.as_json())
    for output in (f"{{welcome}}\n{sent}\n", f"{sent}\n{{good bye}}\n[1]\n"):
        assert ship._record(Remote("ssh://host"), 0, output, "") == record
    assert ship._record(Remote("ssh://host"), 130, sent, "") == record  # Ctrl-C there: what was finished


def test_the_command_keeps_the_hosts_letters_and_notices_a_dead_line() -> None:
    command = Remote("ssh://me@MyBox:2222").command(["true"])
    assert command[-3:] == ["--", "MyBox", "true"]
    assert command[command.index("-p") + 1] == "2222"
    assert Remote("ssh://[FE80::1]:22").command(["true"])[-2] == "FE80::1"
    assert {"ServerAliveInterval=15", "ServerAliveCountMax=4"} <= set(command)


def descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


@needs_sshd
def test_a_dead_line_ends_the_waiting(
    server: Server, near: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine stands still in the middle of the work, with the connection open."""
    monkeypatch.setattr(ship, "_ALIVE_SECONDS", 1)
    stopped: list[int] = []

    def stop() -> None:
        while not list((server.folder / "there").glob("*/tmp")):
            time.sleep(0.05)
        stopped.extend(descendants(int((server.folder / "pid").read_text())))
        for process in stopped:
            os.kill(process, signal.SIGSTOP)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    try:
        with pytest.raises(HostError, match=r"the connection broke \(Timeout, server"):
            bench_on(near, plain(tmp_path), quick(sampling={"seconds": 600.0}))
    finally:
        for process in reversed(stopped):
            os.kill(process, signal.SIGCONT)
    assert left(server) == []


def test_words_of_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote("ssh://host", python="python3.9")
    for code, output, errors, sentence in (
        (97, '{"lacking": [], "python": "3.9.2", "executable": "/p"}', "", "is Python 3.9.2, and 3.11 is needed"),
        (97, '{"lacking": ["onnxruntime>=1.24.4"], "python": "3.11.2", "executable": "/p"}', "",
         "lacks onnxruntime>=1.24.4; there: /p -m pip install 'onnxruntime>=1.24.4'"),
        (137, "", "", "was ended by SIGKILL"),
        (130, "", "", "was ended by SIGINT"),
        (0, "hello\n", "", "sent no record home"),
        (1, "", "noise\nError: no space\n", "ssh://host: no space"),
        (200, "", "it said so\n", "ssh://host: it said so"),
        (126, "", "", "ssh://host: exit code 126"),
        (0, "{motd}\n", "", "sent no record home"),
        (97, "{motd}\n", "", "ssh://host: exit code 97"),
        (97, '{"lacking": "x"}\n', "", "ssh://host: exit code 97"),
        (0, "{" * 100_000 + "\n", "", "sent no record home"),
    ):  # fmt: skip
        with pytest.raises(HostError) as caught:
            ship._record(remote, code, output, errors)
        assert sentence in str(caught.value)
    with pytest.raises(HostError, match=r"no space \(left there, as asked: /tmp/toolchain-bench-1\)"):
        ship._record(remote, 1, "", "Error: no space\nkept: /tmp/toolchain-bench-1\n")

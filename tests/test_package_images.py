"""Each target built and used as a device would: installed, verified, tampered with, refused. `make test-images`.

Wants root, the folder that `make base device-wheels` fills (TOOLCHAIN_DEVICE), and for each target its tools.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from runtime_helpers import fused_model, make_bundle

from benchmarks.boot.machine import CONTAINER, KINDS, free_port, qemu
from toolchain.errors import VerificationError
from toolchain.package import Wish, emulate, package, pinned, trust
from toolchain.package.payload import command
from toolchain.runtime import manifest
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.verification import read_golden, sha256_of

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root rights"),
    pytest.mark.skipif(
        "TOOLCHAIN_DEVICE" not in os.environ, reason="run by 'make test-images' (TOOLCHAIN_DEVICE)"
    ),
]
CLIENT = Path(__file__).with_name("golden_client.py")
FAMILIES = {"x86-vnni": 1e-3, "x86-avx2": 1e-3, "x86-other": 1e-3, "arm64": 1e-3}
RUN = [*CONTAINER, "--rm"]
VERIFY = ["-m", "toolchain.runtime", "verify", "/opt/toolchain/bundle"]


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def call(*words: object, code: int = 0) -> str:
    """Run; what it said. Any other exit code fails the test."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def asked(
    bundle: Path, *inside: object, url: str = "http://127.0.0.1:8080", more: tuple[str, ...] = ()
) -> str:
    """What the golden client says of a server, from `inside` its network; the test fails when an answer differs."""
    return call(
        *inside, "env", f"PYTHONPATH={CLIENT.parent.parent}", sys.executable, CLIENT, bundle, url, *more
    )


@contextlib.contextmanager
def container(*words: object) -> Iterator[list[str]]:
    """A running container; yields how to enter its network. Stopped by SIGTERM, which must end it with 0."""
    name = f"toolchain-test-{os.getpid()}"
    call(*CONTAINER, "-d", "--name", name, *words)
    try:
        pid = call("podman", "inspect", "-f", "{{.State.Pid}}", name).split()[0]
        yield ["nsenter", "-n", "-t", pid]
        call("podman", "stop", "-t", "30", name)
        assert call("podman", "inspect", "-f", "{{.State.ExitCode}}", name).split()[0] == "0"
    finally:
        print(call("podman", "logs", name))
        subprocess.run(["podman", "rm", "-f", name], capture_output=True, check=False)


@contextlib.contextmanager
def stand_in(given: Wish, arch: str = "amd64") -> Iterator[str]:
    """The base as an image of its own."""
    name = f"localhost/toolchain-test-base-{os.getpid()}:1"
    call("podman", "import", "--arch", arch, given.base, name)
    try:
        yield name
    finally:
        subprocess.run(["podman", "rmi", "-f", name], capture_output=True, check=False)


@pytest.fixture
def device() -> Path:
    return Path(os.environ["TOOLCHAIN_DEVICE"])


def wish(folder: Path, device: Path, arch: str = "amd64", **fields: object) -> Wish:
    if not (folder / "bundle").exists():
        make_bundle(folder / "bundle", tolerances=FAMILIES)
    base = device / f"base-{arch}.tar"
    found = Wish(
        folder / "bundle", arch, wheels=device / f"wheels-{arch}", base=base, base_sha256=sha256_of(base)
    )
    return replace(found, **fields)  # type: ignore[arg-type]


def spoiled(bundle: Path, folder: Path) -> Path:
    """A copy whose golden answers are another model's, hashes and identity right."""
    copy = Path(shutil.copytree(bundle, folder / "spoiled"))
    onnx.save(fused_model(scale=0.01), copy / manifest.MODEL)
    content = json.loads((copy / manifest.MANIFEST).read_text())
    content["files"][manifest.MODEL] = sha256_of(copy / manifest.MODEL)
    content["identity"] = manifest.identity(content, content["files"])
    (copy / manifest.MANIFEST).write_text(json.dumps(content))
    return copy


@pytest.fixture
def image() -> Iterator[str]:
    """A name for an image, which is taken away afterwards."""
    name = f"localhost/toolchain-test-{os.getpid()}:1"
    yield name
    subprocess.run(["podman", "rmi", "-f", name], capture_output=True, check=False)


@needs("skopeo", "podman", "runc")
def test_oci_runs_without_network_rights_or_a_writable_root_and_refuses_other_answers(
    tmp_path: Path, device: Path, image: str
) -> None:
    given, out = wish(tmp_path, device), tmp_path / "image.tar"
    package(given, "oci", out)
    assert out.stat().st_size < 65e6
    call("skopeo", "copy", "-q", f"oci-archive:{out}", f"containers-storage:{image}")
    with container(image) as inside:
        assert "3 golden pictures" in asked(given.bundle, *inside)
    other = spoiled(given.bundle, tmp_path)
    mount = ["-v", f"{other}:/opt/toolchain/bundle:ro"]
    said = call(*RUN, *mount, "--entrypoint", "/usr/bin/python3", image, *VERIFY, code=3)
    assert "golden answers differ" in said
    who = ["-c", "import os; print(os.getuid(), os.access('/opt/toolchain/bundle', os.W_OK))"]
    assert call(*RUN, "--entrypoint", "/usr/bin/python3", image, *who).strip() == "10001 False"


@needs("skopeo")
def test_docker_archive_form_is_taken_too(tmp_path: Path, device: Path) -> None:
    package(wish(tmp_path, device), "oci", tmp_path / "image.tar")
    call("skopeo", "copy", "-q", f"docker-archive:{tmp_path / 'image.tar'}", f"dir:{tmp_path / 'copied'}")
    assert json.loads((tmp_path / "copied/manifest.json").read_text())["layers"]


@needs("buildah", "podman", "runc")
@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "jetson"])
def test_docker_contexts_build_without_a_daemon(
    accelerator: str, tmp_path: Path, device: Path, image: str
) -> None:
    """On a stand-in for the base. cuda: built, verified on the CPU, not run on a GPU. jetson: built, not run."""
    arch = "arm64" if accelerator == "jetson" else "amd64"
    given = wish(tmp_path, device, arch, accelerator=accelerator)
    if accelerator != "cpu":  # the stand-in: the CPU's wheel under the other name
        folder = Path(shutil.copytree(device / f"wheels-{arch}", tmp_path / "wheels"))
        path = next(folder.glob("onnxruntime-*"))
        path.rename(path.with_name(path.name.replace("onnxruntime-", "onnxruntime_gpu-", 1)))
        given = replace(given, wheels=folder)
    package(given, "docker", tmp_path / "context.tar")
    with tarfile.open(tmp_path / "context.tar") as context:
        context.extractall(tmp_path / "context", filter="data")
    with stand_in(given, arch) as base:
        words = ["buildah", "bud", "--isolation", "chroot", "--pull=never", "--arch", arch]
        words += ["--build-arg", f"BASE={base}", "--format", "docker", "-t", image]
        call(*words, tmp_path / "context")
        if accelerator == "cpu":
            with container(image) as inside:
                assert "3 golden pictures" in asked(given.bundle, *inside)
        elif arch == "amd64":
            assert "3 golden pictures" in call(*RUN, "--entrypoint", "/usr/bin/python3", image, *VERIFY)
        call("podman", "rmi", "-f", image)


@needs("dpkg", "unshare", "chroot")
def test_deb_is_installed_verified_tampered_refused_removed(tmp_path: Path, device: Path) -> None:
    """Into the base's root from outside, for it holds no shell; and python3-minimal only, so dependencies are overridden."""
    given, root = wish(tmp_path, device), tmp_path / "root"
    package(given, "deb", tmp_path / "c.deb")
    pinned.unpack(given.base.read_bytes(), root)  # type: ignore[union-attr]
    dpkg = ["dpkg", f"--root={root}", "--force-depends", "--force-script-chrootless"]
    home = "/opt/toolchain/colours"
    script = 'mkdir -p "$0/proc" && mount --bind /proc "$0/proc" && exec chroot "$0" "$@"'
    verify = ["env", f"PYTHONPATH={home}/lib", "unshare", "-m", "sh", "-c", script, root, "/usr/bin/python3"]
    verify += ["-m", "toolchain.runtime", "verify", f"{home}/bundle"]
    call(*dpkg, "-i", tmp_path / "c.deb")
    assert "3 golden pictures" in call(*verify)
    with (root / home[1:] / "bundle" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "content differs" in call(*verify, code=3)
    call(*dpkg, "--purge", "toolchain-colours")
    assert not (root / home[1:] / "bundle").exists()


@needs("rauc", "mksquashfs", "openssl")
def test_rauc_is_extracted_and_a_changed_payload_refused(tmp_path: Path, device: Path) -> None:
    trust.new_keys(tmp_path / "keys", "test")
    keys = tmp_path / "keys"
    given = wish(tmp_path, device, key=keys / "signing.key", certificate=keys / "signing.pem")
    out = tmp_path / "u.raucb"
    package(given, "rauc", out)
    said = call("rauc", f"--keyring={keys / 'ca.pem'}", "info", out)
    assert "toolchain-amd64" in said
    call("rauc", f"--keyring={keys / 'ca.pem'}", "extract", out, tmp_path / "extracted")
    first = sha256_of(tmp_path / "extracted" / "appfs.squashfs")
    call("unsquashfs", "-d", tmp_path / "slot", tmp_path / "extracted" / "appfs.squashfs")
    with stand_in(given) as base:  # the device: the slot is mounted where it belongs
        mounted = ["-v", f"{tmp_path / 'slot'}:/opt/toolchain:ro", "-e", "PYTHONPATH=/opt/toolchain/lib"]
        with container(*mounted, base, *command(given, "/opt/toolchain/bundle", host="127.0.0.1")) as inside:
            assert "3 golden pictures" in asked(given.bundle, *inside)
    trust.new_keys(tmp_path / "strange", "test")
    strange = ["rauc", f"--keyring={tmp_path / 'strange' / 'ca.pem'}", "info", out]
    assert subprocess.run(strange, capture_output=True, check=False).returncode != 0
    with out.open("r+b") as file:
        file.seek(200_000)
        byte = file.read(1)
        file.seek(200_000)
        file.write(bytes([byte[0] ^ 1]))
    refused = subprocess.run(
        ["rauc", f"--keyring={keys / 'ca.pem'}", "extract", out, tmp_path / "again"],
        capture_output=True,
        check=False,
    )
    assert refused.returncode != 0
    package(given, "rauc", out)
    call("rauc", f"--keyring={keys / 'ca.pem'}", "extract", out, tmp_path / "second")
    assert sha256_of(tmp_path / "second" / "appfs.squashfs") == first


@needs("mender-artifact", "openssl")
def test_mender_validates_and_a_changed_artifact_is_refused(tmp_path: Path, device: Path) -> None:
    trust.new_keys(tmp_path / "keys", "test")
    out = tmp_path / "u.mender"
    package(wish(tmp_path, device, key=tmp_path / "keys" / "signing.key"), "mender", out)
    public = tmp_path / "keys" / "signing.pub"
    call("mender-artifact", "validate", "-k", public, out)
    trust.new_keys(tmp_path / "strange", "test")
    strange = ["mender-artifact", "validate", "-k", tmp_path / "strange" / "signing.pub", out]
    assert subprocess.run(strange, capture_output=True, check=False).returncode != 0
    package(wish(tmp_path, device), "deb", tmp_path / "c.deb")
    assert _payload_of(out) == (tmp_path / "c.deb").read_bytes()  # which is started in a test of its own
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    refused = subprocess.run(
        ["mender-artifact", "validate", "-k", public, out], capture_output=True, check=False
    )
    assert refused.returncode != 0


def _payload_of(artifact: Path) -> bytes:
    """The one file in a Mender artifact: a tar that holds tars."""
    with tarfile.open(artifact) as outer:
        inside = outer.extractfile("data/0000.tar")
        assert inside
        with tarfile.open(fileobj=inside) as inner:
            (member,) = inner.getmembers()
            content = inner.extractfile(member)
            assert content
            return content.read()


@needs("skopeo")
def test_modelpack_comes_back_from_a_registrys_form_and_verifies(tmp_path: Path, device: Path) -> None:
    given = wish(tmp_path, device)
    package(given, "modelpack", tmp_path / "m.tar")
    call("skopeo", "copy", "-q", f"oci-archive:{tmp_path / 'm.tar'}", f"dir:{tmp_path / 'copied'}")
    content = json.loads((tmp_path / "copied" / "manifest.json").read_text())
    for layer in content["layers"]:
        place = tmp_path / "pulled" / layer["annotations"]["org.cncf.model.filepath"]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "copied" / layer["digest"].removeprefix("sha256:"), place)
    assert Bundle.load(tmp_path / "pulled" / "bundle").verify().golden == 3


def test_triton_repository_is_one_by_tritons_own_schema_and_answers(tmp_path: Path, device: Path) -> None:
    """No Triton server is at hand: its schema reads the configuration, a bare session runs what it points at."""
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="needs tritonclient and protobuf"
    )
    from google.protobuf import text_format

    given = wish(tmp_path, device)
    package(given, "triton", tmp_path / "t.tar")
    with tarfile.open(tmp_path / "t.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    home = tmp_path / "colours"
    config = text_format.Parse((home / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("colours", "onnxruntime", 0)
    session = onnxruntime.InferenceSession(home / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (given_input,), (output,) = session.get_inputs(), session.get_outputs()
    assert [(p.name, list(p.dims)) for p in config.input] == [(given_input.name, [-1, -1, -1, 3])]
    assert [(p.name, p.label_filename) for p in config.output] == [(output.name, "labels.txt")]
    golden = read_golden(given.bundle / manifest.GOLDEN)
    for warm_up, expected in zip(config.model_warmup, golden.probabilities, strict=False):
        about = warm_up.inputs[given_input.name]
        raw = (home / "warmup" / about.input_data_file).read_bytes()
        picture = np.frombuffer(raw, np.uint8).reshape(list(about.dims))
        np.testing.assert_array_equal(session.run(None, {given_input.name: picture})[0][0], expected)
    assert Bundle.load(home / "toolchain" / "bundle").verify().golden == 3


@needs("systemd-nspawn", "dpkg", "nsenter")
def test_deb_on_a_running_system_starts_restarts_refuses_and_goes(tmp_path: Path, device: Path) -> None:
    """Debian with systemd, booted in a container with a network of its own: the unit as it ships."""
    given, root = wish(tmp_path, device), tmp_path / "root"
    package(given, "deb", tmp_path / "c.deb")
    pinned.unpack((device / "system-amd64.tar").read_bytes(), root)
    shutil.copy(tmp_path / "c.deb", root / "root" / "c.deb")
    unit, home = "toolchain-colours", "/opt/toolchain/colours"
    with booted(root, tmp_path / "boot.log") as (inside, network):
        call(*inside, "dpkg", "-i", "/root/c.deb")
        assert "3 golden pictures" in asked(given.bundle, *network)
        call(*inside, "systemctl", "kill", "-s", "KILL", unit)
        assert "3 golden pictures" in asked(given.bundle, *network)
        assert "NRestarts=1" in call(*inside, "systemctl", "show", "-p", "NRestarts", unit)
        with (root / home[1:] / "bundle" / "model.onnx").open("ab") as file:
            file.write(b"\0")
        said = subprocess.run(
            [*inside, "systemctl", "restart", unit], capture_output=True, text=True, check=False
        )
        assert said.returncode != 0  # it never was ready
        assert "content differs" in call(*inside, "journalctl", "--no-pager", "-u", unit)
        assert "ActiveState=failed" in call(*inside, "systemctl", "show", "-p", "ActiveState", unit)
        call(*inside, "dpkg", "-i", "/root/c.deb")
        assert "3 golden pictures" in asked(given.bundle, *network)
        call(*inside, "dpkg", "--purge", unit)
        assert not (root / home[1:]).exists()
        assert "not be found" in call(*inside, "systemctl", "status", unit, code=4)


@contextlib.contextmanager
def booted(root: Path, log: Path) -> Iterator[tuple[list[str], list[str]]]:
    """A system booted by systemd-nspawn; yields how to run in it, and how to enter its network only."""
    words = [
        "systemd-nspawn",
        "-q",
        "-D",
        root,
        "--private-network",
        "--register=no",
        "--keep-unit",
        "--boot",
    ]
    with log.open("w") as file:
        started = subprocess.Popen(
            [*map(str, words), "-M", f"toolchain-test-{os.getpid()}"],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )  # fmt: skip
    try:
        leader = wait_for(
            lambda: Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split(), log
        )
        network = ["nsenter", "-t", leader[0], "-n"]
        inside = [*network, "-m", "-u", "-i", "-p", "env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
        ready = [*inside, "systemctl", "is-active", "multi-user.target"]
        wait_for(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0, log)
        yield inside, network
    finally:
        started.terminate()
        started.wait(60)


def wait_for(happened: Callable[[], Any], log: Path, seconds: float = 90) -> Any:
    """What `happened` gives once it is true; the log when it is not in time."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.1)
    return found


@pytest.mark.parametrize(
    ("arch", "isa"),
    [
        pytest.param("amd64", "x86-avx2", marks=needs("qemu-system-x86_64", "mksquashfs")),
        pytest.param("arm64", "arm64", marks=needs("qemu-system-aarch64", "mksquashfs")),
    ],
)
def test_a_disk_boots_by_firmware_and_answers(arch: str, isa: str, tmp_path: Path, device: Path) -> None:
    boot = device / f"boot-{arch}.tar"
    if reason := KINDS[arch].missing or (None if boot.exists() else "needs 'make boot'"):
        pytest.skip(reason)
    given = wish(tmp_path, device, arch, boot=boot, boot_sha256=sha256_of(boot))
    package(given, "disk", tmp_path / "disk.img")
    first = sha256_of(tmp_path / "disk.img")
    package(given, "disk", tmp_path / "disk.img")
    assert sha256_of(tmp_path / "disk.img") == first
    port = free_port()
    with subprocess.Popen(qemu(arch, tmp_path / "disk.img", tmp_path, port)) as machine:
        try:
            said = asked(given.bundle, url=f"http://127.0.0.1:{port}", more=("400", isa))
        finally:
            machine.terminate()
            print((tmp_path / "serial.log").read_text(errors="replace")[-2000:])
    print(said)
    assert "3 golden pictures" in said


@pytest.mark.parametrize(
    ("isa", "arch"),
    [
        pytest.param("x86-avx2", "amd64", marks=needs("qemu-x86_64")),
        pytest.param("arm64", "arm64", marks=needs("qemu-aarch64")),
    ],
)
def test_golden_answers_on_processors_that_are_not_here(
    isa: str, arch: str, tmp_path: Path, device: Path
) -> None:
    given = wish(tmp_path, device, arch)
    assert "3 golden pictures" in emulate.verify(given, isa)
    with pytest.raises(VerificationError, match=f"emulated {isa}.*golden answers differ"):
        emulate.verify(replace(given, bundle=spoiled(given.bundle, tmp_path)), isa)

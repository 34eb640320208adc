"""Each target built and used as a device would: installed, verified, tampered with, refused. `make test-images`.

Wants root, the folder that `make base device-wheels` fills (TOOLCHAIN_DEVICE), and for each target its tools.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from runtime_helpers import fused_model, make_bundle

from toolchain.errors import VerificationError
from toolchain.package import Wish, emulate, package, trust
from toolchain.runtime import manifest
from toolchain.runtime.verification import sha256_of

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root rights"),
    pytest.mark.skipif(
        "TOOLCHAIN_DEVICE" not in os.environ, reason="run by 'make test-images' (TOOLCHAIN_DEVICE)"
    ),
]
FAMILIES = {"x86-vnni": 1e-3, "x86-avx2": 1e-3, "x86-other": 1e-3, "arm64": 1e-3}
RUN = [
    "podman",
    "--cgroup-manager=cgroupfs",
    "--runtime",
    "runc",
    "run",
    "--rm",
    "--network",
    "none",
    "--read-only",
]
RUN += ["--cap-drop=all", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
VERIFY = ["-m", "toolchain.runtime", "verify", "/opt/toolchain/bundle"]


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if not shutil.which(tool)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def call(*words: object, code: int = 0) -> str:
    """Run; what it said. Any other exit code fails the test."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


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
    assert "3 golden pictures" in call(*RUN, "--entrypoint", "/usr/bin/python3", image, *VERIFY)
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
    base = "localhost/toolchain-test-base:1"
    call("podman", "import", "--arch", arch, given.base, base)
    words = ["buildah", "bud", "--isolation", "chroot", "--pull=never", "--arch", arch]
    words += ["--build-arg", f"BASE={base}", "--format", "docker", "-t", image]
    call(*words, tmp_path / "context")
    if arch == "amd64":
        said = call(*RUN, "--entrypoint", "/usr/bin/python3", image, *VERIFY)
        assert "3 golden pictures" in said
    call("podman", "rmi", "-f", image)
    call("podman", "rmi", "-f", base)


@needs("dpkg", "unshare", "chroot")
def test_deb_is_installed_verified_tampered_refused_removed(tmp_path: Path, device: Path) -> None:
    """Into the base's root from outside, for it holds no shell; and python3-minimal only, so dependencies are overridden."""
    given, root = wish(tmp_path, device), tmp_path / "root"
    package(given, "deb", tmp_path / "c.deb")
    emulate.unpack(given.base.read_bytes(), root)  # type: ignore[union-attr]
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
    call("rauc", f"--keyring={keys / 'ca.pem'}", "extract", out, tmp_path / "extracted")
    first = sha256_of(tmp_path / "extracted" / "appfs.squashfs")
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
    data = bytearray(out.read_bytes())
    data[len(data) // 2] ^= 1
    out.write_bytes(data)
    refused = subprocess.run(
        ["mender-artifact", "validate", "-k", public, out], capture_output=True, check=False
    )
    assert refused.returncode != 0


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

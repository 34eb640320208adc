"""Packages: what each target carries, that it is reproducible, and what is refused before anything is written."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from package_helpers import wheel, wheels, wish
from runtime_helpers import edit_manifest

from toolchain.cli import cli
from toolchain.errors import BundleError, HostError, PackageError, VerificationError
from toolchain.package import TARGETS, archive, deb, disk, distribution, esp, package, payload, pinned, uki
from toolchain.package import triton as triton_target
from toolchain.runtime import manifest

PURE = ("docker", "oci", "deb", "triton", "modelpack")  # no outside tool


def unpacked(path: Path) -> dict[str, bytes]:
    """{name: content} of a tar's files."""
    with tarfile.open(path) as tar:
        found = {m.name: tar.extractfile(m) for m in tar if m.isfile()}
        return {name: file.read() for name, file in found.items() if file}


def members(path: Path) -> dict[str, bytes]:
    """The members of an ar archive."""
    data, at, found = path.read_bytes(), 8, {}
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(), int(data[at + 48 : at + 58])
        found[name] = data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return found


@pytest.mark.parametrize("target", PURE)
def test_two_builds_in_two_folders_at_two_times_are_the_same_bytes(target: str, tmp_path: Path) -> None:
    first, second = wish(tmp_path / "one"), tmp_path / "two"
    package(first, target, tmp_path / "a")
    shutil.copytree(tmp_path / "one", second, copy_function=shutil.copy)
    for path in second.rglob("*"):
        os.utime(path, (time.time() - 1e6, time.time() - 1e6))
    other = replace(first, bundle=second / "bundle", wheels=second / "wheels", base=second / "base.tar")
    package(other, target, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("target", PURE)
def test_another_time_is_in_it_and_another_bundle_too(target: str, tmp_path: Path) -> None:
    package(wish(tmp_path), target, tmp_path / "a")
    package(wish(tmp_path, epoch=1_700_000_000), target, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()


def test_every_target_is_documented() -> None:
    text = Path(__file__).parent.parent.joinpath("docs", "deploy.md").read_text()
    for target in TARGETS:
        assert f"--target {target}" in text


def test_the_payload_is_bundle_runtime_libraries_licences_and_bom(tmp_path: Path) -> None:
    tree = payload.load(wish(tmp_path)).tree()
    assert tree["bundle/model.onnx"] == (tmp_path / "bundle" / "model.onnx").read_bytes()
    assert {"lib/toolchain/runtime/__main__.py", "lib/numpy/__init__.py", "sbom.cdx.json"} <= set(tree)
    assert tree["licences/numpy/numpy-2.4.6.dist-info-licenses-LICENSE"].startswith(b"MIT")
    assert b"Apache" in tree["licences/toolchain/LICENSE"]
    assert "lib/numpy/tests/test_it.py" not in tree


def test_the_bom_names_the_model_and_every_library_with_their_hashes(tmp_path: Path) -> None:
    loaded = payload.load(wish(tmp_path))
    bom = json.loads(loaded.tree()["sbom.cdx.json"])
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    parts = {part["name"]: part for part in bom["components"]}
    model = parts["Colours, red (fp32)"]
    assert model["type"] == "machine-learning-model"
    assert model["hashes"][0]["content"] == loaded.manifest.files[manifest.MODEL]
    path = next((tmp_path / "wheels").glob("numpy-*"))
    assert parts["numpy"]["hashes"][0]["content"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert parts["pillow"]["purl"] == "pkg:pypi/pillow@12.3.0"
    assert {part["bom-ref"] for part in bom["components"]} == set(bom["dependencies"][0]["dependsOn"])


def test_the_deb_is_one_that_dpkg_reads_and_its_unit_is_hardened(tmp_path: Path) -> None:
    package(wish(tmp_path), "deb", tmp_path / "c.deb")
    found = members(tmp_path / "c.deb")
    assert list(found) == ["debian-binary", "control.tar.xz", "data.tar.xz"]
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(found["data.tar.xz"]))) as data:
        names = data.getnames()
        unit = data.extractfile("./lib/systemd/system/toolchain-colours-red.service").read().decode()  # type: ignore[union-attr]
        assert {member.uid for member in data} == {0}
    assert "./opt/toolchain/colours-red/bundle/manifest.json" in names
    for line in ("DynamicUser=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "NoNewPrivileges=yes"):
        assert f"\n{line}\n" in unit
    assert "toolchain.runtime serve /opt/toolchain/colours-red/bundle --host ${HOST}" in unit
    if shutil.which("dpkg-deb"):
        said = subprocess.run(
            ["dpkg-deb", "-I", tmp_path / "c.deb"], capture_output=True, text=True, check=True
        )
        assert "Package: toolchain-colours-red" in said.stdout
        assert "python3 (>= 3.11), python3 (<< 3.12)" in said.stdout


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    text = deb.unit(payload.load(wish(tmp_path))).replace("/usr/bin/python3", "/bin/true")
    unit = tmp_path / "toolchain-x.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr


def test_the_image_is_an_oci_layout_and_a_docker_archive(tmp_path: Path) -> None:
    package(wish(tmp_path), "oci", tmp_path / "image.tar")
    files = unpacked(tmp_path / "image.tar")
    for name, content in files.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    index = json.loads(files["index.json"])
    content = json.loads(files["blobs/" + index["manifests"][0]["digest"].replace(":", "/")])
    config = json.loads(files["blobs/" + content["config"]["digest"].replace(":", "/")])
    layers = [gzip.decompress(files["blobs/" + one["digest"].replace(":", "/")]) for one in content["layers"]]
    assert layers[0] == (tmp_path / "base.tar").read_bytes()
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]
    assert config["config"]["User"] == "10001:10001"
    assert config["config"]["Entrypoint"][1:4] == ["-m", "toolchain.runtime", "serve"]
    assert json.loads(files["manifest.json"])[0]["Layers"][0] in files


def test_a_disk_is_a_gpt_with_a_fat_that_others_read(tmp_path: Path) -> None:
    """By Linux' own view of it where mtools and sfdisk are there, and by its checksums everywhere."""
    program = bytes(range(256)) * 40_000
    path = tmp_path / "disk.img"
    path.write_bytes(esp.disk(program, "BOOTX64.EFI", "seed"))
    data = path.read_bytes()
    for at in (512, len(data) - 512):
        head = bytearray(data[at : at + 92])
        assert head[:8] == b"EFI PART"
        said, head[16:20] = int.from_bytes(head[16:20], "little"), bytes(4)
        assert zlib.crc32(head) == said
        assert int.from_bytes(head[24:32], "little") * 512 == at
    if shutil.which("sfdisk"):
        done = subprocess.run(["sfdisk", "-J", path], capture_output=True, text=True, check=True)
        (partition,) = json.loads(done.stdout)["partitiontable"]["partitions"]
        assert (partition["start"], partition["type"]) == (2048, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
    if shutil.which("fsck.vfat"):
        (tmp_path / "volume").write_bytes(data[2048 * 512 : -33 * 512])
        done = subprocess.run(
            ["fsck.vfat", "-n", tmp_path / "volume"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
    if shutil.which("mcopy"):
        words = ["mcopy", "-n", "-i", f"{path}@@1M", "::EFI/BOOT/BOOTX64.EFI", tmp_path / "copied"]
        subprocess.run(words, check=True, capture_output=True)
        assert (tmp_path / "copied").read_bytes() == program


def test_a_disk_of_any_size_is_fat16() -> None:
    assert [esp.cluster_bytes(size << 20) >> 10 for size in (0, 1, 255, 257, 600, 2000)] == [
        4,
        4,
        4,
        8,
        16,
        32,
    ]
    with pytest.raises(PackageError, match="more than FAT16 holds"):
        esp.cluster_bytes(3 << 30)
    volume = memoryview(esp.disk(b"x", "BOOTAA64.EFI", "seed"))[2048 * 512 :]
    each, tables = volume[13] * 512, int.from_bytes(volume[22:24], "little")
    total = int.from_bytes(volume[19:21], "little") or int.from_bytes(volume[32:36], "little")
    clusters = (total * 512 - 512 * (1 + 2 * tables + 32)) // each
    assert 4085 <= clusters <= 65524
    assert tables * 256 >= clusters + 2
    assert total * 512 == len(volume) - 33 * 512


def test_a_stub_that_is_none_is_told() -> None:
    for stub in (b"", b"MZ" + bytes(100), b"\x7fELF" + bytes(4000)):
        with pytest.raises(PackageError, match="EFI stub"):
            uki.build(stub, {".linux": b"kernel"})


def test_modules_are_loaded_after_what_they_need() -> None:
    def module(*needs: str) -> bytes:
        return b"\x7fELF\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"

    folder = "lib/modules/6.1/kernel"
    tree = {
        f"{folder}/net/virtio_net.ko": module("net_failover", "virtio-ring"),
        f"{folder}/net/net_failover.ko": module("failover"),
        f"{folder}/core/failover.ko": module(),
        f"{folder}/virtio/virtio_ring.ko": module(),
        f"{folder}/fs/squashfs.ko": module("built_in"),
        f"{folder}/other.ko": module(),
    }
    boot = archive.tar(tree, 0, prefix="./")
    found = list(disk._drivers(boot, pinned.names(boot, None), "6.1", None))
    order = [name.removeprefix("modules/")[4:-3] for name in found]
    assert sorted(order) == ["failover", "net_failover", "squashfs", "virtio_net", "virtio_ring"]
    assert order.index("failover") < order.index("net_failover") < order.index("virtio_net")
    assert order.index("virtio_ring") < order.index("virtio_net")
    assert found == sorted(found)
    assert [name for name in found if name.startswith("modules/0")] == ["modules/000-squashfs.ko"]


def test_a_disk_wants_a_pinned_kernel(tmp_path: Path) -> None:
    given = wish(tmp_path)
    with pytest.raises(PackageError, match=r"--boot FILE\.tar"):
        package(given, "disk", tmp_path / "d.img")
    boot = tmp_path / "boot.tar"
    boot.write_bytes(archive.tar({"boot/vmlinuz-1": b"", "boot/vmlinuz-2": b""}, 0))
    pinned_to = hashlib.sha256(boot.read_bytes()).hexdigest()
    if shutil.which("mksquashfs"):
        with pytest.raises(PackageError, match="holds 2 kernels"):
            package(replace(given, boot=boot, boot_sha256=pinned_to), "disk", tmp_path / "d.img")
    with pytest.raises(PackageError, match="not the pinned"):
        package(replace(given, boot=boot, boot_sha256="0" * 64), "disk", tmp_path / "d.img")
    with pytest.raises(PackageError, match="no driver for a GPU"):
        wheel(tmp_path / "wheels", "onnxruntime_gpu")
        package(replace(given, accelerator="cuda"), "disk", tmp_path / "d.img")


@pytest.mark.parametrize("packer", [lzma, bz2])
def test_a_base_that_is_packed_otherwise_is_no_layer(packer: ModuleType, tmp_path: Path) -> None:
    base = tmp_path / "base.tar"
    base.write_bytes(packer.compress(archive.tar({"etc/os-release": b""}, 0)))
    with pytest.raises(PackageError, match=r"give a tar or tar\.gz"):
        pinned.content(base, hashlib.sha256(base.read_bytes()).hexdigest(), "--base")


def test_a_cpio_is_one_that_cpio_reads(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed (apt-get install cpio)")
    content = archive.cpio({"init": b"#!", "a/b": b"12345"}, 7, ("proc",), {"init"})
    done = subprocess.run(["cpio", "-itv"], input=content, capture_output=True, check=True)
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    assert [(row[0], row[-1]) for row in rows] == [
        ("drwxr-xr-x", "a"), ("-rw-r--r--", "a/b"), ("-rwxr-xr-x", "init"), ("drwxr-xr-x", "proc"),
    ]  # fmt: skip


def test_the_images_bom_names_the_packages_of_the_base(tmp_path: Path) -> None:
    status = (
        b"Package: libc6\nStatus: install ok unpacked\nArchitecture: amd64\nVersion: 2.36-9+deb12u14\n"
        b"Description: libraries\n Version: none of this\n\n"
        b"Package: gone\nStatus: deinstall ok not-installed\nVersion: 1\n"
    )
    root = tmp_path / "debian.tar"
    files = {"usr/bin/python3": b"", "usr/bin/python3.11": b"", "var/lib/dpkg/status": status}
    root.write_bytes(archive.tar(files, 0, prefix="./"))
    given = wish(tmp_path, base=root, base_sha256=hashlib.sha256(root.read_bytes()).hexdigest())
    package(given, "oci", tmp_path / "image.tar")
    layers = [c for n, c in unpacked(tmp_path / "image.tar").items() if c.startswith(b"\x1f\x8b")]
    (ours,) = [one for one in map(gzip.decompress, layers) if b"sbom.cdx.json" in one]
    with tarfile.open(fileobj=io.BytesIO(ours)) as layer:
        bom = json.load(layer.extractfile("opt/toolchain/sbom.cdx.json"))  # type: ignore[arg-type]
    system = [part for part in bom["components"] if part["bom-ref"].startswith("system/")]
    assert [part["purl"] for part in system] == ["pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"]


@pytest.mark.parametrize(
    ("target", "option"),
    [
        ("deb", "--base-sha256"),
        ("oci", "--boot"),
        ("triton", "--boot-sha256"),
        ("docker", "--base"),
        ("deb", "--device"),
    ],
)
def test_an_option_that_the_target_does_not_read_is_refused(tmp_path: Path, target: str, option: str) -> None:
    """A wrong hash beside a target that checks none would have passed unseen."""
    words = ["package", str(tmp_path), "--target", target, "--out", str(tmp_path / "out"), option, "0"]
    done = CliRunner().invoke(cli, words)
    assert (done.exit_code, f"{option} is for" in done.output) == (2, True), done.output
    words[words.index(option) :] = ["--version", "1"]
    assert "is for" not in CliRunner().invoke(cli, words).output


@pytest.mark.parametrize("text", ["yesterday", "-1", "99999999999", "1.5"])
def test_a_time_that_is_none_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(PackageError, match="SOURCE_DATE_EPOCH"):
        distribution.epoch()


def test_the_base_must_be_the_pinned_one_and_hold_python(tmp_path: Path) -> None:
    given = wish(tmp_path)
    with pytest.raises(PackageError, match="not the pinned"):
        package(replace(given, base_sha256="0" * 64), "oci", tmp_path / "out")
    with pytest.raises(PackageError, match="--base"):
        package(replace(given, base=None), "oci", tmp_path / "out")
    bare = tmp_path / "bare.tar"
    bare.write_bytes(archive.tar({"bin/sh": b""}, 0))
    pinned = hashlib.sha256(bare.read_bytes()).hexdigest()
    with pytest.raises(PackageError, match=r"no /usr/bin/python3\.11"):
        package(replace(given, base=bare, base_sha256=pinned), "oci", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("accelerator", ["cpu", "cuda", "jetson"])
def test_dockerfiles_run_nothing_and_end_without_rights(accelerator: str) -> None:
    text = Path(__file__).parent.parent.joinpath("docker", f"{accelerator}.Dockerfile").read_text()
    words = [line.split()[0] for line in text.splitlines() if line and not line.startswith((" ", "#", "\t"))]
    assert "RUN" not in words
    assert "USER 10001:10001" in text
    assert 'ENTRYPOINT ["' in text
    assert "ORT_DISABLE_TELEMETRY=1" in text


def test_the_context_takes_the_accelerators_runtime_and_dockerfile(tmp_path: Path) -> None:
    given = wish(tmp_path, accelerator="cuda")
    with pytest.raises(PackageError, match="no wheel of onnxruntime-gpu"):
        package(given, "docker", tmp_path / "c.tar")
    wheel(tmp_path / "wheels", "onnxruntime_gpu")
    package(given, "docker", tmp_path / "c.tar")
    files = unpacked(tmp_path / "c.tar")
    assert b'"--provider", "cuda"' in files["Dockerfile"]
    assert "toolchain/lib/onnxruntime_gpu/__init__.py" in files
    with pytest.raises(PackageError, match="arm64 devices"):
        package(replace(given, accelerator="jetson"), "docker", tmp_path / "c.tar")


def test_the_triton_repository_holds_model_config_and_golden_pictures(tmp_path: Path) -> None:
    package(wish(tmp_path), "triton", tmp_path / "t.tar")
    files = unpacked(tmp_path / "t.tar")
    text = files["colours-red/config.pbtxt"].decode()
    assert 'name: "pictures", data_type: TYPE_UINT8, dims: [ -1, -1, -1, 3 ]' in text
    assert "max_batch_size: 0" in text
    assert 'input_data_file: "picture_0"' in text
    assert len(files["colours-red/warmup/picture_0"]) == 6 * 5 * 3
    assert files["colours-red/1/model.onnx"] == (tmp_path / "bundle" / "model.onnx").read_bytes()
    loaded = payload.load(wish(tmp_path))
    assert triton_target.config(loaded, []).count("model_warmup") == 0
    hostile = replace(loaded.manifest, input=replace(loaded.manifest.input, name='a" } #\n'))
    assert r'name: "a\" } #\n", data_type' in triton_target.config(replace(loaded, manifest=hostile), [])


def test_the_modelpack_addresses_every_file_by_its_own_hash(tmp_path: Path) -> None:
    package(wish(tmp_path), "modelpack", tmp_path / "m.tar")
    files = unpacked(tmp_path / "m.tar")
    index = json.loads(files["index.json"])
    content = json.loads(files["blobs/" + index["manifests"][0]["digest"].replace(":", "/")])
    assert content["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    paths = {one["annotations"]["org.cncf.model.filepath"]: one["digest"] for one in content["layers"]}
    declared = payload.load(wish(tmp_path)).manifest
    assert paths["bundle/model.onnx"] == f"sha256:{declared.files['model.onnx']}"


def test_a_spoiled_bundle_is_never_packaged(tmp_path: Path) -> None:
    given = wish(tmp_path)
    with (given.bundle / manifest.MODEL).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(VerificationError, match="content differs"):
        package(given, "triton", tmp_path / "out" / "t.tar")
    assert not (tmp_path / "out").exists()


def test_a_bundle_that_promises_nothing_on_the_processor_is_refused(tmp_path: Path) -> None:
    given = wish(tmp_path, arch="arm64")
    with pytest.raises(PackageError, match="not on arm64"):
        package(given, "triton", tmp_path / "t.tar")


def test_an_interrupted_build_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "t.tar"
    out.write_text("older")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setitem(TARGETS, "triton", fail)  # type: ignore[arg-type]
    with pytest.raises(HostError, match="No space left"):
        package(wish(tmp_path), "triton", out)
    assert out.read_text() == "older"
    assert not list(tmp_path.glob(".t.tar*"))


def test_wheels_that_are_missing_double_damaged_or_hostile(tmp_path: Path) -> None:
    given = wish(tmp_path)
    with pytest.raises(PackageError, match="for aarch64"):
        payload.wheels.libraries(tmp_path / "wheels", "arm64", "onnxruntime")
    with pytest.raises(PackageError, match="--wheels"):
        package(replace(given, wheels=None), "deb", tmp_path / "d")
    wheel(tmp_path / "two", "numpy", python="cp312")
    wheels(tmp_path / "two")
    with pytest.raises(PackageError, match="2 wheels of numpy"):
        package(replace(given, wheels=tmp_path / "two"), "deb", tmp_path / "d")
    path = wheels(tmp_path / "bad") / "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(PackageError, match="not a whole wheel"):
        package(replace(given, wheels=tmp_path / "bad"), "deb", tmp_path / "d")
    wheel(tmp_path / "bad", "numpy", **{"..__evil": b""})
    with pytest.raises(PackageError, match="leaves the folder"):
        package(replace(given, wheels=tmp_path / "bad"), "deb", tmp_path / "d")
    wheel(tmp_path / "bad", "numpy")
    with zipfile.ZipFile(path, "a") as archive_of:
        archive_of.writestr("numpy/extra.py", "import os")
    with pytest.raises(PackageError, match="not what its RECORD says"):
        package(replace(given, wheels=tmp_path / "bad"), "deb", tmp_path / "d")


def test_versions_and_devices_are_checked(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="--version"):
        package(wish(tmp_path, version="1.0\nDepends: evil"), "deb", tmp_path / "d")
    assert payload.load(wish(tmp_path, version="1.0~rc1+b")).tag == "1.0-rc1-b"
    assert payload.load(wish(tmp_path)).device == "toolchain-amd64"
    with pytest.raises(PackageError, match="--device"):
        _ = payload.load(wish(tmp_path, device="a b")).device


@pytest.mark.parametrize("target", ["rauc", "mender"])
def test_a_missing_tool_is_told_with_its_debian_package(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = wish(tmp_path, key=tmp_path / "k", certificate=tmp_path / "c")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"apt-get install (rauc|mender-artifact)"):
        package(given, target, tmp_path / "out.bin")
    assert not (tmp_path / "out.bin").exists()


def test_the_runtimes_own_wheel_is_reproducible_and_runs_alone(tmp_path: Path) -> None:
    name, content = distribution.wheel(0)
    assert distribution.wheel(0) == (name, content)
    path = tmp_path / name
    path.write_bytes(content)
    with zipfile.ZipFile(path) as wheel_file:
        text = wheel_file.read("toolchain_runtime-0.1.0.dist-info/METADATA").decode()
    assert 'Requires-Dist: onnxruntime>=1.24.4; extra == "cpu"' in text
    assert "Requires-Dist: numpy>=2\n" in text
    code = f"import sys; sys.path.insert(0, {str(path)!r}); import toolchain.runtime.bundle as b; print(b.__file__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert name in done.stdout


def test_a_gpu_target_asks_for_the_gpu(tmp_path: Path) -> None:
    given = wish(tmp_path, accelerator="cuda")
    wheel(tmp_path / "wheels", "onnxruntime_gpu")
    assert "--port ${PORT} --provider cuda $OPTIONS" in deb.unit(payload.load(given))
    package(given, "oci", tmp_path / "image.tar")
    for told in (b'"--provider","cuda"', b'"NVIDIA_VISIBLE_DEVICES=all"'):
        assert any(told in content for content in unpacked(tmp_path / "image.tar").values())


@pytest.mark.parametrize("licences", ["MIT", [1], {"a": 1}])
def test_licences_of_another_form_are_told(licences: object, tmp_path: Path) -> None:
    given = wish(tmp_path)
    edit_manifest(given.bundle, lambda content: content.update(licences=licences))
    with pytest.raises(BundleError, match="'licences' of its manifest must be a list"):
        package(given, "triton", tmp_path / "t.tar")


def test_a_changed_manifest_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    given = wish(tmp_path)
    edit_manifest(given.bundle, lambda content: content.update(name="../../etc"))
    assert payload.load(given).name == "etc"

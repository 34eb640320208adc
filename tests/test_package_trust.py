"""Keys, signatures and an own CA: what is signed is accepted, and nothing else is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from package_helpers import wish

from toolchain.errors import PackageError, SignatureError
from toolchain.package import package, trust

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust") / "keys"
    trust.new_keys(folder, "Plant 7")
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "update.bin"
    path.write_bytes(b"content" * 1000)
    return path


def test_keys_are_private_and_never_overwritten(keys: Path) -> None:
    assert (keys / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (keys / "signing.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(PackageError, match="holds keys already"):
        trust.new_keys(keys, "again")
    with pytest.raises(PackageError, match="--name"):
        trust.new_keys(keys.parent / "other", "a/CN=b")


@pytest.mark.parametrize("by_ca", [True, False])
def test_signed_changed_swapped_missing(by_ca: bool, keys: Path, file: Path) -> None:
    trusted = {"ca": keys / "ca.pem"} if by_ca else {"public_key": keys / "signing.pub"}
    with pytest.raises(SignatureError, match="no signature"):
        trust.verify(file, **trusted)
    signature = trust.sign(file, keys / "signing.key", keys / "signing.pem" if by_ca else None)
    assert trust.verify(file, **trusted) == signature
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"T")
    with pytest.raises(SignatureError, match="not that of"):
        trust.verify(file, **trusted)
    file.write_bytes(content)
    damaged = bytearray(signature.read_bytes())
    damaged[-5] ^= 1
    signature.write_bytes(damaged)
    with pytest.raises(SignatureError):
        trust.verify(file, **trusted)


def test_a_stranger_with_the_same_name_is_refused(keys: Path, file: Path, tmp_path: Path) -> None:
    trust.new_keys(tmp_path / "strange", "Plant 7")
    trust.sign(file, tmp_path / "strange" / "signing.key", tmp_path / "strange" / "signing.pem")
    trust.sign(file, tmp_path / "strange" / "signing.key")
    with pytest.raises(SignatureError):
        trust.verify(file, ca=keys / "ca.pem")
    with pytest.raises(SignatureError):
        trust.verify(file, public_key=keys / "signing.pub")


def test_plain_openssl_agrees(keys: Path, file: Path) -> None:
    signature = trust.sign(file, keys / "signing.key", keys / "signing.pem")
    words = ["openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", signature, "-content", file]
    words += ["-CAfile", keys / "ca.pem", "-out", "/dev/null"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_a_package_is_signed_beside_and_an_old_signature_does_not_stay(keys: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "t.tar"
    given = wish(tmp_path, key=keys / "signing.key", certificate=keys / "signing.pem")
    assert package(given, "triton", out) == [out, out.with_name("t.tar.p7s")]
    trust.verify(out, ca=keys / "ca.pem")
    unsigned = wish(tmp_path)
    before = out.read_bytes()
    assert package(unsigned, "triton", out) == [out]
    assert out.read_bytes() == before
    assert sorted(p.name for p in out.parent.iterdir()) == ["t.tar"]


def test_a_key_that_does_not_belong_to_the_certificate(keys: Path, file: Path) -> None:
    with pytest.raises(PackageError, match="openssl failed"):
        trust.sign(file, keys / "ca.key", keys / "signing.pem")
    with pytest.raises(PackageError, match="no such file"):
        trust.sign(file, keys / "none.key")
    with pytest.raises(PackageError, match="who is trusted"):
        trust.verify(file)
    assert sorted(p.name for p in file.parent.iterdir()) == [file.name]

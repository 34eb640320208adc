"""Model files encrypted at rest: they answer with the key, and with nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from package_helpers import wish
from runtime_helpers import GOLDEN, make_bundle

from toolchain.errors import BundleError, PackageError, VerificationError
from toolchain.package import package, seal
from toolchain.runtime import manifest, sealed
from toolchain.runtime.__main__ import main
from toolchain.runtime.bundle import Bundle

KEY = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sealed.KEY_FILE, raising=False)
    monkeypatch.setenv(sealed.KEY, KEY)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    seal.write(make_bundle(tmp_path / "bundle"), tmp_path / "sealed")
    return tmp_path / "sealed"


def test_it_is_the_cipher_that_it_says() -> None:
    """Test case 14 of McGrew and Viega, The Galois/Counter Mode of Operation."""
    found = sealed._crypt(bytes(32), bytes(12), bytes(16), b"", None)
    assert found is not None
    assert found[0].hex() == "cea7403d4d606b6e074ec5d3baf39d18"
    assert found[1].hex() == "d0d1c8a799996bf0265b98b5d48ab919"


@pytest.mark.parametrize("size", [0, 1, 16, 100_000])
def test_what_was_sealed_comes_back(size: int) -> None:
    content = os.urandom(size)
    first, second = sealed.seal(content, "a"), sealed.seal(content, "a")
    assert first != second
    assert sealed.opened(first, "a") == sealed.opened(second, "a") == content
    assert sealed.opened(content, "a") == content
    with pytest.raises(VerificationError):
        sealed.opened(first, "b")


def test_a_sealed_bundle_is_the_same_bundle(tmp_path: Path, bundle: Path) -> None:
    plain = Bundle.load(tmp_path / "bundle")
    for name in (manifest.MODEL, manifest.PLAIN_MODEL):
        assert (bundle / name).read_bytes().startswith(sealed.MAGIC)
        assert (plain.folder / name).read_bytes() not in (bundle / name).read_bytes()
    found = Bundle.load(bundle)
    assert found.verify() == plain.verify()
    feed = {"pictures": GOLDEN[0][None]}
    np.testing.assert_array_equal(found.session().run(feed)[0], plain.session().run(feed)[0])


@pytest.mark.parametrize(
    ("given", "code", "sentence"),
    [
        ({}, 2, f"is sealed; give its key by {sealed.KEY_FILE}"),
        ({sealed.KEY: "f" * 64}, 3, "cannot be opened with this key"),
        ({sealed.KEY: "short"}, 2, "64 hex digits"),
        ({sealed.KEY_FILE: "/nowhere/key"}, 2, "cannot be read as a key"),
    ],
)
def test_without_the_key_it_is_refused(
    given: dict[str, str], code: int, sentence: str, bundle: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv(sealed.KEY)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["verify", str(bundle)]) == code
    assert sentence in capsys.readouterr().err
    with pytest.raises(BundleError):
        Bundle.load(bundle).session()


def test_the_key_may_lie_in_a_file(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    monkeypatch.delenv(sealed.KEY)
    monkeypatch.setenv(sealed.KEY_FILE, str(tmp_path / "key"))
    assert Bundle.load(bundle).verify().golden == len(GOLDEN)


@pytest.mark.parametrize("at", [25, 60, -1])
def test_a_changed_byte_is_found(at: int, bundle: Path) -> None:
    path = bundle / manifest.MODEL
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationError, match=r"was changed"):
        Bundle.load(bundle).verify()
    with pytest.raises(VerificationError, match=r"was changed"):
        Bundle.load(bundle).session()


def test_another_sealed_model_and_a_short_one_are_found(bundle: Path) -> None:
    path = bundle / manifest.MODEL
    path.write_bytes(sealed.seal(b"another model", manifest.MODEL))
    with pytest.raises(VerificationError, match="content differs"):
        Bundle.load(bundle).verify()
    with pytest.raises(VerificationError, match="content differs"):
        Bundle.load(bundle).session()
    path.write_bytes(sealed.MAGIC + b"123")
    with pytest.raises(VerificationError, match="cut short"):
        Bundle.load(bundle).verify()


def test_it_is_sealed_once_and_nothing_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="sealed already"):
        seal.write(bundle, tmp_path / "again")
    with pytest.raises(PackageError, match="there already"):
        seal.write(tmp_path / "bundle", bundle)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "sealed"]


def test_packages_carry_it_sealed_and_triton_cannot(tmp_path: Path) -> None:
    given = wish(tmp_path)
    plain = (given.bundle / manifest.MODEL).read_bytes()
    seal.write(given.bundle, tmp_path / "sealed")
    shutil.rmtree(given.bundle)
    (tmp_path / "sealed").rename(given.bundle)
    package(given, "docker", tmp_path / "c.tar")
    content = (tmp_path / "c.tar").read_bytes()
    assert sealed.MAGIC in content
    assert plain not in content
    with pytest.raises(PackageError, match="Triton cannot open"):
        package(given, "triton", tmp_path / "t.tar")


def test_it_is_served(bundle: Path) -> None:
    pytest.importorskip("uvicorn", reason="serving needs the extra 'server'")
    from server_helpers import serving
    from test_server_faults import ask

    with serving(bundle) as server:
        answer = ask(server.client).json()["outputs"][0]["data"]
        np.testing.assert_array_equal(np.float32(answer), server.raw(GOLDEN[0][None])[0])

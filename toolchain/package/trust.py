"""Keys, an own certificate authority, signing and verification, all offline, by the openssl command.

With a certificate a signature is CMS (RFC 5652), detached, DER, `FILE.p7s`: whoever holds the CA's certificate can
check it, with this or with plain `openssl cms -verify`. With a key alone it is `FILE.sig`: ECDSA or RSA over
sha256, as `openssl dgst -sha256 -verify` takes it. Both lie beside what they sign, whose bytes stay as they were.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from toolchain.errors import PackageError, SignatureError
from toolchain.package import tools
from toolchain.runtime.whole import write_whole

CA_KEY, CA, KEY, PUBLIC, CERTIFICATE = "ca.key", "ca.pem", "signing.key", "signing.pub", "signing.pem"
_CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
_DAYS = 3650


def new_keys(folder: Path, name: str) -> None:
    """Make a CA and a signing key with its certificate in `folder`: ca.key, ca.pem, signing.key, .pub, .pem.

    Keys are EC P-256, readable by their owner only. ca.key belongs offline once this is done.
    Raises PackageError when a file is there already, or the name holds other than letters, digits, space . _ -
    """
    if any((folder / one).exists() for one in (CA_KEY, CA, KEY, PUBLIC, CERTIFICATE)):
        raise PackageError(f"{folder}: holds keys already; name another folder")
    if not name or not all(letter.isascii() and (letter.isalnum() or letter in " ._-") for letter in name):
        raise PackageError(f"--name {name!r}: letters, digits, space, '.', '_' and '-' only")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keys.", dir=folder) as scratch:
        work = Path(scratch)
        made = [str(work / one) for one in (CA_KEY, CA, KEY, CERTIFICATE)]
        common = [*_CURVE, "-sha256", "-days", str(_DAYS)]
        _openssl(
            "req", "-x509", *common, "-keyout", made[0], "-out", made[1], "-subj", f"/CN={name} CA",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        _openssl(
            "req", "-x509", *common, "-keyout", made[2], "-out", made[3], "-subj", f"/CN={name} signing",
            "-CA", made[1], "-CAkey", made[0], "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=codeSigning,emailProtection",
        )  # fmt: skip
        _openssl("pkey", "-in", made[2], "-pubout", "-out", str(work / PUBLIC))
        for one in (CA_KEY, KEY):
            (work / one).chmod(0o600)
        for one in (CA_KEY, CA, KEY, PUBLIC, CERTIFICATE):
            os.replace(work / one, folder / one)


def sign(file: Path, key: Path, certificate: Path | None = None) -> Path:
    """Sign a file; returns the signature's path beside it. Raises PackageError for a key that does not fit."""
    _there(file, key, *([certificate] if certificate else []))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, "signature")
        if certificate is None:
            _openssl("dgst", "-sha256", "-sign", str(key), "-out", str(made), str(file))
            place = Path(f"{file}.sig")
        else:
            _openssl(
                "cms", "-sign", "-binary", "-md", "sha256", "-signer", str(certificate), "-inkey", str(key),
                "-in", str(file), "-outform", "DER", "-out", str(made),
            )  # fmt: skip
            place = Path(f"{file}.p7s")
        write_whole(place, made.read_bytes())
    return place


def verify(file: Path, *, ca: Path | None = None, public_key: Path | None = None) -> Path:
    """Check the signature beside `file` by a CA's certificate or by a public key; returns its path.

    Raises SignatureError when there is none, or it is not by the one trusted, or the file was changed.
    """
    trusted = ca or public_key
    if trusted is None or (ca and public_key):
        raise PackageError("give one of --ca CA.pem and --public-key KEY.pub: who is trusted?")
    _there(file, trusted)
    signature = Path(f"{file}.p7s" if ca else f"{file}.sig")
    if not signature.is_file():
        raise SignatureError(f"{file}: has no signature beside it ({signature.name} is missing); refused")
    if ca:
        words = [
            "cms", "-verify", "-binary", "-inform", "DER", "-in", str(signature), "-content", str(file),
            "-CAfile", str(ca), "-no-CApath", "-no-CAstore", "-purpose", "any", "-out", os.devnull,
        ]  # fmt: skip
    else:
        words = ["dgst", "-sha256", "-verify", str(trusted), "-signature", str(signature), str(file)]
    if (said := tools.failure(["openssl", *words])) is not None:
        raise SignatureError(
            f"{file}: its signature is not that of {trusted} for this content ({said}); refused"
        )
    return signature


def _there(*files: Path) -> None:
    for file in files:
        if not file.is_file():
            raise PackageError(f"{file}: no such file")


def _openssl(*words: str) -> None:
    tools.run(["openssl", *words])

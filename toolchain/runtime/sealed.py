"""Model files that are encrypted at rest: AES-256-GCM by OpenSSL's libcrypto, which Debian's Python brings along.

A sealed file is MAGIC, a nonce of 12 bytes, the ciphertext, and a tag of 16 (NIST SP 800-38D); MAGIC and the file's
name are authenticated with it. The manifest's hashes stay those of what is inside. The key is 64 hex digits, in the file
that TOOLCHAIN_MODEL_KEY_FILE names or in TOOLCHAIN_MODEL_KEY. It protects a disk or a package that gets away without the
key, and nothing else: whoever may read the key, or this process's memory, has the model.
"""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path

from toolchain.runtime.errors import BundleError, HostError, VerificationError

MAGIC = b"toolchain sealed 1\n"
KEY_FILE, KEY = "TOOLCHAIN_MODEL_KEY_FILE", "TOOLCHAIN_MODEL_KEY"
_NONCE, _TAG = 12, 16
_GET_TAG, _SET_TAG = 0x10, 0x11  # EVP_CTRL_AEAD_GET_TAG and _SET_TAG
_MOST = (1 << 31) - 1  # libcrypto counts in int


def is_sealed(content: bytes) -> bool:
    """Whether bytes, or their beginning, are a sealed file's."""
    return content.startswith(MAGIC)


def read(path: Path) -> bytes:
    """A file's content, opened when it is sealed. Raises OSError, BundleError above 2 GB, and as `opened`."""
    if (size := path.stat().st_size) > _MOST:  # told before it is read
        raise BundleError(f"{path}: {size} bytes, more than the {_MOST} that a sealed file may have")
    return opened(path.read_bytes(), path.name)


def starts_sealed(path: Path) -> bool:
    """Whether the file at `path` is sealed. Raises OSError."""
    with path.open("rb") as file:
        return is_sealed(file.read(len(MAGIC)))


def opened(content: bytes, name: str) -> bytes:
    """What is inside a sealed file called `name`; other content as it is.

    Raises BundleError without a usable key, VerificationError for another key or a changed file, HostError without
    libcrypto.
    """
    if not is_sealed(content):
        return content
    nonce, rest = content[len(MAGIC) :][:_NONCE], content[len(MAGIC) + _NONCE :]
    if len(nonce) + len(rest) < _NONCE + _TAG:
        raise VerificationError(f"{name}: its sealed content is cut short")
    plain = _crypt(_key(name), nonce, rest[:-_TAG], MAGIC + name.encode(), rest[-_TAG:])
    if plain is None:
        raise VerificationError(f"{name}: cannot be opened with this key, or was changed")
    return plain[0]


def seal(content: bytes, name: str) -> bytes:
    """The sealed file of `content`, with a nonce of its own each time. Raises as `opened`."""
    nonce = os.urandom(_NONCE)
    made = _crypt(_key(name), nonce, content, MAGIC + name.encode(), None)
    if made is None:
        raise HostError(f"{name}: libcrypto cannot seal it")
    return MAGIC + nonce + made[0] + made[1]


def _key(name: str) -> bytes:
    where = os.environ.get(KEY_FILE)
    try:
        text = Path(where).read_text(encoding="ascii").strip() if where else os.environ.get(KEY, "")
    except (OSError, ValueError) as e:
        raise BundleError(f"{where}: cannot be read as a key ({e})") from e
    if not text:
        raise BundleError(f"{name}: is sealed; give its key by {KEY_FILE} or {KEY}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise BundleError(f"{where or KEY}: a key has 64 hex digits ('openssl rand -hex 32' makes one)")
    return bytes.fromhex(text)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcrypto.so.3")
    except OSError as e:
        raise HostError(f"sealed models need OpenSSL 3's library: apt-get install libssl3 ({e})") from e
    for name in ("EVP_CIPHER_CTX_new", "EVP_aes_256_gcm"):
        getattr(library, name).restype = ctypes.c_void_p
    pointer, number, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
    library.EVP_CIPHER_CTX_free.argtypes = [pointer]
    library.EVP_CipherInit_ex.argtypes = [pointer, pointer, pointer, text, text, number]
    library.EVP_CipherUpdate.argtypes = [pointer, pointer, pointer, text, number]
    library.EVP_CipherFinal_ex.argtypes = [pointer, pointer, pointer]
    library.EVP_CIPHER_CTX_ctrl.argtypes = [pointer, number, number, pointer]
    return library


def _crypt(
    key: bytes, nonce: bytes, content: bytes, beside: bytes, tag: bytes | None
) -> tuple[bytes, bytes] | None:
    """(result, tag): encrypts without `tag`, else decrypts and checks it; None when libcrypto refuses."""
    if len(content) > _MOST:
        raise BundleError(f"a file of {len(content)} bytes is too large to be sealed")
    library = _library()
    context = library.EVP_CIPHER_CTX_new()
    out, found = (
        ctypes.create_string_buffer(len(content) + 16),
        ctypes.create_string_buffer(tag or bytes(_TAG), _TAG),
    )
    length, rest = ctypes.c_int(), ctypes.c_int()
    try:
        fine = (
            library.EVP_CipherInit_ex(context, library.EVP_aes_256_gcm(), None, key, nonce, int(tag is None))
            == 1
            and (tag is None or library.EVP_CIPHER_CTX_ctrl(context, _SET_TAG, _TAG, found) == 1)
            and library.EVP_CipherUpdate(context, None, ctypes.byref(length), beside, len(beside)) == 1
            and library.EVP_CipherUpdate(context, out, ctypes.byref(length), content, len(content)) == 1
            and library.EVP_CipherFinal_ex(context, ctypes.byref(out, length.value), ctypes.byref(rest)) == 1
            and (tag is not None or library.EVP_CIPHER_CTX_ctrl(context, _GET_TAG, _TAG, found) == 1)
        )
    finally:
        library.EVP_CIPHER_CTX_free(context)
    return (out.raw[: length.value + rest.value], found.raw) if fine else None

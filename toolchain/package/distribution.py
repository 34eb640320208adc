"""The runtime as its own small distribution, `toolchain-runtime`: numpy, pillow, and onnxruntime by an extra.

onnxruntime and onnxruntime-gpu overwrite each other, so neither is a base dependency: extras `cpu` and `gpu`
name one each, `server` what the server's optional parts need. Wheel format: PEP 427, metadata 2.4 (PEP 639).

    python -m toolchain.package.distribution dist/        # make runtime-wheel
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from toolchain import __version__
from toolchain.errors import PackageError
from toolchain.package.archive import zipped
from toolchain.runtime.manifest import MINIMUM_ONNXRUNTIME
from toolchain.runtime.whole import write_whole

DISTRIBUTION = "toolchain-runtime"
REPRODUCIBLE_EPOCH = 315532800  # 1980-01-01, the first day that a zip can name
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "cpu": (f"onnxruntime>={MINIMUM_ONNXRUNTIME}",),
    "gpu": (f"onnxruntime-gpu>={MINIMUM_ONNXRUNTIME}",),
    "grpc": ("grpcio>=1.70,<2",),
    "server": ("uvicorn>=0.54,<0.60", "httptools>=0.9,<0.10", "uvloop>=0.22,<0.24"),
}
_BASE = ("numpy>=2", "pillow>=11")
_KINDS = (".py", ".html")


def epoch() -> int:
    """SOURCE_DATE_EPOCH in seconds, or 1980: the time that everything built here carries.

    Raises PackageError when it is no whole number of this and the next century.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH") or str(REPRODUCIBLE_EPOCH)
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= 1 << 32:
        raise PackageError(f"SOURCE_DATE_EPOCH={text}: must be whole seconds since 1970")
    return int(text)


def sources() -> dict[str, bytes]:
    """{path: content} of the runtime, `toolchain/runtime/…`, with a `toolchain/__init__.py` that only says the version."""
    folder = Path(str(resources.files("toolchain.runtime")))
    found = {
        f"toolchain/runtime/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in _KINDS and path.is_file()
    }
    return {"toolchain/__init__.py": f'__version__ = "{__version__}"\n'.encode(), **found}


def wheel(when: int) -> tuple[str, bytes]:
    """(file name, content) of the wheel; the same bytes for the same sources and time."""
    label = f"{DISTRIBUTION.replace('-', '_')}-{__version__}"
    about = f"{label}.dist-info"
    tree = sources() | {
        f"{about}/METADATA": _metadata().encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: toolchain\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/top_level.txt": b"toolchain\n",
    }
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in sorted(tree.items())]
    record = f"{about}/RECORD"
    tree[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    return f"{label}-py3-none-any.whl", zipped(tree, when)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _metadata() -> str:
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {DISTRIBUTION}",
        f"Version: {__version__}",
        "Summary: Verify, ask, time and serve a toolchain bundle on a device",
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.11",
        *(f"Requires-Dist: {need}" for need in _BASE),
    ]
    for extra, needs in EXTRAS.items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f'Requires-Dist: {need}; extra == "{extra}"' for need in needs]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the wheel into the folder named on the command line."""
    name, content = wheel(epoch())
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "dist") / name
    write_whole(path, content)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

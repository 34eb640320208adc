"""Byte code beside the sources of a package: toolchain/package/bytecode.py."""

from __future__ import annotations

import importlib.util
import io
import marshal
import sys
import tarfile
from pathlib import Path

import pytest
from package_helpers import wish

from toolchain.package import archive, bytecode, payload

HERE = sys.version_info[:2]
TAG = "cpython-{}{}".format(*HERE)
SOURCES = {
    "lib/some/__init__.py": b"KINDS = {'a', 'b', 'c', 'd'}\ndef f(x):\n    return x in {'one', 'two', 'three'}\n",
    "lib/some/broken.py": b"print 'another Python'\n",
    "lib/some/data.txt": b"no module",
    "lib/numpy/ma/core.py": b"what no server imports\n",
}


def test_modules_are_compiled_whatever_the_clock_says_and_what_is_no_python_is_left_out() -> None:
    made = bytecode.compiled(SOURCES, HERE)
    assert set(made) == {f"lib/some/__pycache__/__init__.{TAG}.pyc"}
    (content,) = made.values()
    assert content[:4] == importlib.util.MAGIC_NUMBER
    assert int.from_bytes(content[4:8], "little") == 0b01  # hash-based, not checked (PEP 552)
    space: dict[str, object] = {}
    exec(marshal.loads(content[16:]), space)
    assert space["f"]("two")  # type: ignore[operator]
    assert bytecode.compiled(SOURCES, HERE) == made


def test_a_machine_without_that_python_makes_none() -> None:
    assert bytecode.interpreter((3, 99)) is None
    assert bytecode.compiled(SOURCES, (3, 99)) == {}


def test_a_command_that_only_bears_the_name_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim = tmp_path / "python3.99"
    shim.write_text("#!/bin/sh\necho no such version >&2; exit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert bytecode.interpreter((3, 99)) is None


def test_modules_of_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('run')\n")
    monkeypatch.chdir(tmp_path)
    assert bytecode.compiled(SOURCES, HERE)


def test_an_import_takes_the_byte_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bytecode.compiled({"lib/taken_from_bytecode.py": b"VALUE = 'compiled'\n"}, HERE)
    for name, content in made.items():
        path = tmp_path / name.removeprefix("lib/")
        path.parent.mkdir()
        path.write_bytes(content)
    (tmp_path / "taken_from_bytecode.py").write_text("VALUE = 'source'\n")
    monkeypatch.syspath_prepend(tmp_path)
    import taken_from_bytecode  # type: ignore[import-not-found]

    assert taken_from_bytecode.VALUE == "compiled"


def test_packages_carry_it_and_a_base_gets_it_for_its_standard_library(tmp_path: Path) -> None:
    loaded = payload.load(wish(tmp_path))
    tag = "cpython-{}{}".format(*loaded.python)
    if bytecode.interpreter(loaded.python) is None:
        pytest.skip(f"no python{loaded.python} on this machine")
    assert f"lib/numpy/__pycache__/__init__.{tag}.pyc" in loaded.tree()
    folder = "usr/lib/python{}.{}".format(*loaded.python)
    base = archive.tar(
        {f"{folder}/os.py": b"x = 1\n", f"{folder}/turtle.py": b"x = 1\n", "etc/a.py": b""}, 0, prefix="./"
    )
    assert set(bytecode.of_base(base, None, loaded.python)) == {f"{folder}/__pycache__/os.{tag}.pyc"}
    with tarfile.open(fileobj=io.BytesIO(base)) as tar:
        assert "./etc/a.py" in tar.getnames()

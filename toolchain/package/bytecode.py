"""Compiled Python beside its sources, so that a device does not compile them anew at every start.

A system that is mounted read-only keeps no byte code, and what compiling takes at each start is more than all the rest of
a start. The files are hash-based and unchecked (PEP 552): no clock decides whether they count.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from toolchain.errors import PackageError
from toolchain.package import pinned

# Reads {file: name}. What is no Python of this version (a template, a test of errors) is left out.
_SCRIPT = """
import json, py_compile, sys
for file, name in json.load(sys.stdin).items():
    try:
        py_compile.compile(file, file + "c", name, True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except py_compile.PyCompileError:
        pass
"""

# What no server imports, of libraries and of the standard library.
_NEEDLESS = re.compile(
    r"numpy/(_pyinstaller|ma|polynomial|testing)/|PIL/(ImageQt|ImageShow|ImageTk|_tkinter_finder)\.py$|click/shell|"
    r"(_pydecimal|_pyio|_sysconfigdata\w*|aifc|bdb|cgi|cgitb|chunk|curses|dbm|difflib|distutils|doctest|ensurepip|ftplib|html"
    r"|idlelib|imaplib|lib2to3|mailbox|mailcap|modulefinder|nntplib|optparse|pdb|pickletools|plistlib|poplib|pstats|pydoc"
    r"|pydoc_data|smtplib|sqlite3|sunau|tabnanny|tarfile|telnetlib|test|this|tkinter|turtle|turtledemo|unittest|venv|wave"
    r"|wsgiref|xdrlib|xml|xmlrpc|zipapp|zoneinfo)(/|\.py$)"
    r"|encodings/(?!(__init__|aliases|ascii|cp437|idna|latin_1|utf_8|utf_8_sig)\.py$)"
)


def interpreter(python: tuple[int, int]) -> str | None:
    """A CPython of this version on this machine that runs, or None: byte code is of one version, on any processor."""
    if sys.version_info[:2] == python:
        return sys.executable
    program = shutil.which("python{}.{}".format(*python))
    if program is None:
        return None
    asked = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
    done = subprocess.run([program, "-I", "-S", "-c", asked], capture_output=True, text=True)
    said = done.stdout.split()
    return program if done.returncode == 0 and said == ["cpython", *map(str, python)] else None


def compiled(sources: Mapping[str, bytes], python: tuple[int, int]) -> dict[str, bytes]:
    """{path of byte code: content} for the `.py` files of `sources`, as an import looks for them in __pycache__.

    Nothing when this machine has no such Python. The same sources and interpreter give the same bytes. Raises PackageError
    when the interpreter fails.
    """
    program = interpreter(python)
    modules = sorted(name for name in sources if name.endswith(".py") and not _NEEDLESS.match(_module(name)))
    if program is None or not modules:
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        files = {str(Path(scratch, str(index))): name for index, name in enumerate(modules)}
        for file, name in files.items():
            Path(file).write_bytes(sources[name])
        # Sets of constants lie in the order of their hashes.
        environment = {"PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", "")}
        done = subprocess.run(
            [program, "-S", "-s", "-c", _SCRIPT],
            input=json.dumps(files),
            env=environment,
            capture_output=True,
            text=True,
            cwd=scratch,  # which Python looks for modules in
        )
        if done.returncode:
            raise PackageError(f"{program}: cannot compile the libraries ({done.stderr.strip()[-300:]})")
        tag = "cpython-{}{}".format(*python)
        made = {_cached(name, tag): Path(file + "c") for file, name in files.items()}
        return {name: file.read_bytes() for name, file in made.items() if file.exists()}


def of_base(base: bytes, path: Path | None, python: tuple[int, int]) -> dict[str, bytes]:
    """The same for the standard library in a root file system's tar, which comes without. Raises PackageError."""
    return compiled(pinned.below(base, "usr/lib/python{}.{}".format(*python), path), python)


def _module(name: str) -> str:
    """The path below the folder that modules are looked for in."""
    return re.sub(r"^(lib|usr/lib/python[0-9.]+)/", "", name)


def _cached(name: str, tag: str) -> str:
    path = PurePosixPath(name)
    return str(path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc")

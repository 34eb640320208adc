"""The house rules that a machine can check: which way imports point, what may be named where, sizes."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "toolchain"

# A file may import only from rooms to its left (or its own).
ORDER = [
    "runtime", "errors", "record", "progress", "stats", "device", "artifact", "data", "step", "backbones",
    "learn", "graph", "lineage", "calibration", "parity", "simulate", "steps", "measure", "explain", "loadgen", "remote",
    "store", "recipe_problems", "recipe_text", "recipe",
    "recipe_editors",
    "pipeline", "choose", "bundle", "package", "report", "history", "compare", "workflow", "optimize",
    "proposal", "doctor", "cli",
]  # fmt: skip
CUDA_FILES = {"device.py", "runtime/providers.py"}
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("toolchain.")}
    return {name for name in rooms if name != "__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return  # the lazy front door names every room, and imports none at run time
    assert own in ORDER, f"{own} is a new room: give it its place in ORDER"
    wrong = {
        name for name in imported_rooms(path) if name not in ORDER or ORDER.index(name) > ORDER.index(own)
    }
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which come after {own}"


MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in FILES}


@cache
def below(module: str) -> frozenset[str]:
    """The modules that one imports, its own packages left out."""
    found = set()
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return frozenset(n for n in found if n in MODULES and n != module and not module.startswith(f"{n}."))


@pytest.mark.parametrize("start", [name for name in MODULES if name != "toolchain"])
def test_no_module_imports_itself_in_a_circle(start: str) -> None:
    seen: set[str] = set()
    waiting = [name for name in below(start) if name != "toolchain"]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [name for name in below(module) if name != "toolchain"]
    assert start not in seen, f"{start} imports itself through {sorted(seen)}"


def test_runtime_stands_alone() -> None:
    allowed = {"numpy", "PIL", "onnxruntime", "toolchain.runtime"}
    standard = __import__("sys").stdlib_module_names
    for path in sorted((PACKAGE / "runtime").glob("*.py")):
        for node in ast.walk(tree(path)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else names
            for name in names:
                top = name.split(".")[0]
                fine = top in standard or top in allowed or any(name.startswith(a) for a in allowed)
                assert fine, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_cuda_is_spoken_of_in_two_files_only(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) in CUDA_FILES:
        return
    text = path.read_text()
    for pattern in (r"torch\.cuda\b", r"\.cuda\(", r"\w+ExecutionProvider"):
        found = re.search(pattern, text)
        assert not found, f"{path.relative_to(ROOT)} says {found and found[0]}"


def test_every_step_file_is_listed() -> None:
    listed = (PACKAGE / "steps" / "__init__.py").read_text()
    for path in (PACKAGE / "steps").glob("*.py"):
        if path.name != "__init__.py" and re.search(r"^class \w+\(.*\bStep\):$", path.read_text(), re.M):
            assert f"toolchain.steps.{path.stem} import" in listed, f"steps/{path.name} is not listed"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= 60, f"{path.name}: {node.name} has {size} lines"


def test_packages_are_listed_for_installation() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent for path in FILES}:
        name = ".".join(folder.relative_to(ROOT).parts)
        assert (folder / "__init__.py").exists(), f"{name} lacks __init__.py"
    assert 'include = ["toolchain*"]' in text

"""All rows of a case's table before anything is scored: float, ours, and every setting of every rival."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.places import BUILD, case_folder, cell_folder, read_json
from benchmarks.peers.rivals import Rival, Setting
from benchmarks.peers.rivals import rivals as those_of

FP32 = "fp32"
OURS = "toolchain"


@dataclass(frozen=True)
class Entrant:
    """One row. `error` says why there is no file; seconds, cpu_seconds and peak_bytes are those of making it.

    needs: what it was made with besides the float file: "calibration" pictures, or "training pictures" with labels
    or a teacher. foreign: runs in another runtime. found: its setting's choice of layers is ours (rivals.py).
    """

    tool: str
    setting: str
    what: str
    documented: str
    needs: str
    file: Path
    sha256: str | None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    error: str | None = None
    foreign: bool = False
    found: bool = False

    @property
    def name(self) -> str:
        """Unique within a case."""
        return f"{self.tool}.{self.setting}"


def entrants(case: str, build: Path = BUILD, rivals: Iterable[Rival] | None = None) -> list[Entrant]:
    """The rows of a case, float first, then ours, then rivals (those of the case); a cell that was never run says so."""
    folder = case_folder(case, build)
    inputs = read_json(folder / "case.json")
    if inputs is None:
        raise SystemExit(f"{case}: no inputs; run python -m benchmarks.peers.cases")
    hashes = inputs["sha256"]
    first = Entrant(
        OURS, FP32, "the float file that all start from", "", "", folder / "fp32.onnx", hashes["fp32.onnx"]
    )
    own = [
        Entrant(
            OURS, made["name"], made["what"], "docs/quantization.md", made["needs"], folder / made["file"],
            hashes[made["file"]], made["seconds"],
        )
        for made in inputs["ours"]
    ]  # fmt: skip
    return [first, *own, *_cells(case, build, those_of(case) if rivals is None else rivals)]


def _cells(case: str, build: Path, rivals: Iterable[Rival]) -> Iterator[Entrant]:
    for rival in rivals:
        for setting in rival.settings:
            folder = cell_folder(case, rival.cell(setting), build)
            cell = read_json(folder / "cell.json") or {"error": "not run: python -m benchmarks.peers.cells"}
            yield _cell(rival, setting, folder, cell)


def _cell(rival: Rival, setting: Setting, folder: Path, cell: dict[str, Any]) -> Entrant:
    return Entrant(
        rival.name, setting.name, setting.what, setting.documented, "calibration", folder / setting.file,
        cell.get("sha256"), cell.get("seconds"), cell.get("cpu_seconds"), cell.get("peak_bytes"), cell["error"],
        setting.foreign, setting.found,
    )  # fmt: skip

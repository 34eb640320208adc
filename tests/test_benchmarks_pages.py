"""Pages that are drawn from records are drawn from the records that lie beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", [["benchmarks/table.py"], ["-m", "benchmarks.transfer.cards"]], ids=str)
def test_a_page_is_in_step_with_its_records(page: list[str]) -> None:
    done = subprocess.run([sys.executable, *page, "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, f"run python {' '.join(page)}"

"""What the CUDA bench writes down; its figures need a GPU, its sums do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runtime_helpers import plain_model

from benchmarks.cuda.run import AGREES, begun, right, row, timed
from toolchain.runtime.bench import Asked, Sampling
from toolchain.runtime.warm_up import Steadiness

QUICK = Sampling(blocks=4, calls=20, cold_starts=0, traced=1, warm_up=Steadiness(seconds=0.05))


def line(**changes: object) -> dict[str, object]:
    return {"precision": "fp32", "elsewhere": 0, "agrees": 0.0, **changes}


def test_a_record_passes_when_all_agrees_and_only_int8_has_nodes_elsewhere() -> None:
    assert right([line(), line(precision="int8", elsewhere=3)])
    assert not right([line(), line(precision="fp16", elsewhere=1)])
    assert not right([line(agrees=AGREES["fp32"] * 2)])


def test_a_row_tells_speed_by_macs_and_where_nodes_ran(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    path.write_bytes(plain_model().SerializeToString())
    record, options = timed(path, Asked(batches=(2,), sampling=QUICK))
    assert options == {}
    found = row("tiny", "fp32", list(record.cases), 1_000_000, {})
    assert found["batch"] == 2
    p50 = float(np.median(record.cases[0].blocks)) / 1e6
    assert found["p50, ms, with copies"] == pytest.approx(p50, rel=1e-2)
    assert found["pictures/s"] == pytest.approx(2e3 / p50, rel=2e-2)
    assert found["placement"].endswith(" on cpu")
    assert found["elsewhere"] == 0


def test_a_record_names_what_is_missing_before_the_first_row() -> None:
    record = begun("cuda", {"fp16": 700.0}, ["resnet50 fp32"])
    assert record["missing"] == ["resnet50 fp32"]
    assert not record["passed"]
    assert "fp16 700" in record["note"]

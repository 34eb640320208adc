"""`python -m toolchain.runtime`: exit codes, one sentence for each error, tables."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray
from PIL import Image
from runtime_helpers import GOLDEN, LABELS, make_bundle

from toolchain.runtime.__main__ import main
from toolchain.runtime.errors import ModelError
from toolchain.runtime.session import Session

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for label, picture in zip(LABELS, GOLDEN, strict=True):
        Image.fromarray(picture).save(folder / f"{label}.png")
    return folder


def test_verify_in_a_process_of_its_own(bundle: Path) -> None:
    command = [sys.executable, "-m", "toolchain.runtime", "verify", str(bundle)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified" in done.stdout
    assert "3 golden pictures, 3 with the same label" in done.stdout
    (bundle / "NOTICE").write_text("another")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "NOTICE: its content differs" in done.stderr


def test_a_reader_who_left_is_no_traceback(bundle: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "toolchain.runtime", "verify", str(bundle)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_no_bundle_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path}: not a bundle")


def test_predict_prints_a_line_a_picture(
    bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(bundle), str(pictures)]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [Path(row[0]).stem for row in rows] == [row[1] for row in rows] == sorted(LABELS)
    assert all(0.6 < float(row[2]) <= 1 for row in rows)


def test_predict_writes_csv_and_json(
    bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "answers.csv"
    assert main(["predict", str(bundle), str(pictures), "--csv", str(table), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [answer["label"] for answer in told] == sorted(LABELS)
    for row, answer in zip(rows, told, strict=True):
        assert row["path"] == answer["path"]
        assert row["certain"] == ("yes" if answer["certain"] else "no")
        for label in LABELS:
            assert float(row[f"p({label})"]) == pytest.approx(answer["probabilities"][label], abs=1e-6)


def test_one_picture_that_the_model_cannot_take_does_not_either(
    bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Session.run

    def scarce(self: Session, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        if next(iter(feed.values())).shape[1] == 99:
            raise ModelError("no memory for this size")
        return answer(self, feed)

    monkeypatch.setattr(Session, "run", scarce)
    Image.new("RGB", (99, 99)).save(pictures / "large.png")
    table = tmp_path / "answers.csv"
    assert main(["predict", str(bundle), str(pictures), "--csv", str(table)]) == 2
    with table.open(newline="") as file:
        errors = {Path(row["path"]).name: row["error"] for row in csv.DictReader(file)}
    assert len(errors) == 4
    assert "no memory for this size" in errors.pop("large.png")
    assert not any(errors.values())


def test_one_broken_picture_does_not_stop_the_others(
    bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    table = tmp_path / "answers.csv"
    assert main(["predict", str(bundle), str(pictures), "--csv", str(table)]) == 2
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 3
    assert "broken.jpg: not a picture" in told.err
    with table.open(newline="") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert "not a picture" in rows["broken.jpg"]["error"]
    assert rows["red.png"]["label"] == "red"


def test_wrong_inputs_are_one_sentence(
    bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code, sentence in (
        ([str(tmp_path / "empty")], 2, "no pictures in"),
        ([str(tmp_path / "absent.png")], 2, "no such file"),
        ([str(pictures), "--threads", "0"], 2, "threads must be at least 1"),
        ([str(pictures), "--csv", str(pictures / "red.png" / "x.csv")], 1, "cannot be written"),
    ):
        assert main(["predict", str(bundle), *arguments]) == code
        error = capsys.readouterr().err
        assert sentence in error
        assert len(error.splitlines()) == 1
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(bundle)])
    assert stopped.value.code == 2

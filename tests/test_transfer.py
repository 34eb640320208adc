"""The transfer table: its search, its cells that resume, its record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.transfer import cards, run, table
from benchmarks.transfer.run import Cell, best, beyond
from benchmarks.transfer.starts import Start, names
from benchmarks.transfer.tasks import ALL, Digits, Setting, _Folder, settings
from benchmarks.transfer.tuning import Pictures, Schedule, _epoch, accuracy
from toolchain.data.dataset import Data, PictureSet, Sample
from toolchain.device import Device

DEVICE = Device("cpu", "cpu", 1)
RANDOM = Start("nano-random", "resnet10t", {"channels": [8, 8, 8, 8]})


def test_the_search_goes_on_beyond_an_edge_and_stops_inside_or_at_a_bound() -> None:
    inside = {"0.001": [50.0, 1.0], "0.003": [60.0, 1.0], "0.01": [55.0, 1.0]}
    assert best(inside) == 0.003
    assert beyond(inside, "tune") == []
    assert beyond({**inside, "0.01": [61.0, 1.0]}, "tune") == [0.03]
    assert beyond({**inside, "0.001": [61.0, 1.0]}, "tune") == [0.0003]
    assert beyond({"0.1": [50.0, 1.0], "0.3": [60.0, 1.0]}, "tune") == [1.0]
    assert beyond({"0.3": [50.0, 1.0], "1": [60.0, 1.0]}, "tune") == []


def test_a_tie_goes_to_the_lower_loss() -> None:
    assert best({"0.1": [50.0, 1.0], "0.3": [50.0, 0.9], "1": [49.0, 0.1]}) == 0.3


def test_a_cell_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, float, str]] = []

    def train(
        self: Cell, task: object, draw: int, rate: float, device: Device, split: str
    ) -> tuple[float, float]:
        done.append((draw, rate, split))
        if len(done) == 4:
            raise KeyboardInterrupt
        return 50 - abs(rate - 0.003) * 1000 + draw, 1.0

    monkeypatch.setattr(Cell, "_train", train)
    cell = Cell(Setting("digits", 5), RANDOM, "tune", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cell.fill(None, 2, DEVICE)  # type: ignore[arg-type]
    again = Cell(Setting("digits", 5), RANDOM, "tune", tmp_path)
    again.fill(None, 2, DEVICE)  # type: ignore[arg-type]
    assert done == [
        (0, 1e-3, "val"),
        (0, 3e-3, "val"),
        (0, 1e-2, "val"),
        (0, 3e-3, "test"),
        (0, 3e-3, "test"),
        (1, 3e-3, "test"),
    ]
    assert again.facts["test"] == {"0": 50.0, "1": 51.0}
    again.fill(None, 2, DEVICE)  # type: ignore[arg-type]
    assert len(done) == 6


def test_a_cell_of_another_schedule_is_refused(tmp_path: Path) -> None:
    cell = Cell(Setting("digits", 5), RANDOM, "tune", tmp_path)
    cell.path.write_text(json.dumps({**cell.facts, "schedule": {"steps": 1}}))
    with pytest.raises(SystemExit, match="another schedule, remove it"):
        Cell(Setting("digits", 5), RANDOM, "tune", tmp_path)


def test_a_cell_is_really_trained_and_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "schedules", {5: Schedule(steps=2, batch=4)})
    monkeypatch.setitem(run.GRIDS, "tune", (1e-3, 3e-3, 1e-2))
    monkeypatch.setitem(run.BOUNDS, "tune", (1e-3, 1e-2))
    cell = Cell(Setting("digits", 5), RANDOM, "tune", tmp_path)
    cell.fill(Digits(), 1, DEVICE)
    assert set(cell.facts["searched"]) == {"0.001", "0.003", "0.01"}
    assert 0 < cell.facts["test"]["0"] < 60


def test_a_draw_of_folds_scores_what_neither_taught_nor_chose(tmp_path: Path) -> None:
    def pictures(*names: str) -> PictureSet:
        samples = [Sample(name, index % 2, name, None) for index, name in enumerate(names)]
        return PictureSet(tuple(samples), lambda name: np.full((4, 4, 3), int(name), np.uint8))

    def named(found: Pictures) -> list[int]:
        return sorted({round(float(value + 1) * 127.5) for value in found.pictures[:, 0, 0, 0]})

    first = Data("folds", ("a", "b"), pictures("1", "2"), pictures("3", "4"), pictures("5", "6"))
    second = Data("folds", ("a", "b"), pictures("5", "6"), pictures("1", "2"), pictures("3", "4", "7", "8"))
    task = _Folder([first, second])
    assert [named(task.train(ALL, draw)) for draw in (0, 1, 2)] == [[1, 2], [5, 6], [1, 2]]
    assert named(task.val) == [3, 4]
    assert [named(task.test(draw)) for draw in (0, 1, 2)] == [[5, 6], [7, 8], [5, 6]]


def test_balanced_accuracy_and_even_draws_count_classes_alike() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    assert accuracy(torch.zeros(100, dtype=torch.int64), labels, "top1") == pytest.approx(90)
    assert accuracy(torch.zeros(100, dtype=torch.int64), labels, "balanced") == pytest.approx(50)
    drawn = labels[_epoch(labels, True, torch.Generator().manual_seed(0))]
    assert 30 < int(drawn.sum()) < 70
    assert sorted(_epoch(labels, False, torch.Generator().manual_seed(0)).tolist()) == list(range(100))


def test_the_record_pairs_each_start_with_its_random_twin(tmp_path: Path) -> None:
    for name, values in (("nano", [80.0, 82.0, 84.0]), ("nano-random", [70.0, 73.0, 73.0])):
        cell = Cell(Setting("digits", 5), RANDOM, "tune", tmp_path)
        cell.facts |= {"start": name, "rate": 0.01, "host": {}, "test": dict(zip("012", values, strict=True))}
        (tmp_path / f"{name}.json").write_text(json.dumps(cell.facts))
    nano, random = table.record(tmp_path)["rows"]
    assert (nano["start"], random["start"]) == ("nano", "nano-random")
    assert nano["over_random"] == 10.0
    assert nano["over_random_ci95"] == [7.52, 12.48]
    assert "over_random" not in random
    with pytest.raises(SystemExit, match="no cell"):
        table.record(tmp_path / "empty")


def test_every_setting_and_start_has_a_name() -> None:
    assert Setting("digits", ALL).per_class == "all"
    assert {setting.task for setting in settings(["digits", "cifar10"])} == {"digits", "cifar10"}
    assert names() == ["small", "small-random", "nano", "nano-random", "imagenet"]


def test_the_cards_show_what_the_record_holds() -> None:
    record = json.loads(cards.RECORD.read_text())
    for name in cards.NAMES:
        card = (cards.CARDS / f"{name}.md").read_text()
        assert cards.replaced(card, cards.drawn(name, record)) == card, "python -m benchmarks.transfer.cards"


def test_a_card_tells_lead_draws_and_reference_and_what_is_not_measured() -> None:
    row = {"task": "digits", "per_class": "5", "way": "tune", "draws": [93.0, 95.0], "mean": 94.0, "sd": 1.41}
    rows = [
        row | {"start": "nano", "over_random": -0.52, "over_random_ci95": [-2.0, 1.04]},
        row | {"start": "nano-random", "mean": 94.52, "sd": None, "draws": [94.52]},
        row | {"start": "nano", "per_class": "20"},
        row | {"start": "small", "over_random": 1.0, "over_random_ci95": None},
    ]
    text = cards.drawn("nano", {"rows": rows})
    assert "| digits, 32 pixels | 5 | 2 | 94.5 | 94.0 ± 1.4 | −0.5 [−2.0, 1.0] | not measured |" in text
    assert "| digits, 32 pixels | 20 | 2 | not measured | 94.0 ± 1.4 | not measured | not measured |" in text
    assert len(text.splitlines()) == 2 + 2 + 1 + 2  # two heads, two lines, an empty one


def test_a_card_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="a card needs the lines"):
        cards.replaced("# nano", "")

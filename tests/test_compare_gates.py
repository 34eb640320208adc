"""`gates.yaml`: defaults, files, changes, and errors that say which setting is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolchain.compare.gates import Gates, load
from toolchain.errors import RecipeError


def gates(tmp_path: Path, text: str) -> Path:
    (tmp_path / "gates.yaml").write_text(text)
    return tmp_path / "gates.yaml"


def test_without_a_file_the_defaults_hold_and_can_be_changed() -> None:
    assert load() == Gates()
    changed = load(None, ["latency=2", "size=null", "class_accuracy.cat=3"])
    assert (changed.latency, changed.size, changed.class_accuracy) == (2.0, None, {"cat": 3.0})


def test_a_file_is_read_with_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOUND", "7")
    found = load(gates(tmp_path, "latency: ${BOUND}\naccuracy: 0.5\nmetric: balanced\n"), ["accuracy=0.2"])
    assert (found.latency, found.accuracy, found.metric) == (7.0, 0.2, "balanced")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("latenzy: 5", ["gates.yaml: 1 problem", "latenzy: unknown setting (did you mean 'latency'?)"]),
        ("latency: -1\nsize: big", ["2 problems", "latency: input should be greater than or equal to 0, not -1", "size:"]),
        ("metric: top5", ["metric: input should be 'top1' or 'balanced', not 'top5'"]),
        ("- 5", ["bounds are a mapping (latency: 5, accuracy: 1, …), this is not"]),
        ("latency: 5\nlatency: 6", ["'latency' is given twice"]),
        ("class_accuracy: {cat: 500}", ["class_accuracy"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_with_its_place(tmp_path: Path, text: str, sentences: list[str]) -> None:
    with pytest.raises(RecipeError) as told:
        load(gates(tmp_path, text))
    for sentence in sentences:
        assert sentence in str(told.value)


def test_every_line_may_be_left_out(tmp_path: Path) -> None:
    assert load(gates(tmp_path, "# latency: 2\n")) == Gates()
    assert load(gates(tmp_path, "")) == Gates()


def test_a_change_without_a_value_switches_no_bound_off() -> None:
    """A variable that is not set in a CI's shell did."""
    for empty in ("latency=", "latency=  "):
        with pytest.raises(RecipeError, match=r"--set latency= *: there is no value; write null"):
            load(None, [empty])
    assert load(None, ["latency=null"]).latency is None


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gates\.yaml: cannot be read"):
        load(tmp_path / "gates.yaml")


def test_a_malformed_change_is_told_with_an_example_of_these_bounds() -> None:
    with pytest.raises(RecipeError, match=r"--set latency: write it as path=value, e\.g\. --set latency=2"):
        load(None, ["latency"])
